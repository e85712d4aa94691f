"""An inspection as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compress.reports import charts
from compress.reports import formats as fmt
from compress.reports.heatmap import heatmap
from compress.spectra.grid import by_block_and_role, short_block
from compress.spectra.metrics import METRICS, UNDEFINED

if TYPE_CHECKING:
    from compress.spectra.inspect import Inspection

# Title of a column to its value in a row and its decimals; in the order of the table.
_COLUMNS = {
    "peak": ("alpha_peak", 2),
    "strict": ("alpha_peak_strict", 2),
    "mid": ("alpha_mid", 2),
    "ks": ("alpha_ks", 2),
    "D": ("tail_distance", 2),
    "k": ("tail_size", 0),
    "st.rank": ("stable_rank", 1),
    "entropy": ("entropy", 3),
    "farms": ("farms", 2),
    "rand": ("rand_distance", 3),
    "mp.rank": ("mp_softrank", 3),
    "sigma": ("sigma_mp", 3),
    "spikes": ("num_spikes", 0),
}
# Where the table is wider than the screen; what was asked for by an option stays longest.
_FIRST_TO_GO = ("D", "k", "strict", "entropy", "mid", "st.rank", "sigma", "ks")
_LEGEND = (
    "peak, strict, mid, ks: variants of alpha, the exponent of the tail. Smaller: a heavier tail, "
    "better trained, to be pruned less. Compare one variant, on alike shapes only. D, k: distance "
    "of peak's fit and eigenvalues in its tail."
)
_MEANINGS = {
    "farms": "farms: peak of equal windows, so that shapes may differ.",
    "rand": "rand: distance to the shuffled matrix's spectrum, 0 for noise.",
    "mp.rank": "mp.rank, sigma, spikes: edge of the bulk of noise over the largest eigenvalue, its "
    "scale, eigenvalues beyond it.",
}


def render(seen: Inspection, width: int | None = None) -> str:
    """The table of all matrices, or the picture of one; at most `width` columns, as they fit."""
    columns = fmt.screen_width() if width is None else width
    parts = [_head(seen, columns)]
    if seen.spectra:
        parts.append(_one(seen, columns))
    else:
        parts.append(_table(seen, columns))
        if seen.plot is not None:
            parts.append(_picture(seen, columns))
    parts.append("\n".join(_notes(seen, columns)))
    return fmt.fit_encoding("\n\n".join(parts).rstrip())


def _head(seen: Inspection, width: int) -> str:
    m = seen.model
    facts = (
        f"{m['source']}   {m['architecture']}, {m['blocks']} blocks, "
        f"{fmt.count_text(m['parameters'])} parameters, {m['dtype']}, "
        f"{fmt.bytes_text(m['bytes'])}"
    )
    lines = [fmt.wrap(f"model     {facts}", width, " " * 10)]
    if seen.engine != "compress":
        lines.append(f"engine    {seen.engine}")
    if seen.cache is not None and seen.cache.hits:
        total = seen.cache.hits + seen.cache.misses
        lines.append(f"cache     {seen.cache.hits} of {total} spectra were known, by content")
    return "\n".join(lines)


def _table(seen: Inspection, width: int) -> str:
    lines: list[tuple[str, str, dict[str, Any]]] = []
    for mean in seen.blocks():
        block = mean["block"]
        lines.append((block, "", mean))
        for row in (row for row in seen.rows if row.block == block):
            name = f"  {row.module.removeprefix(block + '.')}{' *' if row.warning else ''}"
            lines.append((name, f"{row.shape[0]}×{row.shape[1]}", row.as_dict()))
    columns = {"": [name for name, _, _ in lines], "shape": [shape for _, shape, _ in lines]}
    for title, show in _shown(seen).items():
        columns[title] = [show(values) for _, _, values in lines]
    for title in _FIRST_TO_GO:
        if _width(columns) > width:
            columns.pop(title, None)
    legend = [_LEGEND] if "peak" in columns else []
    legend += [meaning for title, meaning in _MEANINGS.items() if title in columns]
    legend.append("A block's line is the mean of its matrices.")
    return f"{_laid_out(columns)}\n\n{fmt.wrap(' '.join(legend), width, '')}"


def _picture(seen: Inspection, width: int) -> str:
    """The drawn metric by block and matrix type, and the mean of blocks."""
    grid = by_block_and_role(seen.rows, seen.drawn)
    blocks = [short_block(block) for block in grid.blocks]
    title = f"{seen.drawn}: {METRICS[seen.drawn].meaning}"
    heat = heatmap(grid.values, grid.roles, blocks, ends=None, means=True, width=width)
    parts = [fmt.wrap(f"{title}, by block", width, ""), heat]
    if len(blocks) > 1:
        means = charts.line(grid.means(), x_label="block; mean of its matrices", width=width)
        parts.append(means)
    return "\n\n".join(parts)


def _one(seen: Inspection, width: int) -> str:
    row, m = seen.rows[0], seen.rows[0].metrics
    head = (
        f"{row.module.rpartition('.')[2]}, block {row.block.rpartition('.')[2]}   "
        f"{row.shape[0]} × {row.shape[1]}   alpha_peak {m['alpha_peak']:.2f}   "
        f"alpha_ks {m['alpha_ks']:.2f}   stable rank {m['stable_rank']:.1f}"
    )
    extra = [
        f"{name} {m[name]:.3g}"
        for name, metric in METRICS.items()
        if metric.needs != "spectrum" and name in m
    ]
    lines = [fmt.wrap("   ".join([head, *extra]), width, "  ")]
    for one in seen.spectra:
        lines += ["", fmt.wrap(one.caption(), width, "  "), one.chart(width)]
    return "\n".join(lines)


def _notes(seen: Inspection, width: int) -> list[str]:
    notes = [f"{row.module}: {row.warning}" for row in seen.rows if row.warning]
    said: dict[str, list[str]] = {}
    for row in seen.rows:
        for note in row.notes:
            said.setdefault(note, []).append(row.module)
    for note, modules in said.items():
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        notes.append(f"{note}, to fit {modules[0]}{more}")
    if seen.cache is not None:
        notes += seen.cache.remarks()
    return [fmt.wrap(f"note: {note}", width, "      ") for note in notes]


def _shown(seen: Inspection) -> dict[str, Callable[[dict[str, Any]], str]]:
    """Column title to what it says of a row's or a block's values; only what was measured."""

    def number(name: str, decimals: int) -> Callable[[dict[str, Any]], str]:
        def show(values: dict[str, Any]) -> str:
            value = values.get(name, "")
            missing = value == UNDEFINED and name != "num_spikes"
            return "–" if missing else f"{value:.{decimals}f}" if value != "" else ""

        return show

    known = set(seen.rows[0].as_dict())
    columns = {title: number(*of) for title, of in _COLUMNS.items() if of[0] in known}
    if any(row.zeros for row in seen.rows):
        columns["zeros"] = lambda values: f"{100 * values['zeros']:.1f} %"
    return columns


def _width(columns: dict[str, list[str]]) -> int:
    return sum(max(map(len, [title, *cells])) + 2 for title, cells in columns.items()) - 2


def _laid_out(columns: dict[str, list[str]]) -> str:
    """Columns as narrow as their cells, two blanks between, so that ten of them fit a screen."""
    padded = []
    for title, cells in columns.items():
        wide = max(map(len, [title, *cells]))
        align = str.rjust if title else str.ljust
        padded.append([align(cell, wide) for cell in [title, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))
