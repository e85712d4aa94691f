"""Charts in plain text, at most 80 columns: histogram, spectrum with its tail, bars, lines.

Pure functions from numbers to a string. Where the output's encoding lacks block characters, ASCII
stands in. Values that aren't finite are left out and counted in a line below.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

WIDTH = 80
HEIGHT = 6
NOTHING = "no values to draw"
_MARGIN = 8  # columns of the y axis with its numbers


class Glyphs(NamedTuple):
    """The characters that charts are made of.

    Attributes:
        up: a column filled by 0/8 to 8/8 from below.
        right: a row filled by 0/8 to 8/8 from the left.
    """

    up: str
    right: str
    tick: str
    corner: str
    axis: str
    fit: str
    mark: str
    point: str
    minus: str


BLOCKS = Glyphs(" ▁▂▃▄▅▆▇█", " ▏▎▍▌▋▊▉█", "┤", "┼", "─", "╌", "▲", "•", "−")
ASCII = Glyphs(" ....:::#", "     ####", "|", "+", "-", "~", "^", "o", "-")


def glyphs(ascii_only: bool | None = None) -> Glyphs:
    """Block characters where stdout's encoding has them (or as told), else ASCII."""
    if ascii_only is None:
        try:
            "".join(BLOCKS).encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return ASCII
        return BLOCKS
    return ASCII if ascii_only else BLOCKS


def number(value: float, minus: str = "−") -> str:
    """A number in a few characters: 210, 0.84, 1e-3, 1.2e+6."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= size < 9999.5:
        text = f"{value:.3g}" if size < 1000 else f"{value:.0f}"
        if len(text) > 5:
            text = f"{value:.2g}"
    else:
        mantissa, _, power = f"{value:.1e}".partition("e")
        text = f"{mantissa.removesuffix('.0')}e{int(power)}"
    sign = minus if text.startswith("-") else ""
    return sign + text.lstrip("-")


def alike(values: Sequence[float], minus: str) -> Callable[[float], str]:
    """How to write the values of one chart: equal decimals for all, five characters if possible."""
    finite = [value for value in values if math.isfinite(value)]
    size = max(map(abs, finite), default=0.0)
    span = max(finite) - min(finite) if finite else 0.0
    if not 0.01 <= size < 9999.5:
        return lambda value: number(value, minus)
    wanted = 2 - math.floor(math.log10(span)) if span > 0 else 2
    decimals = min(max(wanted, 0), max(4 - len(str(int(size))), 0))
    return lambda value: f"{value:.{decimals}f}".replace("-", minus)


def histogram(
    counts: Sequence[float],
    edges: Sequence[float],
    *,
    log_x: bool = False,
    fit: Sequence[float] | None = None,
    mark: float | None = None,
    mark_label: str = "",
    x_label: str = "",
    width: int = WIDTH,
    height: int = HEIGHT,
    ascii_only: bool | None = None,
) -> str:
    """Counts per bin as columns of eighth blocks, with axes.

    Args:
        counts: per bin, not negative.
        edges: ascending, one more than counts, evenly spaced (in log10 with log_x).
        fit: expected count per bin, drawn as dashes where above 0.
        mark: an x that is marked on the axis, such as where a fitted tail begins.
        mark_label: what stands at the mark.
        width, height: characters.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}")
    if not counts:
        return NOTHING
    marks = glyphs(ascii_only)
    each, merged = _spread(len(counts), width - _MARGIN)
    columns = [c for c in _merge(counts, merged) for _ in range(each)]
    expected = [c for c in _merge(fit or [0.0] * len(counts), merged) for _ in range(each)]
    top = max(max(columns), max(expected)) or 1.0
    lines = []
    for row in range(height - 1, -1, -1):
        cells = [
            _column_cell(value, guess, top, row, height, marks)
            for value, guess in zip(columns, expected)
        ]
        level = top * (row + 1) / height
        label = number(level, marks.minus) if row == height - 1 or row == height // 2 - 1 else ""
        lines.append(f"{label:>{_MARGIN - 2}} {marks.tick}{''.join(cells)}".rstrip())
    position = _Axis(edges[0], edges[-1], len(columns), log_x)
    axis = [marks.axis] * len(columns)
    legend = [x_label] if x_label else []
    if mark is not None and edges[0] <= mark <= edges[-1]:
        axis[position.column(mark)] = marks.mark
        legend.append(f"{marks.mark} {mark_label}".rstrip())
    if fit and any(fit):
        legend.append(f"{marks.fit} fitted")
    lines.append(f"{'0':>{_MARGIN - 2}} {marks.corner}{''.join(axis)}")
    lines.append(" " * _MARGIN + position.labels(width - _MARGIN, marks.minus))
    if legend:
        lines.append(" " * _MARGIN + "   ".join(legend))
    return "\n".join(line.rstrip() for line in lines)


