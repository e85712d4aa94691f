"""What the claims page rests on: reading figures, comparing arms, and the rule of verdicts.

A claim is split into parts, each a comparison or a bound. A part holds, doesn't hold, or isn't
measured; the verdict follows from the parts alone, so it changes when the figures do.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.numerics.trials import paired_interval

SEEN, NOT_SEEN, PENDING = "seen", "not seen", "not measured yet"
UNTESTABLE = "can't be tested at this size"
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Part:
    """One comparison that a verdict rests on.

    Attributes:
        text: the figure, as the page shows it.
        holds: whether it is as claimed; None where it isn't measured.
    """

    text: str
    holds: bool | None


@dataclass(frozen=True)
class Claim:
    """A row of the page.

    Attributes:
        name: id in the list of claims.
        says: the claim in short.
        how: command that tests it.
        scale: of our runs.
        parts: what the verdict rests on.
        beside: plain baselines, as text.
        needs: what a test would take, where it can't be done at this size; wins over the parts.
        remark: shown below the table.
    """

    name: str
    says: str
    how: str
    scale: str
    parts: Sequence[Part] = ()
    beside: str = ""
    needs: str = ""
    remark: str = ""

    @property
    def verdict(self) -> str:
        """By the rule: all parts hold, one fails, or one is missing."""
        if self.needs:
            return UNTESTABLE
        if any(part.holds is False for part in self.parts):
            return NOT_SEEN
        if not self.parts or any(part.holds is None for part in self.parts):
            return PENDING
        return SEEN


@dataclass(frozen=True)
class Section:
    """One method.

    Attributes:
        title: its name and source.
        intro: a line or two.
        claims: its rows.
    """

    title: str
    intro: str
    claims: Sequence[Claim]


class Files:
    """The committed figures below a root; a file that isn't there is empty."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a file of JSON lines."""
        path = self.root / name
        if not path.is_file():
            return []
        return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text]

    def content(self, name: str) -> Any:
        """The content of a JSON file, or {}."""
        path = self.root / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file."""
        path = self.root / name
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @cached_property
    def grid(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Arm -> seed -> line of the training grid."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for line in self.lines("benchmarks/training/grid.jsonl"):
            found.setdefault(line["arm"], {})[line["seed"]] = line
        return found

    def loss(self, arm: str, name: str = "held_out") -> dict[int, float]:
        """Seed -> a figure of an arm of the grid; runs that broke off have none."""
        lines = self.grid.get(arm, {})
        return {seed: line[name] for seed, line in sorted(lines.items()) if name in line}

    def layers(self, arm: str, name: str) -> dict[int, list[float]]:
        """Seed -> a figure of every layer."""
        lines = self.grid.get(arm, {})
        return {s: line["layers"][name] for s, line in sorted(lines.items()) if "layers" in line}


# Numbers


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """A number with a true minus sign."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def mean(values: BySeed, digits: int = 3, unit: str = "") -> str:
    """Mean ± standard error over seeds, or that there is none yet."""
    some = list(values.values())
    if not some:
        return PENDING
    if unit:
        return f"{mean(values, digits)} {unit}"
    shown = number(statistics.fmean(some), digits)
    if len(some) < 2:
        return shown
    return f"{shown} ± {number(statistics.stdev(some) / math.sqrt(len(some)), digits)}"


def times(count: int) -> str:
    """How many seeds."""
    return f"{count} seed{'s' * (count != 1)}"


# Parts


def _interval(
    label: str, first: BySeed, second: BySeed, digits: int, sign: bool = True
) -> tuple[str, Any]:
    """The paired difference as text, and its interval (None where there is none)."""
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return f"{label.rstrip(':')}: not measured" if label else PENDING, None
    found = paired_interval([first[s] for s in seeds], [second[s] for s in seeds])
    shown = f"{label} {number(found.difference, digits, sign)}".strip()
    if found.low is None or found.high is None:
        why = "1 seed" if len(seeds) < 2 else f"{len(seeds)} seeds, the same in all"
        return f"{shown} ({why})", None
    ends = f"{number(found.low, digits, sign)} to {number(found.high, digits, sign)}"
    return f"{shown} ({ends}, {times(len(seeds))})", found


def less(label: str, first: BySeed, second: BySeed, digits: int = 3, margin: float = 0.0) -> Part:
    """Claimed: first is below second (or not above it by more than the margin)."""
    text, found = _interval(label, first, second, digits)
    return Part(text, None if found is None else bool(found.high < margin))


def more(label: str, first: BySeed, second: BySeed, digits: int = 3, margin: float = 0.0) -> Part:
    """Claimed: first is above second (or not below it by more than the margin)."""
    text, found = _interval(label, first, second, digits)
    return Part(text, None if found is None else bool(found.low > -margin))


def above(label: str, values: BySeed, bound: float = 0.0, digits: int = 3) -> Part:
    """Claimed: the mean over seeds is above a bound."""
    return _one(label, values, bound, digits, up=True)


def below(label: str, values: BySeed, bound: float = 0.0, digits: int = 3) -> Part:
    """Claimed: the mean over seeds is below a bound."""
    return _one(label, values, bound, digits, up=False)


def _one(label: str, values: BySeed, bound: float, digits: int, up: bool) -> Part:
    text, found = _interval(label, values, dict.fromkeys(values, 0.0), digits, bound == 0)
    if found is None:
        return Part(text, None)
    return Part(text, bool(found.low > bound if up else found.high < bound))


def given(label: str, estimate: float, ends: Sequence[float], up: bool, digits: int = 3) -> Part:
    """Claimed: an interval that was computed with its figure lies above 0, or below it."""
    low, high = ends
    said = f"{number(low, digits, True)} to {number(high, digits, True)}"
    text = f"{label} {number(estimate, digits, True)} ({said})"
    return Part(text, bool(low > 0 if up else high < 0))


def slope(values: Sequence[float]) -> float:
    """Least-squares slope of values against their index."""
    middle = (len(values) - 1) / 2
    average = statistics.fmean(values)
    top = math.fsum((i - middle) * (v - average) for i, v in enumerate(values))
    return top / math.fsum((i - middle) ** 2 for i in range(len(values)))


def each(values: Mapping[int, Sequence[float]], figure: Any) -> dict[int, float]:
    """A figure of every seed's list."""
    return {seed: figure(list(some)) for seed, some in values.items()}
