"""A process that has torch imported and forks one child for every step.

A step of a recipe is a process of its own: a crash, an out-of-memory kill or a memory leak ends one
step, its GPU memory is given back, and it can be interrupted alone. But importing torch and
transformers takes seconds, longer than a small step. So one process imports them, touches no device
and starts no thread, and every step is a fork of it.

Requests come as lines of JSON on stdin, answers go to the descriptor given as first argument. When
stdin ends, the recipe's process is gone: all steps are ended. Linux only; elsewhere every step is a
new `python -m compress`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

_END_PATIENCE = 5.0


def main() -> None:
    """Serve until stdin ends; in a forked child, run the step instead."""
    answers = int(sys.argv[1])
    for name in sys.argv[2:]:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what is imported is never collected, so children share its memory
    step = Nursery(answers).serve()
    if step is not None:
        run_step(step)


def run_step(step: dict[str, Any]) -> NoReturn:
    """Be the command that a step asks for."""
    from compress.__main__ import call

    sys.argv = ["compress", *step["argv"]]
    sys.exit(call(step["argv"]))


class Nursery:
    """Forks steps and tells how they end."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._children: dict[int, int] = {}
        self._rest = b""

    def serve(self) -> dict[str, Any] | None:
        """Answer requests; returns a step in the child that is to run it, None at the end."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to tell
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as waiting:
            waiting.register(0, selectors.EVENT_READ)
            waiting.register(woken, selectors.EVENT_READ)
            self._tell({"ready": True})
            while True:
                for key, _ in waiting.select():
                    if key.fd == woken:
                        os.read(woken, 4096)
                        self._reap()
                        continue
                    data = os.read(0, 1 << 16)
                    if not data:
                        self._end()
                        return None
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    for line in lines:
                        step = self._take(json.loads(line))
                        if step is not None:
                            return step

    def _take(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if "check" in request:
            from compress.recipes.judging import faults

            self._tell({"id": request["id"], "faults": faults(request["check"])})
            return None
        if "signal" in request:
            for pid, number in self._children.items():
                if number == request["id"]:
                    with suppress(ProcessLookupError):
                        os.killpg(pid, request["signal"])
            return None
        pid = os.fork()
        if pid == 0:
            _become(request, self._answers)
            return request
        with suppress(OSError):  # here and in the child: whoever is first
            os.setpgid(pid, pid)
        self._children[pid] = request["id"]
        return None

    def _reap(self) -> None:
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                self._tell({"id": self._children.pop(pid), "code": code})

    def _end(self) -> None:
        """End all children: first asked, so that they keep their journals, then killed."""
        for number in (signal.SIGINT, signal.SIGKILL):
            for pid in self._children:
                with suppress(ProcessLookupError):
                    os.killpg(pid, number)
            until = time.monotonic() + _END_PATIENCE
            while self._children and time.monotonic() < until:
                for pid in list(self._children):
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        self._children.pop(pid)
                time.sleep(0.02)

    def _tell(self, answer: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            os.write(self._answers, json.dumps(answer).encode() + b"\n")


def _become(request: dict[str, Any], answers: int) -> None:
    """In a fork: a process group, signals, streams and environment of its own."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(OSError):
        os.setpgid(0, 0)
    os.close(answers)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for stream, path in ((1, request["out"]), (2, request["err"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, stream)
        os.close(file)
    os.environ.update(request["env"])


if __name__ == "__main__":
    main()
