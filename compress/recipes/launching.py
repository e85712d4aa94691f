"""Steps as processes: forks of a nursery where that works, else new interpreters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from compress.errors import RunError
from compress.recipes.judging import Question

PROGRESS = "COMPRESS_PROGRESS"
KILLED = 128


@dataclass(frozen=True)
class Order:
    """A step to be run.

    Attributes:
        argv: the command line without the program's name.
        out, err: files for stdout and stderr; their directory exists.
        env: variables to set, beside this process's.
    """

    argv: tuple[str, ...]
    out: str
    err: str
    env: Mapping[str, str] = field(default_factory=dict)


class Launcher(Protocol):
    """Runs orders, several at a time from several threads."""

    def run(self, order: Order) -> int:
        """Run to the end; returns the exit code, 128 + N where signal N ended it."""

    def judge(self, questions: Sequence[Question]) -> list[str]:
        """What commands find wrong with settings; see judging.faults."""

    def signal(self, number: int) -> None:
        """Send a signal to all that runs."""

    def close(self) -> None:
        """End what runs and give everything back."""


def launcher(names: Sequence[str], env: Mapping[str, str]) -> Launcher:
    """The launcher of this system.

    Args:
        names: commands that will be run; what they import is imported ahead.
        env: variables that the recipe sets.
    """
    if sys.platform.startswith("linux"):
        return Forked(names, env)
    return Plain(env)


class Plain:
    """A new interpreter for every step."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = dict(env)
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, order: Order) -> int:
        """Run an order to its end."""
        with open(order.out, "wb") as out, open(order.err, "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "compress", *order.argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **self._env, **order.env},
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform.startswith("linux") else None,
            )
        self._running.add(process)
        try:
            return _code(process.wait())
        finally:
            self._running.discard(process)

    def judge(self, questions: Sequence[Question]) -> list[str]:
        """Ask in a process of its own, unless torch is here already."""
        from compress.recipes.judging import faults

        if "torch" in sys.modules:
            return faults(questions)
        done = subprocess.run(
            [sys.executable, "-m", "compress.recipes.judging"],
            input=json.dumps(list(questions)).encode(),
            stdout=subprocess.PIPE,
            env={**os.environ, **self._env},
            check=True,
        )
        return list(json.loads(done.stdout))

    def signal(self, number: int) -> None:
        """Send a signal to all that runs."""
        for process in list(self._running):
            with suppress(OSError):
                os.killpg(process.pid, number)

    def close(self) -> None:
        """Kill what is left."""
        self.signal(getattr(signal, "SIGKILL", signal.SIGTERM))


class Forked:
    """Steps are forks of a process that has imported what they need."""

    def __init__(self, names: Sequence[str], env: Mapping[str, str]) -> None:
        self._names, self._env = tuple(names), dict(env)
        self._process: subprocess.Popen[bytes] | None = None  # started by the first request
        self._lock = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._running: set[int] = set()
        self._next = 0
        self._gone = False

    def _open(self) -> None:
        told, tell = os.pipe()
        modules = _preloaded(self._names)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "compress.recipes.nursery", str(tell), *modules],
            stdin=subprocess.PIPE,
            env={**os.environ, **self._env},
            pass_fds=(tell,),
            start_new_session=True,
        )
        os.close(tell)
        stream = os.fdopen(told, "rb")
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def run(self, order: Order) -> int:
        """Run an order to its end."""
        request = {"argv": list(order.argv), "out": order.out, "err": order.err}
        return _code(self._ask({**request, "env": dict(order.env)})["code"])

    def judge(self, questions: Sequence[Question]) -> list[str]:
        """What commands find wrong with settings."""
        from compress.recipes.judging import faults

        if "torch" in sys.modules or not questions:
            return faults(questions)
        return list(self._ask({"check": list(questions)})["faults"])

    def signal(self, number: int) -> None:
        """Send a signal to all that runs."""
        with self._lock:
            for request in self._running:
                self._send({"id": request, "signal": number})

    def close(self) -> None:
        """End the nursery, and with it every step."""
        if self._process is None:
            return
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
            return
        self._process.kill()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._process is None:
                self._open()
            self._next += 1
            number = self._next
            self._running.add(number)
            self._send({"id": number, **request})
            while number not in self._answers and not self._gone:
                self._lock.wait()
            self._running.discard(number)
            if number in self._answers:
                return self._answers.pop(number)
        raise RunError("the process that starts steps has ended", "run the same command again")

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            answer = json.loads(line)
            with self._lock:
                if "id" in answer:
                    self._answers[answer["id"]] = answer
                self._lock.notify_all()
        with self._lock:
            self._gone = True
            self._lock.notify_all()


def _preloaded(names: Sequence[str]) -> list[str]:
    """Modules that every step of these commands imports."""
    import compress

    rooms = [compress._LAZY.get(n.replace("-", "_"), "") for n in names]
    rooms += [compress._LAZY["evaluate"]] if "eval" in names else []
    more = ["torch", "transformers", "accelerate", "datasets", "compress.evaluation.asked"]
    own = [r for r in dict.fromkeys(rooms) if r]
    return [*more, *own, "compress.recipes.judging"] if own else []


def _code(code: int) -> int:
    return KILLED - code if code < 0 else code


def _die_with_parent() -> None:
    """In a new process on Linux: be killed when the parent dies."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def words(path: Path, most: int = 20_000) -> str:
    """The end of a log."""
    with suppress(OSError), path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(stream.tell() - most, 0))
        return stream.read().decode("utf-8", "replace")
    return ""
