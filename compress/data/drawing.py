"""Windows drawn from the parts of a mix until there are enough, without those evaluated on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from compress.data.batching import CalibrationReport, first_tokens, make_batches, window_digest
from compress.data.leakage import HeldOut
from compress.data.overlap import Items
from compress.data.selection import diverse
from compress.data.specs import DataSpec
from compress.data.windows import LongStream, Stream, Window, refuse_sampling
from compress.errors import RequestError, near_names

SELECTIONS = ("random", "diverse", "cola")
Select = Callable[[Sequence[Window], int], Sequence[int]]
"""Given candidates and a number, the candidates to take, best first."""
_LEAKS = (
    10_000  # windows in a row that are in an evaluation text, after which no other is hoped for
)


@dataclass
class Wanted:
    """What is asked of a calibration set; see prepare_calibration."""

    tokenizer: Any
    samples: int
    seqlen: int
    seed: int
    tokens: int | None = None
    doc_sampling: str = "packed"
    chat_template: bool = True
    select: str | Select = "random"
    pool: int = 4
    disjoint: tuple[int, int] | None = None

    def check(self) -> None:
        """Refuse sizes and names that can't be meant."""
        for name, value, least in (
            ("samples", self.samples, 1),
            ("seqlen", self.seqlen, 2),
            ("tokens", 1 if self.tokens is None else self.tokens, 1),
            ("pool", self.pool, 1),
        ):
            if value < least:
                raise RequestError(f"calibration needs {name} >= {least}, is {value}")
        refuse_sampling(self.doc_sampling)
        if isinstance(self.select, str) and self.select not in SELECTIONS:
            raise RequestError(
                f"`--select {self.select}` isn't a selection", near_names(self.select, SELECTIONS)
            )
        if self.select == "cola":
            raise RequestError("selection by cola needs a model", "use `calibration_set`")

    @property
    def budget(self) -> int:
        """Tokens that full windows would hold."""
        return self.samples * self.seqlen if self.tokens is None else self.tokens


@dataclass
class Part:
    """One data spec of a mix, while windows are drawn from it."""

    spec: DataSpec
    stream: Stream
    leaks: Leaks
    windows: Iterator[Window]
    taken: int = 0
    tokens: int = 0

    @property
    def share(self) -> float:
        """The part's share of the tokens."""
        return 1.0 if self.spec.share is None else self.spec.share

    def as_dict(self) -> dict[str, Any]:
        """The part's entry in a report."""
        entry = {"spec": self.spec.text, "windows": self.taken, "tokens": self.tokens}
        return {**entry, "share": self.share, "examples": self.stream.documents}


