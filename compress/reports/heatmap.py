"""A table of numbers between two ends as shades: in the terminal, and as PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.reports.charts import alike, glyphs, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHADES = " ░▒▓█"
_ASCII = " .:*#"
# Characters of a cell with its number, of one without at most, and of the column of means.
_NUMBERED, _PLAIN, _MEAN = 8, 4, 7
_WRITTEN = 0.4  # inches that a number needs
Cells = Sequence[Sequence[float | None]]


def heatmap(
    cells: Cells,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    ends: tuple[float, float] | None = (0.0, 1.0),
    means: bool = False,
    width: int = 80,
    ascii_only: bool | None = None,
) -> str:
    """Draw a heat map of at most `width` columns of text, darker for more.

    Every cell has its number beside its shade where there is room, else the shade alone; where even
    that has none, neighbouring columns are drawn as their mean, under the first one's name. The
    last line says what a shade stands for.

    Args:
        cells: a list for each row; None and NaN stay empty.
        rows, columns: their names.
        ends: values of the lightest and the darkest shade; None is the least and the greatest.
        means: whether each row ends with its mean.
        width: characters.
        ascii_only: draw with ASCII; by default where stdout's encoding needs it.
    """
    marks = glyphs(ascii_only)
    shades = _ASCII if marks.axis == "-" else _SHADES
    table = [[math.nan if value is None else value for value in row] for row in cells]
    known = [value for row in table for value in row if math.isfinite(value)]
    if ends is None:
        ends = (min(known), max(known)) if known else (0.0, 1.0)
    write = alike([*known, *ends], marks.minus)
    margin = min(max((len(name) for name in rows), default=0), width // 3) + 1
    room = max(width - margin - (_MEAN if means else 0), 1)
    merged = math.ceil(len(columns) / room)
    drawn = [[_mean(row[i : i + merged]) for i in range(0, len(row), merged)] for row in table]
    count = math.ceil(len(columns) / merged) if columns else 0
    each = max(room // max(count, 1), 1)
    each = _NUMBERED if each >= _NUMBERED else min(each, _PLAIN)
    heads = {i * each: columns[i * merged] for i in range(count)}
    top = spaced(heads, each * count)
    lines = [" " * margin + top + (f"{'mean':>{_MEAN}}" if means else "")]
    for name, row, whole in zip(rows, drawn, table):
        line = "".join(_cell(value, each, ends, shades, write) for value in row)
        mean = _mean(whole)
        said = f"{write(mean) if math.isfinite(mean) else '':>{_MEAN}}" if means else ""
        lines.append(f"{name[: margin - 1]:>{margin - 1}} {line}{said}")
    if merged > 1:
        lines.append(f"{merged} columns to a character")
    lines.append(_legend(ends, shades, write, width))
    return "\n".join(line.rstrip() for line in lines)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _cell(
    value: float,
    each: int,
    ends: tuple[float, float],
    shades: str,
    write: Callable[[float], str],
) -> str:
    if not math.isfinite(value):
        return " " * each
    share = (value - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    shade = shades[1 + min(max(int(share * (len(shades) - 1)), 0), len(shades) - 2)]
    if each < _NUMBERED:
        return shade * max(each - (each > 2), 1) + " " * (each > 2)
    return f"{shade * 2}{write(value)}".ljust(each)


def _legend(
    ends: tuple[float, float], shades: str, write: Callable[[float], str], width: int
) -> str:
    """Which values each shade stands for."""
    low, high = ends
    if high <= low:
        return f"{shades[1] * 2} {write(low)}"
    step = (high - low) / (len(shades) - 1)
    bounds = [write(low + step * i) for i in range(len(shades))]
    words = [bounds[0], *(w for s, b in zip(shades[1:], bounds[1:]) for w in (s * 2, b))]
    whole = " ".join(words)
    return whole if len(whole) <= width else "".join(words)


def draw_heatmap(
    axes: Axes,
    figure: Figure,
    cells: Cells,
    ends: tuple[float, float] | None = (0.0, 1.0),
    label: str = "",
) -> None:
    """Draw cells into a matplotlib axes, its scale close beside it, numbers where they fit.

    Args:
        axes: where; its ticks and titles are the caller's.
        figure: that holds it.
        cells: [rows][columns]; None and NaN stay empty.
        ends: values of the ends of the scale; None is the least and the greatest.
        label: of the scale.
    """
    data = np.array([[math.nan if v is None else v for v in row] for row in cells], dtype=float)
    low, high = ends or (None, None)
    image = axes.imshow(data, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    # Inside the axes' own place: a legend elsewhere would push a scale of the figure's away.
    figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.025, 1.0)), label=label)
    place = axes.get_position()
    inches = figure.get_figwidth() * place.width / max(data.shape[1], 1)
    if inches < _WRITTEN:
        return
    shades = np.asarray(image.norm(data), dtype=float)
    write = alike(data.ravel().tolist(), "-")
    for (row, column), value in np.ndenumerate(data):
        if np.isfinite(value):
            ink = "black" if float(shades[row, column]) > 0.6 else "white"
            axes.text(column, row, write(value), ha="center", va="center", color=ink, size=8)
