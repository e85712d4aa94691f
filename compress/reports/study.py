"""A study in the terminal: who is better than the reference, who can't be told apart, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.reports import formats as fmt
from compress.reports.heatmap import heatmap
from compress.reports.study_view import StudyView, metric_title, signed_interval

_COMPACT = {ord("("): None, ord(")"): None}


def study_tables(
    receipt: Mapping[str, Any],
    *,
    output: Path | None = None,
    width: int | None = None,
    terminal: bool | None = None,
) -> str:
    """Render a study's receipt as tables for people, at most 80 columns wide unless told.

    Args:
        receipt: the JSON form.
        output: where the study lies.
        width: columns.
        terminal: bold heads; whether stdout is a terminal unless given.
    """
    screen = fmt.screen_width() if width is None else width
    view = StudyView(receipt)
    parts = [
        *_metrics(view, screen, terminal),
        *_ways(view, screen, terminal),
        *_heat(view, screen),
        *_capabilities(view, screen, terminal),
        *_variance(view, screen, terminal),
        *_predictors(view, screen, terminal),
        *_controls(view, screen),
        *_failed(view, screen),
        _verdict(view, screen),
        _footer(view, output, screen),
    ]
    return fmt.fit_encoding("\n\n".join(part for part in parts if part))


def _metrics(view: StudyView, width: int, terminal: bool | None) -> Iterator[str]:
    """One table a metric: every set with its mean, its difference and its ranks."""
    for model, metric in view.panels:
        rows = []
        for row in view.pooled(model, metric):
            compared = view.against(model, metric, row["calib"])
            ranks = view.ranks(model, metric).get(row["calib"])
            rows.append(
                [
                    view.short(row["calib"]),
                    _mean(row),
                    _difference(compared),
                    "" if compared is None else f"{compared['chance']:.2f}",
                    "" if ranks is None else _span(ranks),
                ]
            )
        heads = ["data", "mean", f"against {view.short(view.reference)}, 95 %", "P", "rank"]
        body = fmt.table(heads, rows, "lrlrr", width=width, terminal=terminal)
        yield f"{fmt.wrap(metric_title(metric, view) + view.of_model(model), width)}\n{body}"
    yield _legend(view, width)


def _legend(view: StudyView, width: int) -> str:
    seeds = max((row["n"] for row in view.rows("means")), default=0)
    counts = {row["comparisons"] for row in view.comparison if "method" not in row and "p" in row}
    count = f"{counts.pop()} comparisons" if len(counts) == 1 else "all comparisons"
    words = (
        f"means over {seeds} seed{'s' * (seeds != 1)} and all ways to prune; ± is the standard "
        "error over seeds; P: how often a draw of the set beats a draw of the reference; * better, "
        f"! worse: p < 0.05 after Holm's correction for {count}, and P at least 0.75; ~ on these "
        "items only, by the bootstrap over seeds and items; "
        "rank: those that can't be excluded"
    )
    return fmt.wrap(words, width)


def _mean(row: Mapping[str, Any]) -> str:
    error = f" ± {row['stderr']:.3f}" if "stderr" in row else ""
    return f"{row['mean']:.3f}{error}"


def _difference(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "reference"
    mark = " *" if row["better"] else " !" if row["worse"] else ""
    mark += "~" if mark and row.get("other_items") is False else ""
    domain = " same data set" if row.get("in_domain") else ""
    # Compact, so that a line holds a long name beside it.
    interval = signed_interval(row).translate(_COMPACT).replace(" …", "…").replace("… ", "…")
    return interval + mark + domain


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}-{ranks[1]}"


def _ways(view: StudyView, width: int, terminal: bool | None) -> Iterator[str]:
    """One table a metric: sets down, ways to prune across."""
    for model, metric in view.panels:
        ways = view.ways(model, metric)
        if len(ways) < 2:
            continue
        values = view.by_way(model, metric)
        names = [row["calib"] for row in view.pooled(model, metric)] or view.calib
        lines = [
            [view.short(name), *(_cell(values.get((name, way)), metric) for way in ways)]
            for name in names
        ]
        heads = ["data", *ways]
        title = f"{metric_title(metric, view)}, by way to prune{view.of_model(model)}"
        for columns in _pages([heads, *lines], width):
            yield f"{fmt.wrap(title, width)}\n" + fmt.table(
                [heads[i] for i in columns],
                [[line[i] for i in columns] for line in lines],
                "l" + "r" * (len(columns) - 1),
                width=width,
                terminal=terminal,
            )


def _cell(row: Mapping[str, Any] | None, metric: str) -> str:
    return "" if row is None else _mean(row)


def _pages(lines: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """Columns that fit the screen together, the first on every page."""
    sizes = [max(len(line[i]) for line in lines) + 3 for i in range(len(lines[0]))]
    page, used = [0], sizes[0]
    for index in range(1, len(sizes)):
        if used + sizes[index] - 3 > width and len(page) > 1:
            yield page
            page, used = [0], sizes[0]
        page.append(index)
        used += sizes[index]
    yield page


def _heat(view: StudyView, width: int) -> Iterator[str]:
    """Data by task: 0 is the best set of a column, 1 the worst."""
    for model in view.models:
        cells, rows, columns = view.heat(model)
        if len(rows) < 2 or len(columns) < 2:
            continue
        title = "data by task: 0 is the best set of a column, 1 the worst"
        title += view.of_model(model)
        yield f"{title}\n{heatmap(cells, rows, columns, width=width)}"


def _capabilities(view: StudyView, width: int, terminal: bool | None) -> Iterator[str]:
    groups = list(dict.fromkeys(row["capability"] for row in view.rows("capabilities")))
    if len(groups) < 2 and not any(row["of"] > 1 for row in view.rows("capabilities")):
        return
    for model in view.models:
        own = [row for row in view.rows("capabilities") if row["model"] == model]
        table = {(row["calib"], row["capability"]): row for row in own}
        lines = []
        for calib in dict.fromkeys(row["calib"] for row in own):
            found = [table.get((calib, group)) for group in groups]
            lines.append([view.short(calib), *map(_capability, found)])
        title = "by capability (mean of its texts or tasks; in brackets without the same data set)"
        yield f"{fmt.wrap(title, width)}\n" + fmt.table(
            ["data", *groups], lines, "l" + "r" * len(groups), width=width, terminal=terminal
        )


def _capability(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    rest = f" ({row['without_in_domain']:.3f})" if "without_in_domain" in row else ""
    return f"{row['mean']:.3f}{rest}"


def _variance(view: StudyView, width: int, terminal: bool | None) -> Iterator[str]:
    rows = view.rows("variance")
    if not rows:
        return
    names = ["data", "format", "method", "sparsity", "interaction", "seed"]
    lines = []
    for row in rows:
        what = metric_title(row["metric"], view, short=True) + view.of_model(row["model"])
        for label, key in (("all", "all"), ("each way", "one_way")):
            shares = row[key]
            lines.append(
                [what, label, *(f"{100 * shares[n]:.0f} %" if n in shares else "" for n in names)]
            )
    heads = [name if name != "interaction" else "mixed" for name in names]
    words = (
        "what the spread comes from (omega squared; mixed: interactions; each way: at a fixed way "
        "to prune)"
    )
    yield (
        fmt.wrap(words, width)
        + "\n"
        + fmt.table(
            ["", "over", *heads], lines, "ll" + "r" * len(names), width=width, terminal=terminal
        )
    )


def _predictors(view: StudyView, width: int, terminal: bool | None) -> Iterator[str]:
    rows = view.rows("predictors")
    if not rows:
        return
    lines = [
        [
            row["predictor"],
            metric_title(row["metric"], view, short=True),
            f"{row['tau']:+.2f}",
            f"{row['p']:.2g}" if "p" in row else "",
            view.short(row["first"]),
        ]
        for row in rows
    ]
    yield (
        "cheap predictors: agreement of their rank with the measured one (Kendall's tau)\n"
        + fmt.table(["predictor", "of", "tau", "p", "its first"], lines, "llrrl", width=width,
                    terminal=terminal)
    )  # fmt: skip


def _controls(view: StudyView, width: int) -> Iterator[str]:
    rows = view.rows("controls")
    if rows:
        lines = [f"{_outcome(row):<8}{row['text']}" for row in rows]
        yield "controls\n" + "\n".join(fmt.wrap(line, width, " " * 8) for line in lines)


def _outcome(row: Mapping[str, Any]) -> str:
    """How a control went; a metric that can't tell bad data is blind, not wrong."""
    if row["passed"]:
        return "passed"
    return "blind" if row["control"] == "bad end" else "FAILED"


