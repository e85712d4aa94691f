"""The files of a study for people: cells as CSV, the forest plot, the heat map, one HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.reports.heatmap import draw_heatmap
from compress.reports.pictures import new_figure, save_figure
from compress.reports.receipt import write_atomic
from compress.reports.study import study_tables
from compress.reports.study_view import StudyView, metric_title, signed_interval, smaller, way_of

CSV, FOREST, HEAT, PAGE = "cells.csv", "forest.png", "heatmap.png", "report.html"


def write_report(directory: Path, receipt: Mapping[str, Any]) -> None:
    """Write cells.csv, forest.png, heatmap.png and report.html into a study's directory."""
    view = StudyView(receipt)
    write_atomic(directory / CSV, cells_csv(receipt))
    forest(view, directory / FOREST)
    pictures = [FOREST]
    if heat(view, directory / HEAT):
        pictures.append(HEAT)
    write_atomic(directory / PAGE, page(receipt, [directory / name for name in pictures]))


def cells_csv(receipt: Mapping[str, Any]) -> str:
    """A line per cell: what it is, its status, every measure under its dotted name."""
    lines = []
    for cell in receipt.get("cells", ()):
        line = {k: v for k, v in cell.items() if not isinstance(v, (dict, list))}
        line |= {f"data.{k}": v for k, v in cell.get("data", {}).items() if _plain(v)}
        for kind in ("perplexity", "tasks"):
            for name, found in cell.get(kind, {}).items():
                line |= {f"{kind}.{name}.{k}": v for k, v in found.items() if _plain(v)}
        lines.append(line)
    names = list(dict.fromkeys(key for line in lines for key in line))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _plain(value: object) -> bool:
    return not isinstance(value, (dict, list))


def forest(view: StudyView, path: Path) -> None:
    """Draw every set's difference from the reference with its interval, a panel a metric."""
    panels = [(model, metric) for model in view.models for metric in view.metrics(model)]
    if not panels:
        return
    height = 0.9 + 0.26 * max(len(view.calib), 3)
    figure, axes = new_figure(len(panels), 1, (7.2, height * len(panels)))
    for axis, (model, metric) in zip(axes[:, 0], panels):
        names = [r["calib"] for r in view.pooled(model, metric) if r["calib"] != view.reference]
        for place, name in enumerate(reversed(names)):
            row = view.against(model, metric, name)
            if row is None:
                continue
            colour = "#1a7f37" if row["better"] else "#b3261e" if row["worse"] else "#57606a"
            low, high = row.get("ci95", [row["difference"]] * 2)
            axis.plot([low, high], [place, place], color=colour, linewidth=2)
            if "bootstrap95" in row:
                axis.plot(row["bootstrap95"], [place, place], color=colour, linewidth=5, alpha=0.25)
            axis.plot([row["difference"]], [place], "o", color=colour, markersize=5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), [view.short(n) for n in reversed(names)], fontsize=8)
        better = "left" if smaller(metric) else "right"
        title = metric_title(metric, view)
        title += f", {view.short_model(model)}" if len(view.models) > 1 else ""
        axis.set_title(f"{title}: against {view.short(view.reference)}", fontsize=9)
        axis.set_xlabel(
            f"difference, 95 % over seeds (thin) and seeds and items (wide); better is {better}",
            fontsize=8,
        )
        axis.tick_params(labelsize=8)
    save_figure(figure, path)


def heat(view: StudyView, path: Path) -> bool:
    """Draw data by metric, a panel a model; returns whether there was anything to draw."""
    panels = [view.heat(model) for model in view.models]
    panels = [p for p in panels if len(p[1]) > 1 and len(p[2]) > 1]
    if not panels:
        return False
    height = 1.0 + 0.28 * max(len(rows) for _, rows, _ in panels)
    figure, axes = new_figure(len(panels), 1, (7.2, height * len(panels)))
    for axis, (cells, rows, columns) in zip(axes[:, 0], panels):
        draw_heatmap(axis, figure, cells)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set_xticks(range(len(columns)), columns, fontsize=8, rotation=20)
        axis.set_title("0 is the best set of a column, 1 the worst", fontsize=9)
    save_figure(figure, path)
    return True


