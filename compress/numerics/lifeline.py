"""How the processes of one run learn of each other's end, within a second or two.

Every process keeps a connection to rank 0. The system closes it when a process dies, however that
happens, so nothing is polled and a long computation is never taken for a death. Before it leaves, a
process says why: a normal end, or its error. A thread of each process listens; when another has
failed it lets the main thread find out by itself (its next exchange raises), and where the main
thread is stuck in a computation or an exchange it says what happened and ends the process.

Only rank 0 prints, of all errors one; if it is rank 0 that died, one of the others on each machine
does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from compress.errors import RequestError, RunError

GRACE = 2.0  # seconds that the main thread has to find out by itself
LINGER = 10.0  # seconds that a failed process waits for rank 0 to tell the user
_CONNECT = 60.0


class Address(NamedTuple):
    """Where rank 0 listens, and the word that opens the door."""

    host: str
    port: int
    token: str


class Orphaned(RunError):
    """Rank 0 is gone: one of the others on each machine tells it.

    Attributes:
        untold: whether this process is the one.
    """

    def __init__(self, message: str, hint: str | None, untold: bool) -> None:
        super().__init__(message, hint)
        self.untold = untold


@dataclass(frozen=True)
class Loss:
    """Why the run is over."""

    message: str
    hint: str | None = None
    code: int = 3
    orphaned: bool = False
    untold: bool = False
    """Of an orphan: whether this process is the one that tells it."""

    def error(self) -> BaseException:
        """The exception to raise in the main thread."""
        if self.code == 130:
            return KeyboardInterrupt()
        if self.orphaned:
            return Orphaned(self.message, self.hint, self.untold)
        return (RequestError if self.code == 2 else RunError)(self.message, self.hint)


def listen(host: str, token: str | None = None) -> tuple[socket.socket, Address]:
    """Open rank 0's door on the address that `host` names, and nowhere else."""
    family, _, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    server = socket.create_server((place[0], 0), family=family)
    server.settimeout(_CONNECT)
    return server, Address(host, server.getsockname()[1], token or secrets.token_hex(16))


def accept(server: socket.socket, token: str, size: int) -> dict[int, socket.socket]:
    """Let the other ranks in; strangers are turned away.

    Raises:
        TimeoutError: not all have come within a minute.
    """
    links: dict[int, socket.socket] = {}
    with server:
        while len(links) < size - 1:
            link, _ = server.accept()
            link.settimeout(_CONNECT)
            with contextlib.suppress(OSError, ValueError):
                line = link.makefile("r", encoding="utf-8").readline(256).split()
                if len(line) == 2 and secrets.compare_digest(line[0], token):
                    links[int(line[1])] = link
                    continue
            link.close()
    return links


def connect(address: Address, rank: int) -> dict[int, socket.socket]:
    """Go to rank 0."""
    link = socket.create_connection((address.host, address.port), timeout=_CONNECT)
    link.sendall(f"{address.token} {rank}\n".encode())
    return {0: link}