def _column_cell(
    value: float, guess: float, top: float, row: int, height: int, marks: Glyphs
) -> str:
    """One character of a histogram; anything above zero shows at least an eighth."""
    eighths = max(round(8 * height * value / top), 1 if value > 0 else 0)
    filled = min(max(eighths - 8 * row, 0), 8)
    line = min(int(height * guess / top), height - 1) if guess > 0 else -1
    return marks.fit if line == row and filled == 0 else marks.up[filled]


def _spread(bins: int, columns: int) -> tuple[int, int]:
    """Columns per bin where there is room, or bins per column where there isn't."""
    if bins <= columns:
        return columns // bins, 1
    return 1, math.ceil(bins / columns)


def _merge(values: Sequence[float], many: int) -> list[float]:
    return [sum(values[i : i + many]) for i in range(0, len(values), many)]


class _Axis:
    """The x axis: from a value to its column, and the line of numbers below it."""

    def __init__(self, low: float, high: float, columns: int, log: bool) -> None:
        self.log = log
        self.low = math.log10(low) if log else float(low)
        self.high = math.log10(high) if log else float(high)
        self.columns = columns

    def column(self, value: float) -> int:
        """The column of a value, the nearest end for one outside."""
        at = math.log10(value) if self.log else value
        share = (at - self.low) / ((self.high - self.low) or 1.0)
        return min(max(int(share * self.columns), 0), self.columns - 1)

    def labels(self, room: int, minus: str) -> str:
        """Numbers below their columns, in `room` characters."""
        line = [" "] * room
        last = -1
        for value in self._ticks():
            text = number(value, minus)
            start = min(self.column(value), room - len(text))
            if start > last:
                line[start : start + len(text)] = text
                last = start + len(text) + 1
        return "".join(line).rstrip()

    def _ticks(self) -> list[float]:
        if self.log:
            decades = [10.0**p for p in range(math.ceil(self.low), math.floor(self.high) + 1)]
            if len(decades) >= 2:
                return decades
            return [10**self.low, 10 ** ((self.low + self.high) / 2), 10**self.high]
        if self.low.is_integer() and self.high.is_integer() and self.high > self.low:
            return [float(v) for v in range(int(self.low), int(self.high) + 1, self._step())]
        return [self.low + (self.high - self.low) * part / 4 for part in range(5)]

    def _step(self) -> int:
        """Between whole numbers: 1, 2 or 5 times a power of ten, for at most eight of them."""
        least = (self.high - self.low) / 7
        power = 10 ** max(math.floor(math.log10(least)), 0)
        return next((m * power for m in (1, 2, 5) if m * power >= least), 10 * power)


def spectrum(
    eigenvalues: Sequence[float],
    *,
    tail_from: float | None = None,
    exponent: float | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
    ascii_only: bool | None = None,
) -> str:
    """The spectral density of one matrix over a log axis, with its fitted power-law tail.

    Args:
        eigenvalues: any order; zeros aren't drawn, and their number is said.
        tail_from: smallest eigenvalue of the tail.
        exponent: alpha of the density x**-alpha fitted from tail_from on; a dashed line shows the
            counts that it expects.
    """
    finite = [float(v) for v in eigenvalues if math.isfinite(v)]
    drawn = [v for v in finite if v > 0]
    remarks = _left_out(len(eigenvalues) - len(finite), len(finite) - len(drawn))
    if not drawn:
        return "\n".join([NOTHING, *remarks])
    low, high = math.log10(min(drawn)), math.log10(max(drawn))
    if high - low < 1e-9:  # one value: a bin needs some width
        low, high = low - 0.5, high + 0.5
    bins = max(width - _MARGIN, 1)
    while bins > 8 and len(drawn) < 3 * bins:  # few values: wider bars
        bins //= 2
    edges = [10 ** (low + (high - low) * i / bins) for i in range(bins + 1)]
    counts = [0] * bins
    for value in drawn:
        counts[min(max(int((math.log10(value) - low) / (high - low) * bins), 0), bins - 1)] += 1
    fit = None
    if tail_from is not None and tail_from > 0 and exponent is not None and exponent > 1:
        fit = _expected(edges, sum(v >= tail_from for v in drawn), tail_from, exponent)
    chart = histogram(
        counts, edges, log_x=True, fit=fit, mark=tail_from, x_label="eigenvalue", width=width,
        mark_label="" if tail_from is None else f"tail from {number(tail_from)}",
        height=height, ascii_only=ascii_only,
    )  # fmt: skip
    return "\n".join([chart, *remarks])


def _expected(edges: Sequence[float], tail: int, start: float, exponent: float) -> list[float]:
    """Counts per bin of a Pareto tail of `tail` values with density x**-exponent from `start`."""
    above = [tail * max(edge / start, 1.0) ** (1 - exponent) for edge in edges]
    return [upper - lower for upper, lower in itertools.pairwise(above)]


