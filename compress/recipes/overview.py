"""What people see of a run: the graph ahead of it, and where all its steps stand."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from compress.recipes.store import FAILED, OK, SKIPPED, Record
from compress.reports import formats as fmt
from compress.reports.progress_bars import Bar, clock, draw

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_MOST_LINES = 12
_REFRESH_PER_S = 4

Say = Callable[[str], None]


class Times:
    """How long steps take, from those that were run.

    Args:
        records: of earlier runs.
    """

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self._by_step: dict[tuple[str, str], list[float]] = {}
        self._bytes: dict[tuple[str, str], list[int]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Learn from a step that was run, now or earlier."""
        if record.status == OK and record.seconds:
            name = (record.step, record.command)
            self._by_step.setdefault(name, []).append(record.seconds)
            self._bytes.setdefault(name, []).append(record.bytes)

    def seconds(self, step: str, command: str) -> float | None:
        """The mean of this step's times; None if it never ran."""
        found = self._by_step.get((step, command))
        return sum(found) / len(found) if found else None

    def bytes(self, step: str, command: str) -> int | None:
        """The mean size of what it left."""
        found = self._bytes.get((step, command))
        return round(sum(found) / len(found)) if found else None


class Watch:
    """Tells how a run goes: a live overview on a terminal, a line a step elsewhere.

    Args:
        steps: (place, step, command) of every instance.
        times: how long steps take.
        progress: where a step of this place says how far it is.
        say: gets lines for the reader.
        jobs: steps at a time.
        quiet: say and draw nothing.
        stream: where to draw; stderr unless given.
    """

    def __init__(
        self,
        steps: Sequence[tuple[str, str, str]],
        times: Times,
        progress: Callable[[str], Path],
        say: Say,
        jobs: int = 1,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._steps = {place: (step, command) for place, step, command in steps}
        self._times = times
        self._progress = progress
        self._say = say
        self._jobs = jobs
        self._stream = sys.stderr if stream is None else stream
        dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
        self._draws = not quiet and self._stream.isatty() and not dumb
        self._began: dict[str, float] = {}
        self._ended: dict[str, Record] = {}
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Watch:
        if self._draws:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, highlight=False)
            self._live = Live(
                console=console,
                refresh_per_second=_REFRESH_PER_S,
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=self._stream is sys.stderr,
                get_renderable=lambda: self.render(console.width),
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def began(self, place: str) -> None:
        """A step was started."""
        with self._lock:
            self._began[place] = time.monotonic()

    def ended(self, record: Record) -> None:
        """A step is done, was known, failed, or was left out."""
        with self._lock:
            self._began.pop(record.place, None)
            self._ended[record.place] = record
            if not record.cached:
                self._times.add(record)
        count = f"{len(self._ended)}/{len(self._steps)}"
        self._say(f"{count:>7}  {record.place:<40} {state(record)}".rstrip())

    def left(self) -> float | None:
        """Seconds to go, by the mean times of steps that were run; None if nothing is known."""
        now = time.monotonic()
        total, known = 0.0, False
        means = [t for s in set(self._steps.values()) if (t := self._times.seconds(*s))]
        fallback = sum(means) / len(means) if means else None
        for place, named in self._steps.items():
            if place in self._ended:
                continue
            mean = self._times.seconds(*named) or fallback
            if mean is None:
                continue
            known = True
            total += max(mean - (now - self._began[place]), 0.0) if place in self._began else mean
        return total / max(self._jobs, 1) if known else None

    def render(self, width: int) -> RenderableType:
        """The overview: a bar for all, then what runs and what ended last."""
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        with self._lock:
            ended, began = dict(self._ended), dict(self._began)
        bar = Bar("run", len(self._steps), self._start, done=len(ended), updated=now)
        left = self.left()
        lines: list[Any] = [draw([bar], max(now, self._start + 1), width)]
        if left is not None and len(ended) < len(self._steps):
            told = _counts(ended, began, self._steps)
            lines.append(Text(f"          ETA {clock(left)} · {told}"))
        rows = [(place, f"{clock(now - at)}  {self._told(place)}") for place, at in began.items()]
        room = max(_MOST_LINES - len(rows), 3)
        last = [(place, state(record)) for place, record in list(ended.items())[-room:]]
        for place, text in [*last, *rows]:
            line = fmt.fit_encoding(f"  {place:<36} {text}", self._stream.encoding)
            lines.append(Text(line, no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _told(self, place: str) -> str:
        """How far a running step says it is."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._progress(place).read_text(encoding="utf-8"))
            return f"{found['task']} {found['done']}/{found['total']}"
        return "running"


def state(record: Record) -> str:
    """How a step went, in a few words."""
    if record.status == FAILED:
        return f"failed: {record.error}"
    if record.status == SKIPPED:
        return "left out: a step that it needs failed"
    return "known" if record.cached else fmt.duration(record.seconds)


def _counts(
    ended: Mapping[str, Record], began: Mapping[str, float], steps: Mapping[str, Any]
) -> str:
    told = Counter("known" if r.cached else r.status for r in ended.values())
    told["running"] = len(began)
    told["waiting"] = len(steps) - len(ended) - len(began)
    return ", ".join(f"{count} {name}" for name, count in told.items() if count)


def plan_table(plan: Mapping[str, Any]) -> str:
    """The graph of a dry run as a table for people."""
    rows = []
    for step in plan["graph"]:
        seconds, size = step.get("seconds"), step.get("bytes")
        rows.append([
            step["step"],
            step["command"],
            str(step["runs"]),
            str(step["known"]),
            ", ".join(step["needs"]),
            "?" if seconds is None else fmt.duration(seconds),
            "" if size is None else fmt.bytes_text(size),
        ])  # fmt: skip
    table = fmt.table(
        ["step", "command", "runs", "known", "after", "time each", "bytes each"], rows, "llrrlrr"
    )
    left = sum(s["runs"] - s["known"] for s in plan["graph"])
    unknown = sum(s["runs"] - s["known"] for s in plan["graph"] if "seconds" not in s)
    told = f"{plan['cells']} cells, {left} of {sum(s['runs'] for s in plan['graph'])} steps to run"
    if plan.get("seconds") is not None:
        told += f", about {fmt.duration(plan['seconds'])}"
    if unknown:
        told += f" and {unknown} steps that were never timed"
    if plan.get("bytes"):
        told += f", {fmt.bytes_text(plan['bytes'])} on disk"
    return f"{table}\n\n{fmt.wrap(told, fmt.screen_width())}\nnothing was run"
