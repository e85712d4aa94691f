"""A study as one HTML file: the verdict first, then plots and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from compress.reports import drawing, page
from compress.reports import formats as fmt
from compress.reports.study import study_tables
from compress.reports.study_view import StudyView, metric_title, signed_interval, smaller, way_of


def study_page(receipt: Mapping[str, Any]) -> str:
    """The study as one HTML file: verdict first, a plot and a table a metric, then every cell."""
    view = StudyView(receipt)
    tables = f"<pre>{escape(study_tables(receipt, width=100, terminal=False))}</pre>"
    parts = [
        page.bullets(view.verdict),
        *_metrics(view),
        *_heats(view),
        page.folded("All tables as in the terminal", tables),
        f"<h2>{len(view.cells)} cells</h2>",
        _cells(view),
    ]
    return page.html_page("Which calibration data prunes best", parts)


def _metrics(view: StudyView) -> Iterator[str]:
    """Every metric: differences from the reference with their intervals, and the table."""
    tables = list(_metric_tables(view))
    for (model, metric), table in zip(view.panels, tables, strict=True):
        title = f"{metric_title(metric, view)}{view.of_model(model)}"
        yield f"<h2>{escape(title)}</h2>{_forest(view, model, metric)}{table}"


def _forest(view: StudyView, model: str, metric: str) -> str:
    """Every set's difference from the reference, best first; empty where there is only it."""
    groups: dict[str, list[drawing.Dot]] = {"better": [], "worse": [], "not told apart": []}
    names = [r["calib"] for r in view.pooled(model, metric) if r["calib"] != view.reference]
    known = [(name, row) for name in names if (row := view.against(model, metric, name))]
    for line, (name, row) in enumerate(known):
        group = "better" if row["better"] else "worse" if row["worse"] else "not told apart"
        low, high = row.get("ci95") or (None, None)
        groups[group].append(drawing.Dot(view.short(name), row["difference"], line, low, high))
    ends = [end for _, row in known for end in (row["difference"], *(row.get("ci95") or ()))]
    if not ends:
        return ""
    side = "left" if smaller(metric) else "right"
    reference = view.short(view.reference)
    title = f"difference from {reference}, 95 % over seeds; better is {side}"
    x = drawing.axis_of([0.0, *ends], lambda v: fmt.signed(v, 3), title)
    return drawing.forest(groups, x, label=f"differences from {reference}")


def _heats(view: StudyView) -> Iterator[str]:
    """Data by metric, where there are two of each."""
    for model in view.models:
        cells, rows, columns = view.heat(model)
        if len(rows) > 1 and len(columns) > 1:
            values = [[math.nan if v is None else v for v in line] for line in cells]
            yield f"<h2>Data by task{escape(view.of_model(model))}</h2>" + drawing.heat(
                rows, columns, values, lambda v: f"{v:.2f}", label="data by task",
                caption="0 is the best set of a column, 1 the worst",
            )  # fmt: skip


def _metric_tables(view: StudyView) -> Iterator[str]:
    heads = ["data", "mean", "standard error", "against the reference (95 %)", "over items too",
             "P", "p, Holm", "", "best rank", "worst rank"]  # fmt: skip
    for model, metric in view.panels:
        rows = []
        for row in view.pooled(model, metric):
            compared = view.against(model, metric, row["calib"])
            ranks = view.ranks(model, metric).get(row["calib"], [])
            cells = [page.cell(view.short(row["calib"])), page.cell(f"{row['mean']:.4f}")]
            cells.append(page.cell(f"{row['stderr']:.4f}" if "stderr" in row else ""))
            rows.append([*cells, *_compared(compared), *(page.cell(str(r)) for r in ranks)])
        yield page.html_table(heads, rows)


def _compared(row: Mapping[str, Any] | None) -> list[str]:
    """The cells of a comparison with the reference."""
    if row is None:
        return [page.cell("reference", 0.0), *([page.cell("")] * 4)]
    wide = {**row, "ci95": row.get("bootstrap95")}
    kind = "better" if row["better"] else "worse" if row["worse"] else ""
    return [
        page.cell(signed_interval(row), row["difference"]),
        page.cell(signed_interval(wide) if "bootstrap95" in row else ""),
        page.cell(f"{row['chance']:.2f}"),
        page.cell(f"{row['p_holm']:.3g}" if "p_holm" in row else ""),
        page.cell(kind),
    ]


def _cells(view: StudyView) -> str:
    rows = []
    for found in view.cells:
        scores = [f"{k}: {v['value']:.3f}" for k, v in found.get("perplexity", {}).items()]
        scores += [f"{k}: {v.get('acc', 0):.3f}" for k, v in found.get("tasks", {}).items()]
        shown = [
            *(view.short(found["calib"]), way_of(found), str(found["seed"])),
            *(found.get("control", ""), found["status"]),
            ", ".join(scores) or found.get("error", ""),
        ]
        rows.append([page.cell(text) for text in shown])
    return page.html_table(["data", "way to prune", "seed", "control", "status", "scores"], rows)
