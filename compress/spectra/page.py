"""An inspection as one HTML file: tables that sort, pictures inline, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from compress.reports import formats as fmt
from compress.spectra.grid import Grid, by_block_and_role, short_block
from compress.spectra.metrics import METRICS, UNDEFINED
from compress.spectra.plots import histogram

if TYPE_CHECKING:
    from compress.spectra.inspect import Inspection, Spectrum

# Lines and cells keep their order in black and white: a line has its dashes, a cell its number.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#555555")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_STYLE = """
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
_SCRIPT = """
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


def html_page(seen: Inspection) -> str:
    """The whole inspection: facts, the drawn metric in two pictures, every matrix, what was odd."""
    m = seen.model
    facts = (
        f"{m['architecture']}, {m['blocks']} blocks, {fmt.count_text(m['parameters'])} parameters, "
        f"{m['dtype']}, {fmt.bytes_text(m['bytes'])}; measured by {seen.engine}"
    )
    title = f"Spectra of {m['source']}"
    parts = [f"<h1>{escape(title)}</h1><p>{escape(facts)}</p>"]
    for one in seen.spectra:
        parts.append(f"<h2>{escape(one.caption())}</h2>{_spectrum_svg(one)}")
    if not seen.spectra:
        grid = by_block_and_role(seen.rows, seen.drawn)
        meaning = f"{seen.drawn}: {METRICS[seen.drawn].meaning}"
        parts.append(f"<h2>{escape(meaning)}</h2>{_heat_svg(grid)}{_lines_svg(grid)}")
    parts.append(f"<h2>Matrices</h2>{_table(seen)}{_metric_list(seen)}")
    odd = [(row.module, text) for row in seen.rows for text in (row.warning, *row.notes) if text]
    if odd:
        items = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in odd)
        parts.append(f"<h2>Notes</h2><ul>{items}</ul>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _table(seen: Inspection) -> str:
    names = list(seen.rows[0].metrics)
    titles = ["matrix", "block", "type", "out", "in", *names, "zeros"]
    head = "".join(
        f'<th scope="col"><button type="button">{escape(title)}</button></th>' for title in titles
    )
    body = []
    for row in seen.rows:
        numbers = [float(side) for side in row.shape] + [row.metrics[name] for name in names]
        texts = [row.module + (" *" if row.warning else ""), short_block(row.block), row.role]
        cells = [f"<td>{escape(text)}</td>" for text in texts]
        cells += [f'<td data-v="{value!r}">{_short(value)}</td>' for value in numbers]
        cells.append(f'<td data-v="{row.zeros!r}">{100 * row.zeros:.1f} %</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _metric_list(seen: Inspection) -> str:
    items = [
        f"<li><b>{escape(name)}</b>: {escape(METRICS[name].meaning)}</li>"
        for name in seen.rows[0].metrics
    ]
    return f"<details><summary>What the columns mean</summary><ul>{''.join(items)}</ul></details>"


def _heat_svg(grid: Grid) -> str:
    """Matrix types by blocks, the darker the larger; every cell says its value to the pointer."""
    low, high = _span([value for line in grid.values for value in line])
    left, cell, tall = 90, min(max(900 // len(grid.blocks), 4), 44), 24
    marks = []
    for y, (role, line) in enumerate(zip(grid.roles, grid.values, strict=True)):
        marks.append(_text(left - 6, y * tall + 16, role, "end"))
        for x, value in enumerate(line):
            if not math.isfinite(value):
                continue
            share = (value - low) / (high - low)
            light = round(94 - 62 * share)
            where = f'x="{left + x * cell}" y="{y * tall}"'
            said = escape(f"{role}, block {short_block(grid.blocks[x])}: {_short(value)}")
            marks.append(
                f'<rect {where} width="{cell}" height="{tall}" fill="hsl(205 60% {light}%)" '
                f'stroke="#fff"><title>{said}</title></rect>'
            )
            if cell >= 34:
                ink = "#000" if light > 60 else "#fff"
                at = left + x * cell + cell / 2
                look = f' style="fill:{ink}"'
                marks.append(_text(at, y * tall + 16, _short(value), "middle", look))
    bottom = len(grid.roles) * tall
    marks += _block_labels(grid, lambda i: left + i * cell + cell / 2, bottom + 16)
    marks.append(_text(left, bottom + 34, f"block; light {_short(low)}, dark {_short(high)}"))
    return _svg(left + len(grid.blocks) * cell + 10, bottom + 42, marks, "heat map by matrix type")


def _lines_svg(grid: Grid) -> str:
    """A line for each matrix type over the blocks, the mean of blocks thick."""
    means = grid.means()
    low, high = _span([v for line in [*grid.values, means] for v in line])
    left, top, wide, tall = 90, 10, 640, 260
    step = wide / max(len(grid.blocks) - 1, 1)

    def place(i: int, value: float) -> str:
        return f"{left + i * step:.1f},{top + tall * (1 - (value - low) / (high - low)):.1f}"

    marks = [f'<path d="M{left},{top}v{tall}h{wide}" fill="none" stroke="currentColor"/>']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        marks.append(_text(left - 6, top + tall * (1 - share) + 4, _short(value), "end"))
    series = [*zip(grid.roles, grid.values, strict=True), ("mean of the block", means)]
    for n, (name, line) in enumerate(series):
        mean = n == len(grid.roles)
        colour = "currentColor" if mean else _COLOURS[n % len(_COLOURS)]
        dash = "" if mean else _DASHES[n // len(_COLOURS) % len(_DASHES)]
        look = f'stroke="{colour}" stroke-width="{3 if mean else 1.5}" stroke-dasharray="{dash}"'
        points = [place(i, value) for i, value in enumerate(line) if math.isfinite(value)]
        marks.append(f'<polyline points="{" ".join(points)}" fill="none" {look}/>')
        if len(points) == 1:
            x, y = points[0].split(",")
            marks.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        key = top + 10 + n * 20
        marks.append(f'<path d="M{left + wide + 20},{key}h26" {look}/>')
        marks.append(_text(left + wide + 52, key + 4, name))
    marks += _block_labels(grid, lambda i: left + i * step, top + tall + 16)
    marks.append(_text(left + wide / 2, top + tall + 34, "block", "middle"))
    height = max(top + tall + 42, top + 20 + len(series) * 20)
    return _svg(left + wide + 220, height, marks, "lines by matrix type")


def _spectrum_svg(one: Spectrum) -> str:
    """Counts of eigenvalues in equal bins of their logarithm, with the fitted tail."""
    bins = min(max(len(one.eigenvalues) // 4, 10), 100)
    data = histogram(one.eigenvalues, bins, one.alpha, one.start, one.size)
    left, top, wide, tall = 60, 10, 700, 240
    most = max(int(data.counts.max()), float(data.expected.max()), 1)
    step = wide / bins
    marks = [f'<path d="M{left},{top}v{tall}h{wide}" fill="none" stroke="currentColor"/>']
    for i, count in enumerate(data.counts.tolist()):
        high = tall * count / most
        marks.append(
            f'<rect x="{left + i * step:.2f}" y="{top + tall - high:.2f}" width="{step:.2f}" '
            f'height="{high:.2f}" fill="#0072b2" fill-opacity=".55">'
            f"<title>{count} near {data.edges[i]:.3g}</title></rect>"
        )
    fitted = [
        f"{left + (i + 0.5) * step:.1f},{top + tall * (1 - value / most):.1f}"
        for i, value in enumerate(data.expected.tolist())
        if value > 0
    ]
    if fitted:
        marks.append(
            f'<polyline points="{" ".join(fitted)}" fill="none" stroke="currentColor" '
            'stroke-width="2" stroke-dasharray="6 4"/>'
        )
    marks.append(_text(left - 6, top + 10, f"{most:.0f}", "end"))
    marks.append(_text(left - 6, top + tall, "0", "end"))
    for i in range(0, bins + 1, max(bins // 4, 1)):
        marks.append(_text(left + i * step, top + tall + 16, f"{data.edges[i]:.2g}", "middle"))
    said = "eigenvalue (logarithmic)" + ("; dashed: fitted tail" if fitted else "")
    marks.append(_text(left + wide / 2, top + tall + 34, said, "middle"))
    return _svg(left + wide + 40, top + tall + 42, marks, "spectrum")


def _block_labels(grid: Grid, x_of: Callable[[int], float], y: float) -> list[str]:
    every = max(1, math.ceil(len(grid.blocks) / 16))
    shown = range(0, len(grid.blocks), every)
    return [_text(x_of(i), y, short_block(grid.blocks[i]), "middle") for i in shown]


def _svg(width: float, height: float, marks: Sequence[str], label: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<p><svg {size} role="img" aria-label="{label}">{"".join(marks)}</svg></p>'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(value: float) -> str:
    return "–" if value == UNDEFINED else f"{value:.3g}" if abs(value) < 1e4 else f"{value:.2e}"