_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5rem 0;font-size:.9rem}
th,td{padding:.2rem .7rem;text-align:left;border-bottom:1px solid #8884}
th{cursor:pointer} .scroll{overflow-x:auto} img{max-width:100%;background:white}
.better{color:#1a7f37} .worse{color:#b3261e} pre{overflow-x:auto;font-size:.8rem}
@media print{details{display:none} body{margin:0}}
"""
_SORT = """
document.querySelectorAll('th').forEach(h=>h.onclick=()=>{const t=h.closest('table'),
i=[...h.parentNode.children].indexOf(h),b=t.tBodies[0],n=x=>{const v=x.children[i].dataset.v||
x.children[i].textContent;return isNaN(parseFloat(v))?v:parseFloat(v)};const up=t.dataset.s!=i;
t.dataset.s=up?i:'';[...b.rows].sort((p,q)=>{p=n(p);q=n(q);return(p>q?1:p<q?-1:0)*(up?1:-1)})
.forEach(r=>b.append(r))});
"""


def page(receipt: Mapping[str, Any], pictures: list[Path]) -> str:
    """The study as one HTML file: verdict first, sortable tables, pictures inside, no network."""
    view = StudyView(receipt)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>Calibration study</title><style>{_STYLE}</style></head><body>",
        "<h1>Which calibration data prunes best</h1>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in view.verdict) + "</ul>",
        *_images(pictures),
        *_metric_tables(view),
        f"<h2>All tables</h2><pre>{html.escape(study_tables(receipt, width=100, terminal=False))}"
        "</pre>",
        f"<details><summary>{len(view.cells)} cells</summary>{_cells(view)}</details>",
        f"<script>{_SORT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _images(pictures: list[Path]) -> Iterator[str]:
    for path in pictures:
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            yield f"<p><img alt='{path.stem}' src='data:image/png;base64,{data}'></p>"


def _metric_tables(view: StudyView) -> Iterator[str]:
    for model in view.models:
        for metric in view.metrics(model):
            rows = []
            for row in view.pooled(model, metric):
                compared = view.against(model, metric, row["calib"])
                ranks = view.ranks(model, metric).get(row["calib"], ["", ""])
                kind = "" if compared is None else _kind(compared)
                shown = "reference" if compared is None else signed_interval(compared)
                p = "" if compared is None or "p_holm" not in compared else compared["p_holm"]
                rows.append(
                    f"<tr class='{kind}'><td>{html.escape(view.short(row['calib']))}</td>"
                    f"<td>{row['mean']:.4f}</td><td>{row.get('stderr', 0):.4f}</td>"
                    f"<td>{html.escape(shown)}</td><td>{p if p == '' else f'{p:.3g}'}</td>"
                    f"<td>{kind}</td><td>{ranks[0]}</td><td>{ranks[1]}</td></tr>"
                )
            title = metric_title(metric, view)
            title += f", {view.short_model(model)}" if len(view.models) > 1 else ""
            yield (
                f"<h2>{html.escape(title)}</h2><div class='scroll'><table><thead><tr><th>data"
                "<th>mean<th>standard error<th>against the reference (95 %)<th>p, Holm<th>"
                f"<th>best rank<th>worst rank</tr></thead><tbody>{''.join(rows)}</tbody></table>"
                "</div>"
            )


def _kind(row: Mapping[str, Any]) -> str:
    return "better" if row["better"] else "worse" if row["worse"] else ""


def _cells(view: StudyView) -> str:
    lines = []
    for cell in view.cells:
        scores = [f"{k}: {v['value']:.3f}" for k, v in cell.get("perplexity", {}).items()]
        scores += [f"{k}: {v.get('acc', 0):.3f}" for k, v in cell.get("tasks", {}).items()]
        shown = (
            view.short(cell["calib"]), way_of(cell), cell["seed"], cell.get("control", ""),
            cell["status"], ", ".join(scores) or cell.get("error", ""),
        )  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in shown) + "</tr>")
    return (
        "<div class='scroll'><table><thead><tr><th>data<th>way<th>seed<th>control<th>status"
        f"<th>scores</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
