"""Plots as SVG inside a page: every mark says what it is, and the legend's names hide a series.

Widths are in units of a drawing that fills the page's width; page.css makes its text larger on a
phone, so margins leave room for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

# Lines keep apart in black and white: each has its dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#777777")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
FAR = 30  # values in such a ratio don't show on one linear axis
LEFT, TOP, WIDE, TALL, RIGHT, BOTTOM = 84, 16, 640, 260, 44, 60


class Dot(NamedTuple):
    """A place in a plane.

    Attributes:
        name: what it is, said by its mark.
        x, y: its values.
        low, high: ends of an interval of x; None for none.
    """

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Axis(NamedTuple):
    """Values along one side of a plot.

    Attributes:
        low, high: the ends of what is drawn.
        ticks: round values between them.
        show: a value as text.
        title: what is measured.
        log: whether equal ratios are equal lengths.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    show: Callable[[float], str]
    title: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """How far a value is along the axis, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis_of(
    values: Sequence[float], show: Callable[[float], str], title: str = "", *, may_log: bool = False
) -> Axis:
    """An axis that holds the finite ones of these values, with round ticks.

    Args:
        values: what is drawn.
        show: a value as text.
        title: what is measured.
        may_log: whether values that are far apart get a logarithmic axis.
    """
    low, high = span(values)
    if may_log and low > 0 and high / low > FAR:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, round((last - first) / 5))
        last += -(last - first) % every
        ticks = tuple(10.0**power for power in range(first, last + 1, every))
        return Axis(ticks[0], ticks[-1], ticks, show, title, True)
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next((m for m in (1, 2, 5) if (high - low) / (step * m) <= 5), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * i for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, show, title)


def lines(
    blocks: Sequence[str],
    series: Mapping[str, Sequence[float]],
    show: Callable[[float], str],
    *,
    thick: str = "",
    label: str = "lines by block",
    x_label: str = "block",
) -> str:
    """A line for each series over the blocks, values that aren't finite left out.

    Args:
        blocks: short names, in order.
        series: name to a value for each block.
        show: a value as text.
        thick: the series that is drawn thick.
        label: what the picture is, for readers that can't see it.
        x_label: what the blocks are.
    """
    axis = axis_of([value for line in series.values() for value in line], show)
    step = WIDE / max(len(blocks) - 1, 1)
    marks = [_frame(axis)]
    for n, (name, line) in enumerate(series.items()):
        look = _look(n, series, thick)
        points = [
            (LEFT + i * step, _height(axis, value), f"{name}, {x_label} {blocks[i]}: {show(value)}")
            for i, value in enumerate(line)
            if math.isfinite(value)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        marks.append(
            f'<g class="series" data-s="{n}"><polyline points="{path}" fill="none" {look}/>'
        )
        size = 2.2 if len(blocks) <= 80 else 0.8
        colour = _colour(n, series, thick)
        marks += [circle(x, y, size if len(points) > 1 else 4, colour, t) for x, y, t in points]
        marks.append("</g>")
    marks += block_labels(blocks, lambda i: LEFT + i * step, TOP + TALL + 20)
    marks.append(text(LEFT + WIDE / 2, TOP + TALL + 48, x_label, "middle"))
    keys = [
        (name, f"<path d='M0,6h28' {_look(n, series, thick)}/>") for n, name in enumerate(series)
    ]
    return figure(marks, label, legend=keys)


def dots(
    groups: Mapping[str, Sequence[Dot]], x: Axis, y: Axis, *, label: str, steps: str = ""
) -> str:
    """Places in a plane, a series a group.

    Args:
        groups: name to its dots.
        x, y: the axes.
        label: what the picture is, for readers that can't see it.
        steps: the group whose dots are joined by steps, in their order.
    """
    marks = [_frame(y), *_ticks_below(x)]
    points = {
        group: [(LEFT + WIDE * x.share(dot.x), _height(y, dot.y), dot) for dot in places]
        for group, places in groups.items()
    }
    names = iter(_names([(d.name, px, py) for some in points.values() for px, py, d in some]))
    for n, (group, some) in enumerate(points.items()):
        colour = _colour(n, groups, "")
        marks.append(f'<g class="series" data-s="{n}">')
        if group == steps and some:
            path = f"M{some[0][0]:.1f},{some[0][1]:.1f}"
            path += "".join(f"H{px:.1f}V{py:.1f}" for px, py, _ in some[1:])
            marks.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-dasharray="4 3"/>')
        for px, py, dot in some:
            said = f"{dot.name}: {x.title} {x.show(dot.x)}, {y.title} {y.show(dot.y)}"
            marks += [circle(px, py, 6, colour, said), next(names)]
        marks.append("</g>")
    marks.append(text(LEFT + WIDE / 2, TOP + TALL + 48, x.title, "middle"))
    caption = f"{y.title}{' (logarithmic)' * y.log} by {x.title}"
    return figure(marks, label, caption=caption, legend=_signs(groups))


def forest(groups: Mapping[str, Sequence[Dot]], x: Axis, *, label: str) -> str:
    """Differences with their intervals, a line a dot; y counts lines from the top.

    Args:
        groups: name ("better", …) to its dots, whose y is the line that they stand on.
        x: the axis of differences; zero is ruled.
        label: what the picture is, for readers that can't see it.
    """
    row, left = 34, 190
    wide = LEFT + WIDE - left
    tall = row * (1 + max(int(dot.y) for places in groups.values() for dot in places))
    marks = [f'<path class="axis" d="M{left},{TOP + tall}h{wide}"/>']
    if x.low <= 0 <= x.high:
        marks.append(f'<path class="axis" d="M{left + wide * x.share(0):.1f},{TOP}v{tall}"/>')
    marks += _ticks_below(x, left, wide, TOP + tall)
    for n, (_, places) in enumerate(groups.items()):
        colour = _colour(n, groups, "")
        marks.append(f'<g class="series" data-s="{n}">')
        for dot in places:
            y = TOP + row * (dot.y + 0.5)
            said = f"{dot.name}: {x.show(dot.x)}"
            if dot.low is not None and dot.high is not None:
                said += f" (95 %: {x.show(dot.low)} … {x.show(dot.high)})"
                ends = [left + wide * x.share(end) for end in (dot.low, dot.high)]
                marks.append(
                    f'<path d="M{ends[0]:.1f},{y:.1f}H{ends[1]:.1f}" stroke="{colour}" '
                    'stroke-width="3"/>'
                )
            marks.append(circle(left + wide * x.share(dot.x), y, 6, colour, said))
            marks.append(text(left - 12, y + 5, _cut(dot.name, 22), "end"))
        marks.append("</g>")
    marks.append(text(left + wide / 2, TOP + tall + 48, x.title, "middle"))
    return figure(marks, label, kind="cells", tall=TOP + tall + BOTTOM, legend=_signs(groups))


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    show: Callable[[float], str],
    *,
    label: str,
    caption: str,
    column_kind: str = "",
) -> str:
    """Rows by columns, the darker the larger; every cell says its value.

    Args:
        rows, columns: names.
        values: a list for each row; what isn't finite stays empty.
        show: a value as text.
        label: what the picture is, for readers that can't see it.
        caption: a line below; the ends of the scale are added.
        column_kind: what a column is ("block"), said before its name.
    """
    low, high = span([value for line in values for value in line])
    left = 14 + 8 * max(map(len, rows), default=1)
    cell, tall = min(max(900 // max(len(columns), 1), 4), 64), 28
    marks = []
    for y, (name, line) in enumerate(zip(rows, values, strict=True)):
        marks.append(text(left - 6, y * tall + 19, name, "end") + '<g class="series">')
        for x, value in enumerate(line):
            if not math.isfinite(value):
                continue
            light = round(94 - 62 * (value - low) / (high - low))
            where = f'x="{left + x * cell}" y="{y * tall}" width="{cell}" height="{tall}"'
            said = escape(
                f"{name}, {column_kind}{' ' * bool(column_kind)}{columns[x]}: {show(value)}"
            )
            marks.append(
                f'<rect {where} fill="hsl(205 60% {light}%)" stroke="#fff">'
                f"<title>{said}</title></rect>"
            )
            if cell >= 40:
                ink = f' style="fill:{"#000" if light > 60 else "#fff"}" pointer-events="none"'
                at = left + x * cell + cell / 2
                marks.append(text(at, y * tall + 19, show(value), "middle", ink))
        marks.append("</g>")
    bottom = len(rows) * tall
    marks += block_labels(columns, lambda i: left + i * cell + cell / 2, bottom + 18, cell)
    ends = f"{caption}; light {show(low)}, dark {show(high)}"
    marks.append(text(left, bottom + 40, ends))
    wide = left + max(len(columns) * cell, 8 * len(ends)) + 10
    return figure(marks, label, kind="cells", wide=wide, tall=bottom + 50)


def figure(
    marks: Sequence[str],
    label: str,
    *,
    kind: str = "lines",
    wide: float = LEFT + WIDE + RIGHT,
    tall: float = TOP + TALL + BOTTOM,
    caption: str = "",
    legend: Sequence[tuple[str, str]] = (),
) -> str:
    """A picture of marks with its legend.

    Args:
        marks: SVG; what can be hidden is a `<g class="series" data-s="n">`.
        label: what the picture is, for readers that can't see it.
        kind: "lines" fits a phone, "cells" is scrolled there.
        wide, tall: of the drawing, in its units.
        caption: above it, in plain text.
        legend: the name and the sign (28 by 12, single quotes) of series 0, 1, …
    """
    keys = "".join(
        f'<button type="button" aria-pressed="true" data-s="{n}">'
        f'<svg viewBox="0 0 28 12" aria-hidden="true">{sign}</svg>{escape(name)}</button>'
        for n, (name, sign) in enumerate(legend)
    )
    keys = f'<div class="legend">{keys}</div>' if len(legend) > 1 else ""
    head = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    look = f'style="max-width:{wide:.0f}px;--least:{min(wide, 640):.0f}px"'
    return (
        f'<figure class="plot {kind}">{head}{keys}<svg viewBox="0 0 {wide:.0f} {tall:.0f}" {look} '
        f'role="img" aria-label="{escape(label)}">{"".join(marks)}</svg></figure>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    """Plain text at a place; `more` are further attributes."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def circle(x: float, y: float, radius: float, colour: str, said: str) -> str:
    """A dot that says what it is."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}">'
        f"<title>{escape(said)}</title></circle>"
    )


def block_labels(
    blocks: Sequence[str], x_of: Callable[[int], float], y: float, room: float = 0
) -> list[str]:
    """Names of blocks under a picture, so many as there is room for; a phone shows every second.

    Args:
        blocks: the names.
        x_of: the middle of a block by its number.
        y: where they stand.
        room: units between two blocks; 0 is what is left of a plot's width.
    """
    longest = max(map(len, blocks), default=1)
    step = room or WIDE / max(len(blocks) - 1, 1)
    every = max(1, math.ceil((7.5 * longest + 10) / step))
    places = range(0, len(blocks), every)
    more = ("", ' class="second"')
    return [text(x_of(i), y, blocks[i], "middle", more[n % 2]) for n, i in enumerate(places)]


def span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest finite value, apart by something; 0 and 1 where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    gap = max(abs(high), 1.0) * 1e-9
    return (low, high) if high - low > gap else (low - 0.5, high + 0.5)


def _names(places: Sequence[tuple[str, float, float]]) -> list[str]:
    """Names beside their places; empty for those that would cover another."""
    marks: list[str] = []
    taken: list[tuple[float, float, float, float]] = []
    for name, x, y in places:
        words = _cut(name, 24)
        long = 7.5 * len(words)
        for left, foot in ((x + 10, y + 5), (x - 10 - long, y + 5), (x - long / 2, y - 10)):
            box = (left, foot - 12, left + long, foot + 3)
            outside = box[0] < LEFT or box[2] > LEFT + WIDE + RIGHT
            if outside or any(_cross(box, other) for other in taken):
                continue
            taken.append(box)
            marks.append(text(left, foot, words, more=' class="name"'))
            break
        else:
            marks.append("")
    return marks


def _signs(groups: Mapping[str, object]) -> list[tuple[str, str]]:
    """The legend of groups of dots."""
    return [
        (name, f"<circle cx='14' cy='6' r='5' fill='{_colour(n, groups, '')}'/>")
        for n, name in enumerate(groups)
    ]


def _cross(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, top, right, bottom) share a place."""
    apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    return not apart


