"""A table of numbers between two ends as shades: in the terminal, and as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.reports.charts import glyphs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHADES = " ░▒▓█"
_ASCII = " .:*#"
Cells = Sequence[Sequence[float | None]]


def heatmap(
    cells: Cells,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    ends: tuple[float, float] = (0.0, 1.0),
    width: int = 80,
    ascii_only: bool | None = None,
) -> str:
    """Draw a heat map of at most `width` columns of text, darker for more.

    Every cell has its number beside its shade where there is room, else the shade alone; where even
    that has none, neighbouring columns are drawn as their mean, under the first one's name.

    Args:
        cells: a list for each row; None and NaN stay empty.
        rows, columns: their names.
        ends: values of the lightest and the darkest shade.
        width: characters.
        ascii_only: draw with ASCII; by default where stdout's encoding needs it.
    """
    shades = _ASCII if glyphs(ascii_only).axis == "-" else _SHADES
    margin = max((len(name) for name in rows), default=0) + 1
    each = max((width - margin) // max(len(columns), 1), 1)
    merged = math.ceil(len(columns) / max(width - margin, 1))
    if merged > 1:
        columns = list(columns)[::merged]
        cells = [[_mean(row[i : i + merged]) for i in range(0, len(row), merged)] for row in cells]
    each = min(each, 8)
    lines = [" " * margin + _heads(columns, each)]
    for name, values in zip(rows, cells):
        drawn = "".join(_cell(value, each, ends, shades) for value in values)
        lines.append(f"{name:>{margin - 1}} {drawn}")
    low, high = (f"{end:.2g}" for end in ends)
    lines.append(" " * margin + f"{low} {shades[1:]} {high}")
    return "\n".join(line.rstrip() for line in lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _heads(columns: Sequence[str], each: int) -> str:
    """Names of the columns; where they are too long, only every so many."""
    longest = max((len(name) for name in columns), default=0) + 1
    every = max(math.ceil(longest / each), 1)
    return "".join(f"{name:<{each * every}}" for name in columns[::every])


def _cell(value: float | None, each: int, ends: tuple[float, float], shades: str) -> str:
    if value is None or math.isnan(value):
        return " " * each
    share = (value - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    shade = shades[1 + min(max(int(share * (len(shades) - 1)), 0), len(shades) - 2)]
    if each < 6:
        return shade * max(each - (each > 2), 1) + " " * (each > 2)
    return f"{shade * 2}{value:4.2f}".ljust(each)


def draw_heatmap(
    axes: Axes, figure: Figure, cells: Cells, ends: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Draw cells into a matplotlib axes, with a colour bar."""
    data = np.array([[math.nan if v is None else v for v in row] for row in cells], dtype=float)
    image = axes.imshow(data, vmin=ends[0], vmax=ends[1], cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=axes)
