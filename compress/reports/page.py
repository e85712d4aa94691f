"""Parts of reports as one HTML file: tables that sort, pictures as SVG, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

# Lines keep apart in black and white: each has its dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#555555")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem auto;max-width:68rem;padding:0 1rem;
color:#1a1a1a;background:#fff}
h1{font-size:1.35rem}h2{font-size:1.1rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .55rem;text-align:right;white-space:nowrap;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:currentColor}
@media (prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}th,td{border-color:#444}}
@media print{body{color:#000;background:#fff;max-width:none}th button::after{content:""!important}}
"""
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending", at = head.cellIndex;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[at].dataset.v ?? row.cells[at].textContent;
  const compare = (a, b) => {
    const x = key(a), y = key(b), number = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
    return (number ? x - y : x.localeCompare(y, undefined, {numeric: true})) * (up ? 1 : -1);
  };
  body.append(...[...body.rows].sort(compare));
};
"""


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts in HTML, under a title in plain text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + f"<script>{SCRIPT}</script></body></html>\n"
    )


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that sorts by the column whose title is clicked.

    Args:
        titles: of the columns, in plain text.
        rows: cells in HTML, each a whole `<td>`; see `cell`.
    """
    head = "".join(
        f'<th scope="col"><button type="button">{escape(title)}</button></th>' for title in titles
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def cell(text: str, value: float | None = None) -> str:
    """A cell in plain text, and the number that it sorts by."""
    key = "" if value is None else f' data-v="{value!r}"'
    return f"<td{key}>{escape(text)}</td>"


def lines_svg(
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
    low, high = span([value for line in series.values() for value in line])
    left, top, wide, tall = 90, 10, 640, 260
    step = wide / max(len(blocks) - 1, 1)

    def place(i: int, value: float) -> str:
        return f"{left + i * step:.1f},{top + tall * (1 - (value - low) / (high - low)):.1f}"

    marks = [f'<path d="M{left},{top}v{tall}h{wide}" fill="none" stroke="currentColor"/>']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        marks.append(svg_text(left - 6, top + tall * (1 - share) + 4, show(value), "end"))
    coloured = [name for name in series if name != thick]
    for n, (name, line) in enumerate(series.items()):
        turn = coloured.index(name) if name != thick else 0
        colour = "currentColor" if name == thick else COLOURS[turn % len(COLOURS)]
        dash = "" if name == thick else DASHES[turn // len(COLOURS) % len(DASHES)]
        width = 3 if name == thick else 1.5
        look = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"'
        points = [place(i, value) for i, value in enumerate(line) if math.isfinite(value)]
        marks.append(f'<polyline points="{" ".join(points)}" fill="none" {look}/>')
        if len(points) == 1:
            x, y = points[0].split(",")
            marks.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        key = top + 10 + n * 20
        marks.append(f'<path d="M{left + wide + 20},{key}h26" {look}/>')
        marks.append(svg_text(left + wide + 52, key + 4, name))
    marks += block_labels(blocks, lambda i: left + i * step, top + tall + 16)
    marks.append(svg_text(left + wide / 2, top + tall + 34, x_label, "middle"))
    height = max(top + tall + 42, top + 20 + len(series) * 20)
    return svg(left + wide + 220, height, marks, label)


def block_labels(blocks: Sequence[str], x_of: Callable[[int], float], y: float) -> list[str]:
    """Names of blocks under a picture, so many as there is room for."""
    longest = max(map(len, blocks), default=1)
    every = max(1, math.ceil(len(blocks) / (16 if longest < 6 else 8)))
    return [svg_text(x_of(i), y, blocks[i], "middle") for i in range(0, len(blocks), every)]


def svg(width: float, height: float, marks: Sequence[str], label: str) -> str:
    """A picture of marks, in a paragraph."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    shown = f'role="img" aria-label="{escape(label)}"'
    return f"<p><svg {size} {shown}>{''.join(marks)}</svg></p>"


def svg_text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    """Plain text at a place; `more` are further attributes."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest finite value, apart by something."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