def _failed(view: StudyView, width: int) -> Iterator[str]:
    failed = [cell for cell in view.cells if cell["status"] == "failed"]
    if not failed:
        return
    lines = [
        f"{view.short(c['calib'])}, {c['method']} {c.get('pattern') or c['sparsity']}, seed "
        f"{c['seed']}: {c.get('error', '')}"
        for c in failed[:10]
    ]
    more = [f"… and {len(failed) - 10} more, in grid.jsonl"] if len(failed) > 10 else []
    yield "cells that failed\n" + "\n".join(fmt.wrap(line, width) for line in [*lines, *more])


def _verdict(view: StudyView, width: int) -> str:
    return "verdict\n" + "\n".join(fmt.wrap(line, width) for line in view.verdict)


def _footer(view: StudyView, output: Path | None, width: int) -> str:
    good = sum(cell["status"] == "ok" for cell in view.cells)
    seconds = sum(view.receipt.get("cost", {}).get("seconds", {}).values())
    lines = [f"{good} of {len(view.cells)} cells in {fmt.duration(seconds)}"]
    lines += [fmt.wrap(f"note: {note}", width) for note in view.receipt.get("notes", ())]
    if output is not None:
        lines += [str(output), "  grid.jsonl, items.parquet, cells.csv, forest.png, report.html"]
    return "\n".join(lines)
