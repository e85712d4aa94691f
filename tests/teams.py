"""Commands run by several processes at once, as torchrun starts them, without its seconds of start.

The processes are forks of the test's, which has imported torch already; they talk by gloo.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

TIMEOUT = 120.0


class Ended(NamedTuple):
    """How one process ended: its exit code (minus a signal), what it printed, and when."""

    code: int
    out: str
    err: str
    at: float


def in_ranks(count: int, call: Callable[[], int | None], place: Path) -> list[Ended]:
    """Run `call()` in `count` processes and return how each ended.

    Args:
        count: how many.
        call: returns the exit code, None for 0; an error it raises is code 99. It may look at the
            environment's RANK to behave like one that fails.
        place: a directory for what they print.
    """
    place.mkdir(parents=True, exist_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    children = {}
    for rank in range(count):
        child = os.fork()
        if not child:
            _be(rank, count, port, call, place)
        children[child] = rank
    return _wait(children, place)


def die(*args: object, **kwargs: object) -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def _be(rank: int, count: int, port: int, call: Callable[[], int | None], place: Path) -> None:
    for number, kind in ((1, "out"), (2, "err")):
        handle = os.open(place / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # pytest has put its own there
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(torch.get_num_threads())  # renew torch's pool, which a fork breaks
    try:
        code = call() or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(children: dict[int, int], place: Path) -> list[Ended]:
    found, left, begun = {}, dict(children), time.monotonic()
    while left:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in left:
            rank = left.pop(child)
            texts = [(place / f"{rank}.{kind}").read_text() for kind in ("out", "err")]
            found[rank] = Ended(os.waitstatus_to_exitcode(status), *texts, time.monotonic())
        elif time.monotonic() > begun + TIMEOUT:
            for one in left:
                os.kill(one, signal.SIGKILL)
        elif not child:
            time.sleep(0.02)
    return [found[rank] for rank in sorted(found)]