def _frame(y: Axis) -> str:
    """The axes of a plot, its rules and the values on its left."""
    marks = [f'<path class="axis" d="M{LEFT},{TOP}v{TALL}h{WIDE}"/>']
    for tick in y.ticks:
        at = _height(y, tick)
        marks.append(f'<path class="rule" d="M{LEFT},{at:.1f}h{WIDE}"/>')
        marks.append(text(LEFT - 6, at + 5, y.show(tick), "end"))
    return "".join(marks)


def _ticks_below(
    x: Axis, left: float = LEFT, wide: float = WIDE, bottom: float = TOP + TALL
) -> list[str]:
    more = ("", ' class="second"')
    return [
        text(left + wide * x.share(tick), bottom + 20, x.show(tick), "middle", more[n % 2])
        for n, tick in enumerate(x.ticks)
    ]


def _height(axis: Axis, value: float) -> float:
    return TOP + TALL * (1 - axis.share(value))


def _turn(n: int, series: Mapping[str, object], thick: str) -> int:
    """A series' place in the colours: the thick one takes none."""
    return n - (thick in list(series)[:n])


def _colour(n: int, series: Mapping[str, object], thick: str) -> str:
    if list(series)[n] == thick:
        return "currentColor"
    return COLOURS[_turn(n, series, thick) % len(COLOURS)]


def _look(n: int, series: Mapping[str, object], thick: str) -> str:
    """A line's attributes."""
    own = list(series)[n] == thick
    dash = "" if own else DASHES[_turn(n, series, thick) // len(COLOURS) % len(DASHES)]
    return (
        f"stroke='{_colour(n, series, thick)}' stroke-width='{3 if own else 1.8}' "
        f"stroke-dasharray='{dash}'"
    )


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"…{name[-(most - 1) :]}"