def _left_out(not_finite: int, zeros: int) -> list[str]:
    words = []
    if zeros:
        words.append(f"{zeros} at or below zero")
    if not_finite:
        words.append(f"{not_finite} not finite")
    return [" " * _MARGIN + f"left out: {', '.join(words)}"] if words else []


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    origin: float = 0.0,
    decimals: int = 3,
    width: int = WIDTH,
    ascii_only: bool | None = None,
) -> str:
    """Horizontal bars, a line per value, such as a metric by block.

    Args:
        origin: the value of an empty bar; smaller values have no bar. Set it below the smallest
            value where differences count more than sizes.
    """
    if len(labels) != len(values):
        raise ValueError(f"{len(labels)} labels for {len(values)} values")
    if not values:
        return NOTHING
    marks = glyphs(ascii_only)
    texts = [
        f"{v:.{decimals}f}".replace("-", marks.minus) if abs(v) < 1e6 else number(v, marks.minus)
        for v in values
    ]
    figures = max(map(len, texts))
    names = min(max(map(len, labels)), width - figures - 14)
    room = width - names - figures - 6
    top = max((v for v in values if math.isfinite(v)), default=origin)
    lines = []
    for label, value, text in zip(labels, values, texts):
        share = (value - origin) / (top - origin) if top > origin and math.isfinite(value) else 0.0
        eighths = round(8 * room * max(share, 0.0))
        full, part = divmod(eighths, 8)
        bar = marks.right[8] * full + (marks.right[part] if part else "")
        shown = label if len(label) <= names else "…" + label[1 - names :]
        if marks is ASCII:
            shown = shown.replace("…", "~")
        lines.append(f"{shown:<{names}}   {text:>{figures}}   {bar}".rstrip())
    return "\n".join(lines)


def line(
    y: Sequence[float],
    x: Sequence[float] | None = None,
    *,
    x_label: str = "",
    width: int = WIDTH,
    height: int = 10,
    ascii_only: bool | None = None,
) -> str:
    """A curve, such as a loss by step: in each column the mean of the points that fall there."""
    places = list(range(len(y))) if x is None else list(x)
    pairs = [(a, b) for a, b in zip(places, y) if math.isfinite(a) and math.isfinite(b)]
    if not pairs:
        return NOTHING
    marks = glyphs(ascii_only)
    columns = width - _MARGIN
    axis = _Axis(min(a for a, _ in pairs), max(a for a, _ in pairs), columns, False)
    found: dict[int, list[float]] = {}
    for a, b in pairs:
        found.setdefault(axis.column(a), []).append(b)
    points = [(column, sum(v) / len(v), marks.point) for column, v in found.items()]
    plot = _plane(points, columns, height, marks)
    plot.append(" " * _MARGIN + axis.labels(columns, marks.minus))
    if x_label:
        plot.append(" " * _MARGIN + x_label)
    return "\n".join(row.rstrip() for row in plot)


def scatter(
    x: Sequence[float],
    y: Sequence[float],
    letters: Sequence[str],
    *,
    x_label: str = "",
    width: int = WIDTH,
    height: int = 12,
    ascii_only: bool | None = None,
) -> str:
    """Points by their letters; where several fall on one place it shows `+`."""
    marks = glyphs(ascii_only)
    columns = width - _MARGIN
    axis = _Axis(min(x), max(x), columns, False)
    points = [(axis.column(a), b, letter) for a, b, letter in zip(x, y, letters)]
    plot = _plane(points, columns, height, marks)
    plot.append(" " * _MARGIN + axis.labels(columns, marks.minus))
    if x_label:
        plot.append(" " * _MARGIN + x_label)
    return "\n".join(row.rstrip() for row in plot)


def _plane(
    points: Sequence[tuple[int, float, str]], columns: int, height: int, marks: Glyphs
) -> list[str]:
    """Characters at (column, y), with a y axis from the least to the greatest y."""
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    span = (high - low) or 1.0
    write = alike([low, high], marks.minus)
    cells = [[" "] * columns for _ in range(height)]
    for column, y, mark in points:
        row = height - 1 - round((y - low) / span * (height - 1))
        cells[row][column] = mark if cells[row][column] in (" ", mark) else "+"
    lines = []
    for row, content in enumerate(cells):
        at = high - span * row / max(height - 1, 1)
        label = write(at) if row in (0, height // 2, height - 1) else ""
        if low == high:
            label = write(low) if row == height - 1 else ""
        lines.append(f"{label:>{_MARGIN - 2}} {marks.tick}{''.join(content)}")
    lines.append(" " * (_MARGIN - 1) + marks.corner + marks.axis * columns)
    return lines


def spaced(starts: Mapping[int, str], room: int) -> str:
    """Each text at its place, as far as it doesn't touch the one before or the edge."""
    line = " " * room
    end = 0
    for start, text in starts.items():
        if start >= end and start + len(text) <= room:
            line = line[:start] + text + line[start + len(text) :]
            end = start + len(text) + 1
    return line
