"""Progress bars on stderr: a Progress that draws, only on a terminal, only for what takes a while.

Bars whose work is all done are left on the screen and the live display closes, so what is printed
afterwards stands below them. rich is imported when the first bar is drawn.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

SHOWN_AFTER_S = 0.5
_NAME_WIDTH = 10
_BAR_WIDTH = 32
_REFRESH_PER_S = 8


@dataclass
class Bar:
    """One task. Times are in seconds of the caller's clock.

    Attributes:
        first: units that were done when the bar opened (a resumed job starts late).
        updated: when `done` last changed.
        ended: when all was done, or None.
    """

    name: str
    total: int
    started: float
    first: int = 0
    done: int = 0
    note: str = ""
    updated: float = 0.0
    ended: float | None = None

    def update(self, done: int, total: int, note: str, now: float) -> None:
        """Take in one report of the job."""
        if done != self.done:
            self.updated = now
        self.done, self.total, self.note = done, total, note
        if done >= total and self.ended is None:
            self.ended = now

    def elapsed(self, now: float) -> float:
        """Seconds from the first report to the last, or to now."""
        return (now if self.ended is None else self.ended) - self.started

    def remaining(self, now: float) -> float | None:
        """Seconds left at the mean pace so far; None before the first unit is done."""
        made = self.done - self.first
        if self.ended is not None or made <= 0:
            return None
        pace = (self.updated - self.started) / made
        return max(pace * (self.total - self.done) - (now - self.updated), 0.0)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def draw(bars: Sequence[Bar], now: float, width: int) -> RenderableType:
    """The live display: a line per bar, then what is being worked on.

    Args:
        bars: in the order in which they began.
        now: the caller's clock, seconds.
        width: columns of the terminal.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    shown = [bar for bar in bars if bar.elapsed(now) >= SHOWN_AFTER_S]
    grid = Table.grid(padding=(0, 1))
    for bar in shown:
        left = bar.remaining(now)
        size = max(5, min(_BAR_WIDTH, width - 48))
        grid.add_row(
            Text(f"{bar.name:<{_NAME_WIDTH - 1}}"),
            ProgressBar(total=max(bar.total, 1), completed=bar.done, width=size),
            Text(f"{bar.done}/{bar.total}"),
            Text(clock(bar.elapsed(now))),
            Text("" if left is None else f"ETA {clock(left)}"),
        )
    notes = [bar.note for bar in shown if bar.note and bar.ended is None]
    if not notes:
        return grid
    note = Text(" " * _NAME_WIDTH + f"now {notes[-1]}", no_wrap=True, overflow="ellipsis")
    return Group(grid, note)


class ProgressBars:
    """A Progress that draws bars; a context manager, so that the terminal is always given back.

    Args:
        quiet: draw nothing.
        stream: where to draw; stderr unless given.
        now: the clock, seconds.
    """

    def __init__(
        self,
        quiet: bool = False,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._now = now
        self._on = not quiet and _can_draw(self._stream)
        self._bars: dict[str, Bar] = {}
        self._drawn: tuple[Bar, ...] = ()
        self._live: Live | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on = False
        self.stop()

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take in one report of a job; see compress.progress."""
        if not self._on:
            return
        with self._lock:
            now = self._now()
            bar = self._bars.get(task)
            if bar is None or (bar.ended is not None and done < total):
                bar = self._bars[task] = Bar(task, total, now, first=done, done=done, updated=now)
            bar.update(done, total, note, now)
            self._drawn = tuple(self._bars.values())
            if all(b.ended is not None for b in self._drawn):
                self.stop()
            elif self._live is None and self._timer is None:
                self._timer = threading.Timer(SHOWN_AFTER_S, self._open)
                self._timer.daemon = True
                self._timer.start()

    def stop(self) -> None:
        """Leave the bars as they stand and give the terminal back; the next report opens anew."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            live, self._live = self._live, None
            if live is not None:
                live.stop()
            self._bars.clear()
            self._drawn = ()

    def _open(self) -> None:
        """Start drawing: the job has taken long enough to be worth a bar."""
        from rich.console import Console
        from rich.live import Live

        with self._lock:
            self._timer = None
            if not self._on or not self._drawn or self._live is not None:
                return
            console = Console(file=self._stream, stderr=True, highlight=False)
            self._live = Live(
                console=console,
                refresh_per_second=_REFRESH_PER_S,
                # rich would send prints to the bars' stream; right only where both are terminals.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=self._stream is sys.stderr,
                get_renderable=lambda: self._render(console),
            )
            self._live.start()

    def _render(self, console: Console) -> RenderableType:
        # Called by rich's thread, which holds rich's lock: taking ours here could deadlock with
        # stop(); the tuple is replaced whole, so no lock is needed.
        return draw(self._drawn, self._now(), console.width)


class ProgressFile:
    """A Progress that keeps the last report in a small JSON file, for another process to read.

    Args:
        path: the file; replaced whole, at most twice a second.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._told = 0.0

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take in one report of the job."""
        now = time.monotonic()
        if now - self._told < 0.5 and done < total:
            return
        self._told = now
        data = {"task": task, "done": done, "total": total, "note": note}
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # nobody's result depends on it
            beside.write_text(json.dumps(data), encoding="utf-8")
            os.replace(beside, self._path)


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
