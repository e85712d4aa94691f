"""The files of a study for people: cells as CSV, the forest plot, the heat map, one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.reports.compare import Report
from compress.reports.heatmap import draw_heatmap
from compress.reports.pictures import new_figure, save_figure
from compress.reports.receipt import write_atomic
from compress.reports.study import study_tables
from compress.reports.study_page import study_page
from compress.reports.study_view import StudyView, metric_title, smaller

_FIRST = ("model", "calib", "format", "method", "allocation", "sparsity", "pattern", "seed",
          "control", "status")  # fmt: skip
CSV, FOREST, HEAT, PAGE = "cells.csv", "forest.png", "heatmap.png", "report.html"


def write_report(directory: Path, receipt: Mapping[str, Any]) -> None:
    """Write cells.csv, forest.png, heatmap.png and report.html into a study's directory."""
    view = StudyView(receipt)
    write_atomic(directory / CSV, cells_csv(receipt))
    forest(view, directory / FOREST)
    heat(view, directory / HEAT)
    write_atomic(directory / PAGE, study_page(receipt))


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
    found = dict.fromkeys(key for line in lines for key in line)
    names = list(dict.fromkeys([*(name for name in _FIRST if name in found), *found]))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _plain(value: object) -> bool:
    return not isinstance(value, (dict, list))


def forest(view: StudyView, path: Path) -> None:
    """Draw every set's difference from the reference with its interval, a panel a metric."""
    panels = view.panels
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
        title = f"{metric_title(metric, view)}{view.of_model(model)}"
        axis.set_title(f"{title}: against {view.short(view.reference)}", fontsize=9)
        axis.set_xlabel(
            f"difference, 95 % over seeds (thin) and seeds and items (wide); better is {better}",
            fontsize=8,
        )
        axis.tick_params(labelsize=8)
    save_figure(figure, path)


def heat(view: StudyView, path: Path) -> None:
    """Draw data by metric, a panel a model, where there are two of each."""
    panels = [view.heat(model) for model in view.models]
    panels = [p for p in panels if len(p[1]) > 1 and len(p[2]) > 1]
    if not panels:
        return
    height = 1.0 + 0.28 * max(len(rows) for _, rows, _ in panels)
    figure, axes = new_figure(len(panels), 1, (7.2, height * len(panels)))
    for axis, (cells, rows, columns) in zip(axes[:, 0], panels):
        draw_heatmap(axis, figure, cells)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set_xticks(range(len(columns)), columns, fontsize=8, rotation=20)
        axis.set_title("0 is the best set of a column, 1 the worst", fontsize=9)
    save_figure(figure, path)


@dataclass(frozen=True)
class StudyReport(Report):
    """One study, as `compress report` shows it.

    Attributes:
        receipt: its JSON form.
        directory: where it lies.
    """

    receipt: Mapping[str, Any] = field(default_factory=dict)
    directory: Path = Path()

    def as_dict(self) -> dict[str, Any]:
        """The receipt."""
        return dict(self.receipt)

    def render(self, *, width: int | None = None, terminal: bool | None = None) -> str:
        """The tables for people."""
        return study_tables(self.receipt, output=self.directory, width=width, terminal=terminal)

    def to_csv(self) -> str:
        """A line per cell."""
        return cells_csv(self.receipt)

    def to_markdown(self) -> str:
        """The tables as they are in the terminal."""
        return f"```\n{self.render(width=100, terminal=False)}\n```\n"

    def to_html(self) -> str:
        """The study's page."""
        return study_page(self.receipt)

    def draw(self, path: str | Path) -> None:
        """Draw the forest plot."""
        forest(StudyView(self.receipt), Path(path))
