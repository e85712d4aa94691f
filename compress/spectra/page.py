"""An inspection as one HTML file: tables that sort, pictures inline, nothing fetched."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from compress.reports import drawing, page
from compress.reports import formats as fmt
from compress.spectra.grid import Grid, by_block_and_role, short_block
from compress.spectra.metrics import METRICS, UNDEFINED
from compress.spectra.plots import histogram

if TYPE_CHECKING:
    from compress.spectra.inspect import Inspection, Spectrum


def html_page(seen: Inspection) -> str:
    """The whole inspection: facts, the drawn metric in two pictures, every matrix, what was odd."""
    m = seen.model
    facts = (
        f"{m['architecture']}, {m['blocks']} blocks, {fmt.count_text(m['parameters'])} parameters, "
        f"{m['dtype']}, {fmt.bytes_text(m['bytes'])}; measured by {seen.engine}"
    )
    title = f"Spectra of {m['source']}"
    parts = [f"<p>{escape(facts)}</p>"]
    for one in seen.spectra:
        parts.append(f"<h2>{escape(one.caption())}</h2>{_spectrum_svg(one)}")
    if not seen.spectra:
        grid = by_block_and_role(seen.rows, seen.drawn)
        meaning = f"{seen.drawn}: {METRICS[seen.drawn].meaning}"
        parts.append(f"<h2>{escape(meaning)}</h2>{_heat_svg(grid)}{_lines_svg(grid)}")
    parts.append(f"<h2>Matrices</h2>{_table(seen)}{_metric_list(seen)}")
    odd = [(row.module, text) for row in seen.rows for text in (row.warning, *row.notes) if text]
    if odd:
        parts.append(f"<h2>Notes</h2>{page.bullets([f'{name}: {text}' for name, text in odd])}")
    return page.html_page(title, parts)


def _table(seen: Inspection) -> str:
    names = list(seen.rows[0].metrics)
    titles = ["matrix", "block", "type", "out", "in", *names, "zeros"]
    body = []
    for row in seen.rows:
        numbers = [float(side) for side in row.shape] + [row.metrics[name] for name in names]
        texts = [row.module + (" *" if row.warning else ""), short_block(row.block), row.role]
        cells = [page.cell(text) for text in texts]
        cells += [page.cell(_short(value), value) for value in numbers]
        body.append([*cells, page.cell(f"{100 * row.zeros:.1f} %", row.zeros)])
    return page.html_table(titles, body)


def _metric_list(seen: Inspection) -> str:
    items = [
        f"<li><b>{escape(name)}</b>: {escape(METRICS[name].meaning)}</li>"
        for name in seen.rows[0].metrics
    ]
    return page.folded("What the columns mean", f"<ul>{''.join(items)}</ul>")


def _heat_svg(grid: Grid) -> str:
    """Matrix types by blocks, the darker the larger."""
    return drawing.heat(
        grid.roles, [short_block(block) for block in grid.blocks], grid.values, _short,
        label="heat map by matrix type", caption="block", column_kind="block",
    )  # fmt: skip


def _lines_svg(grid: Grid) -> str:
    """A line for each matrix type over the blocks, the mean of blocks thick."""
    mean = "mean of the block"
    series = {**dict(zip(grid.roles, grid.values, strict=True)), mean: grid.means()}
    blocks = [short_block(block) for block in grid.blocks]
    write = "{:.3g}".format  # an axis may end at 0, which `_short` takes for undefined
    return drawing.lines(blocks, series, write, thick=mean, label="lines by matrix type")


def _spectrum_svg(one: Spectrum) -> str:
    """Counts of eigenvalues in equal bins of their logarithm, with the fitted tail."""
    bins = min(max(len(one.eigenvalues) // 4, 10), 100)
    data = histogram(one.eigenvalues, bins, one.alpha, one.start, one.size)
    left, top, wide, tall = drawing.LEFT, drawing.TOP, drawing.WIDE, drawing.TALL
    most = max(int(data.counts.max()), float(data.expected.max()), 1)
    step = wide / bins
    marks = [f'<path class="axis" d="M{left},{top}v{tall}h{wide}"/><g class="series" data-s="0">']
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
    marks.append('</g><g class="series" data-s="1">')
    dashed = "stroke='currentColor' stroke-width='2' stroke-dasharray='6 4'"
    if fitted:
        marks.append(f'<polyline points="{" ".join(fitted)}" fill="none" {dashed}/>')
    marks.append("</g>")
    marks.append(drawing.text(left - 6, top + 10, f"{most:.0f}", "end"))
    marks.append(drawing.text(left - 6, top + tall, "0", "end"))
    for i in range(0, bins + 1, max(bins // 4, 1)):
        words = f"{data.edges[i]:.2g}"
        marks.append(drawing.text(left + i * step, top + tall + 20, words, "middle"))
    below = top + tall + 48
    marks.append(drawing.text(left + wide / 2, below, "eigenvalue (logarithmic)", "middle"))
    legend = [("eigenvalues", "<rect width='28' height='12' fill='#0072b2' fill-opacity='.55'/>")]
    legend += [("fitted tail", f"<path d='M0,6h28' {dashed}/>")] if fitted else []
    return drawing.figure(marks, "spectrum", legend=legend)


def _short(value: float) -> str:
    return "–" if value == UNDEFINED else f"{value:.3g}" if abs(value) < 1e4 else f"{value:.2e}"
