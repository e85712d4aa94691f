"""`compress report --html` and `--png`: the same tables as one file, and shares by block drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import RequestError
from compress.reports import drawing, page, pareto
from compress.reports.allocation import allocation_remarks, names_in_order, score_rows
from compress.reports.runs import Run
from compress.reports.tables import cost_line, receipt_rows

if TYPE_CHECKING:
    from compress.reports.compare import Report
    from compress.reports.receipt import Receipt

Shares = dict[str, list[float]]


def report_page(shown: Report) -> str:
    """All runs of a report: their comparison or, of one, before and after; then what is drawn."""
    only = shown.runs[0].receipt if len(shown.runs) == 1 else None
    title, parts = runs_parts(shown) if only is None else receipt_parts(only)
    return page.html_page(title, [*parts, *_planes(shown), *_compared(shown), *_shares(shown)])


def receipt_parts(receipt: Receipt) -> tuple[str, list[str]]:
    """One receipt's title, and in HTML its table of before and after, its cost and its notes."""
    source = receipt.model.source if receipt.model else None
    rows = [[page.cell(text) for text in row] for row in receipt_rows(receipt)]
    # The rows are measures of different kinds: sorting them means nothing.
    table = page.html_table(["", "before", "after", "change", ""], rows, sorts=False)
    remarks = [*([cost_line(receipt.cost)] if receipt.cost else []), *receipt.notes]
    title = f"{receipt.command} of {source}" if source else receipt.command
    return title, [table, page.paragraphs(remarks)]


def runs_parts(shown: Report) -> tuple[str, list[str]]:
    """A title, and in HTML the table of runs and what holds for all of them."""
    heads, texts, _ = shown.cells()
    rows = [[page.cell(text.strip()) for text in row] for row in texts]
    table = page.html_table([head.strip() for head in heads], rows)
    return f"{len(shown.runs)} runs", [table, page.paragraphs(shown.remarks())]


def _planes(shown: Report) -> Iterator[str]:
    """Quality against every cost that differs between runs."""
    costs = [shown.against] if shown.against else pareto.costs_of(shown.runs)
    for n, cost in enumerate(costs):
        plane = pareto.plane_of(shown.runs, cost)
        groups: dict[str, list[drawing.Dot]] = {"no other beats it": [], "beaten": []}
        for point in plane.points:
            where = "no other beats it" if point.best else "beaten"
            groups[where].append(drawing.Dot(point.name, point.cost, point.quality))
        quality = plane.quality.title
        x = drawing.axis_of([p.cost for p in plane.points], plane.cost.text, cost)
        y = drawing.axis_of(
            [p.quality for p in plane.points], plane.quality.text, quality, may_log=True
        )
        heading = f"<h2>{escape(quality)} against size, speed and memory</h2>" * (n == 0)
        label = f"{quality} by {cost}"
        yield heading + drawing.dots(groups, x, y, label=label, steps="no other beats it")


def _compared(shown: Report) -> Iterator[str]:
    """What a run lost beside other allocations, as they were measured."""
    for run in shown.runs:
        found = run.allocation
        if not found.get("scores"):
            continue
        yield f"<h2>Allocations compared{_of(run, shown)}</h2>"
        own = names_in_order(found)[0]
        for heading, lines in score_rows(found):
            cells = [[page.cell(text) for text in line] for line in lines]
            yield page.html_table(["allocation", heading, f"{own} minus it"], cells)


def _shares(shown: Report) -> Iterator[str]:
    """Sparsity by block, drawn and as a table."""
    found = shares_by_block(shown.runs)
    if found is None:
        return
    blocks, series = found
    yield "<h2>Sparsity by block</h2>"
    yield drawing.lines(
        [short_block(block) for block in blocks], series, lambda v: f"{v:.3f}",
        thick=next(iter(series)), label="sparsity by block",
    )  # fmt: skip
    cells = [
        [page.cell(block), *(page.cell(f"{line[i]:.3f}", line[i]) for line in series.values())]
        for i, block in enumerate(blocks)
    ]
    yield page.html_table(["block", *series], cells)
    if len(shown.runs) == 1:
        yield page.paragraphs(allocation_remarks(shown.runs[0].allocation))


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