class Leaks:
    """Keeps windows out that are also in an evaluation text, and counts them."""

    def __init__(self, held: HeldOut, items: Items, tokenizer: Any) -> None:
        self._held, self._items, self._tokenizer = held, items, tokenizer
        self.windows = 0
        self.tasks: dict[str, int] = {}

    def filtered(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Yield the windows that are in no evaluation text."""
        in_a_row = 0
        for window in windows:
            found = self._items.tasks_in(window.ids, self._tokenizer)
            shares = self._held.shares_a_run(window.ids)
            if not found and not shares:
                in_a_row = 0
                yield window
                continue
            self.windows += shares
            for task in found:
                self.tasks[task] = self.tasks.get(task, 0) + 1
            in_a_row += 1
            if in_a_row == _LEAKS:
                return


def windows_of(stream: Stream, leaks: Leaks, wanted: Wanted, spec: DataSpec) -> Iterator[Window]:
    """The windows of one spec, without leaks, chosen and dealt as is asked."""
    windows: Iterator[Window] = leaks.filtered(stream.windows())
    if wanted.disjoint is not None:
        first, step = wanted.disjoint
        windows = itertools.islice(windows, first, None, step)
    if wanted.select == "random":
        return windows
    select = wanted.select if callable(wanted.select) else diverse(wanted.tokenizer)
    share = 1.0 if spec.share is None else spec.share
    return _selected(windows, select, int(np.ceil(share * wanted.budget / wanted.seqlen)), wanted)


def _selected(
    windows: Iterator[Window], select: Select, count: int, wanted: Wanted
) -> Iterator[Window]:
    """Yield the chosen of a pool of candidates, then, where more are asked for, the next pool's."""
    while True:
        pool = list(itertools.islice(windows, count * wanted.pool))
        if not pool:
            return
        chosen = select(pool, min(count, len(pool)))
        yield from (pool[i] for i in chosen)


def draw(
    parts: Sequence[Part], wanted: Wanted, dropped: int, batch_size: int
) -> tuple[list[dict[str, torch.Tensor]], CalibrationReport]:
    """Draw windows from the parts until there are as many, or as many tokens, as asked for."""
    if batch_size < 1:
        raise RequestError(f"calibration needs batch size >= 1, is {batch_size}")
    windows: list[Window] = []
    total = 0
    while len(windows) < wanted.samples if wanted.tokens is None else total < wanted.tokens:
        part = _next_part(parts)
        window = next(part.windows, None)
        if window is None:
            raise _too_short(part, len(windows), wanted, dropped)
        if wanted.tokens is not None:
            window = first_tokens(window, wanted.tokens - total)
        windows.append(window)
        part.taken += 1
        part.tokens += len(window.ids)
        total += len(window.ids)
    plain = len(parts) == 1 and parts[0].spec.format == "raw"
    tasks: dict[str, int] = {}
    for part in parts:
        for task, count in part.leaks.tasks.items():
            tasks[task] = tasks.get(task, 0) + count
    report = CalibrationReport(
        windows=len(windows),
        seqlen=wanted.seqlen,
        tokens=total,
        documents=sum(part.stream.size for part in parts),
        digest=window_digest(windows, wanted.doc_sampling == "isolated"),
        dropped_documents=dropped,
        dropped_windows=sum(part.leaks.windows for part in parts),
        leaked=tasks,
        cut=sum(part.stream.cut for part in parts),
        parts=() if plain else tuple(part.as_dict() for part in parts),
        rows=tuple(window.rows for window in windows),
    )
    return make_batches(windows, batch_size, wanted.doc_sampling == "isolated"), report


def _next_part(parts: Sequence[Part]) -> Part:
    """Return the part that lacks most of its share of the tokens.

    So each is within a window of its share at any time, and the first windows of many are those of
    few.
    """
    total = sum(part.tokens for part in parts)
    return max(parts, key=lambda part: (part.share * total - part.tokens, part.share))


def _too_short(part: Part, made: int, wanted: Wanted, dropped: int) -> RequestError:
    """Say what there was of the part whose windows have run out, and what was needed."""
    stream, leaked = part.stream, part.leaks.windows + sum(part.leaks.tasks.values())
    without = ""
    if dropped or leaked:
        without = f", without {dropped} {stream.noun} and {leaked} windows that are in the "
        without += "evaluation text"
    if wanted.disjoint is not None:
        without += f", of which one window in {wanted.disjoint[1]} is taken"
    name = f"`{part.spec.text}`" if part.spec.name else part.spec.text
    asked = f"{wanted.samples} windows of {wanted.seqlen}"
    if wanted.tokens is not None:
        asked = f"{wanted.tokens} tokens in windows of {wanted.seqlen}"
    if isinstance(stream, LongStream):
        found, text = f"{name}: {stream.short()}{without}", ""
    else:
        count = f"{part.taken}" if part.share == 1 else f"{part.taken} ({made} with the others)"
        text = f" ({wanted.budget} tokens needed)" if wanted.tokens is None else ""
        found = f"{name} is too short: {stream.short()}{without}, enough for {count} of {asked}"
    long = isinstance(stream, LongStream)
    hint = "`--doc-sampling packed`" if long else "more text in `--calib`"
    fewer = f"`--samples {made}`, or " if made and wanted.tokens is None else ""
    return RequestError(found + text, f"{fewer}a shorter `--seqlen`, or {hint}")