class Lifeline:
    """One process's connections, and the thread that listens to them.

    Args:
        rank: of this process.
        links: rank -> connection; rank 0 has all others, the others have rank 0.
        token: the word that opened rank 0's door; no other run of the machine has it.
        remedy: what to do where a process has died.

    Attributes:
        loss: why the run is over, once it is.
    """

    def __init__(self, rank: int, links: dict[int, socket.socket], token: str, remedy: str) -> None:
        self.rank = rank
        self.remedy = remedy
        self._token = token
        self._stick: socket.socket | None = None  # held by the orphan that speaks
        self.loss: Loss | None = None
        self._links = links
        self._buffers = dict.fromkeys(links, b"")
        self._lost = threading.Event()
        self._rank_0_gone = threading.Event()
        self._left = False  # the main thread has failed, and sees to its end
        self._deadline: float | None = None
        self._told: float | None = None  # when a signal came
        self._signal_code = 3
        self._closed = False
        self._wake, self._alarm = socket.socketpair()
        self._before: tuple[Any, int] | None = None
        for link in [*links.values(), self._wake, self._alarm]:
            link.setblocking(False)
        for link in links.values():
            _keep_alive(link)
        self._thread = threading.Thread(target=self._listen, daemon=True, name="lifeline")
        self._take_signals()
        self._thread.start()

    def check(self, wait: float = 0.0) -> None:
        """Raise why the run is over, if it is, waiting so many seconds for the word of it."""
        self._lost.wait(wait)
        if self.loss is not None:
            raise self.loss.error()

    def leave(self, error: BaseException | None) -> None:
        """Say good-bye, or what went wrong; a failing process waits until rank 0 has told it."""
        if error is None:
            self._say({"bye": True})
            self._closed = True
            self._ring()
            self._thread.join()
            self._restore_signals()
            for link in [*self._links.values(), self._wake, self._alarm]:
                link.close()
            return
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "code", 3)
        self._left = True
        self._say(
            {
                "error": getattr(error, "message", None) or _describe(error),
                "hint": getattr(error, "hint", None),
                "code": code if isinstance(code, int) else 3,
            }
        )
        # The connections stay open: their closing tells the others that this process has ended.
        # Launchers send SIGTERM as soon as one process has failed, but what this one has to tell
        # must come out first, with its exit code.
        if self._before is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.rank != 0:
            self._rank_0_gone.wait(LINGER)
        if self._stick is not None:
            time.sleep(GRACE / 2)  # others that notice a little later find somebody speaking

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ, -1)
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while not self._closed:
                for key, _ in selector.select(timeout=0.2):
                    if key.data == -1:
                        self._signalled(self._wake.recv(64))
                    elif not self._hear(key.data):
                        selector.unregister(key.fileobj)
                self._act()

    def _hear(self, rank: int) -> bool:
        """Read what a rank says; False once its connection is closed."""
        try:
            data = self._links[rank].recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, self._buffers[rank] = (self._buffers[rank] + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if said.get("bye"):
                self._buffers[rank] = b"bye"
            elif rank == 0:
                self._lose(Loss(said["error"], said["hint"], said["code"]))
            else:
                self._lose(Loss(f"rank {rank}: {said['error']}", said["hint"], said["code"]))
        if data:
            return True
        if rank == 0:
            self._rank_0_gone.set()
        if self._buffers[rank] != b"bye":
            gone = f"rank {rank} ended without a word: killed, or its machine is gone"
            orphaned = rank == 0
            self._lose(Loss(gone, self.remedy, 3, orphaned, orphaned and self._may_speak()))
        return False

    def _signalled(self, signals: bytes) -> None:
        if signal.SIGTERM in signals or signal.SIGINT in signals:
            self._told = self._told or time.monotonic()
            self._signal_code = 130 if signal.SIGINT in signals else 3

    def _lose(self, loss: Loss) -> None:
        if self.loss is None:
            self.loss = loss
            self._deadline = time.monotonic() + GRACE
            self._lost.set()

    def _act(self) -> None:
        """End the process if it is over and the main thread doesn't see to that."""
        now = time.monotonic()
        if self._told is not None and now > self._told + GRACE / 2:
            what = "interrupted" if self._signal_code == 130 else "stopped by SIGTERM"
            self._lose(Loss(what, self.remedy, self._signal_code))
        if self._left or self.loss is None or self._deadline is None or now < self._deadline:
            return
        if self.rank == 0 or self.loss.untold:
            hint = f"\n\nhint: {self.loss.hint}" if self.loss.hint else ""
            os.write(2, f"error: {self.loss.message}{hint}\n".encode())
        elif not self._rank_0_gone.is_set() and now < self._deadline + LINGER:
            return  # rank 0 tells it, and a launcher must not end rank 0 before
        if self.rank == 0:
            self._say({"error": self.loss.message, "hint": self.loss.hint, "code": self.loss.code})
        _exit(self.loss.code)

    def _may_speak(self) -> bool:
        """Take the talking stick of this machine's orphans; False if another has it.

        It is a name in the system's table of sockets, which is free again when its holder ends.
        """
        try:
            stick = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            stick.bind(f"\0compress-{self._token}")
        except (AttributeError, OSError) as error:
            # Only Linux has such names; elsewhere everybody speaks.
            return getattr(error, "errno", None) != errno.EADDRINUSE
        self._stick = stick
        return True

    def _say(self, what: dict[str, Any]) -> None:
        line = json.dumps(what).encode() + b"\n"
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.sendall(line)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._alarm.send(b"\0")

    def _take_signals(self) -> None:
        """Have SIGTERM told to the thread: the main thread may be stuck where it can't hear."""
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.signal(signal.SIGTERM, _ignored)
        self._before = (
            handler,
            signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False),
        )

    def _restore_signals(self) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before[1])
            signal.signal(signal.SIGTERM, self._before[0] or signal.SIG_DFL)


def _ignored(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wake-up descriptor has told the thread already."""


def _exit(code: int) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _keep_alive(link: socket.socket) -> None:
    """Notice within half a minute that the other machine is gone."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
