"""`compress report --html` and `--png`: the same tables as one file, and shares by block drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import RequestError
from compress.reports import page
from compress.reports.allocation import allocation_remarks, names_in_order, score_rows
from compress.reports.runs import Run
from compress.reports.tables import cost_line, receipt_rows

if TYPE_CHECKING:
    from compress.reports.compare import Report

Shares = dict[str, list[float]]


def report_page(shown: Report) -> str:
    """All runs of a report: their comparison or, of one, before and after; then shares by block."""
    only = shown.runs[0].receipt if len(shown.runs) == 1 else None
    if only is not None:
        title = f"{only.command} of {only.model.source}" if only.model else only.command
        heads = ["", "before", "after", "change", ""]
        rows = [[page.cell(text) for text in row] for row in receipt_rows(only)]
        remarks = [*([cost_line(only.cost)] if only.cost else []), *only.notes]
    else:
        title = f"{len(shown.runs)} runs"
        heads, texts, _ = shown.cells()
        rows = [[page.cell(text.strip()) for text in row] for row in texts]
        remarks = shown.remarks()
    parts = [page.html_table([head.strip() for head in heads], rows), _paragraphs(remarks)]
    for run in shown.runs:
        found = run.allocation
        if found.get("scores"):
            parts.append(f"<h2>Allocations compared{_of(run, shown)}</h2>")
            own = names_in_order(found)[0]
            for heading, lines in score_rows(found):
                cells = [[page.cell(text) for text in line] for line in lines]
                parts.append(page.html_table(["allocation", heading, f"{own} minus it"], cells))
    found_shares = shares_by_block(shown.runs)
    if found_shares is not None:
        blocks, series = found_shares
        parts.append("<h2>Sparsity by block</h2>")
        names = [short_block(block) for block in blocks]
        parts.append(
            page.lines_svg(
                names, series, lambda v: f"{v:.3f}", thick=next(iter(series)),
                label="sparsity by block",
            )
        )  # fmt: skip
        cells = [
            [page.cell(block), *(page.cell(f"{line[i]:.3f}", line[i]) for line in series.values())]
            for i, block in enumerate(blocks)
        ]
        parts.append(page.html_table(["block", *series], cells))
        if len(shown.runs) == 1:
            parts.append(_paragraphs(allocation_remarks(shown.runs[0].allocation)))
    return page.html_page(title, parts)


def shares_by_block(runs: Sequence[Run]) -> tuple[list[str], Shares] | None:
    """Blocks, and the sparsity of each by line: of one run all its allocations, of many their own.

    Runs of another model than the first that has shares, or without, are left out; None where no
    run has any.
    """
    known = [run for run in runs if run.allocation.get("shares")]
    if not known:
        return None
    blocks = list(known[0].allocation["blocks"])
    if len(runs) == 1:
        shares: Mapping[str, Sequence[float]] = known[0].allocation["shares"]
        return blocks, {name: list(shares[name]) for name in names_in_order(known[0].allocation)}
    own = {
        run.name: list(run.allocation["shares"][names_in_order(run.allocation)[0]])
        for run in known
        if list(run.allocation["blocks"]) == blocks
    }
    return blocks, own


def draw_shares(runs: Sequence[Run], path: str | Path) -> None:
    """Draw the sparsity of every block as a PNG.

    Raises:
        RequestError: no run has shares by block.
        RunError: the file can't be written.
    """
    from compress.reports.pictures import new_figure, save_figure

    found = shares_by_block(runs)
    if found is None:
        raise RequestError(
            "`--png` draws sparsity by block, and no receipt here has any",
            "name a directory that `alpha-prune` wrote with an allocation that isn't uniform",
        )
    blocks, series = found
    figure, axes = new_figure(1, 1, (8, 4.5))
    places = range(len(blocks))
    marks = "osv^D*Px"  # lines keep apart in black and white
    for n, (name, line) in enumerate(series.items()):
        axes[0, 0].plot(
            places, line, marker=marks[n % len(marks)], linewidth=2.5 if n == 0 else 1.2, label=name
        )
    every = max(1, -(-len(blocks) // 16))
    axes[0, 0].set_xticks(list(places)[::every], [short_block(b) for b in blocks[::every]])
    axes[0, 0].set(xlabel="block", ylabel="sparsity")
    axes[0, 0].grid(alpha=0.3)
    axes[0, 0].legend()
    save_figure(figure, path)


def short_block(name: str) -> str:
    """A block by its number, or its last name."""
    return name.rpartition(".")[2]


def _of(run: Run, shown: Report) -> str:
    return f" in {escape(run.name)}" if len(shown.runs) > 1 else ""


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
