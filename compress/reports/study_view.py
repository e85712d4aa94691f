"""A study's receipt as its tables and pictures look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.reports import formats as fmt


class StudyView:
    """Looks things up in a study's receipt.

    Args:
        receipt: the JSON form.

    Attributes:
        receipt, settings: as they are.
        cells: the lines of the grid.
        comparison: the rows that compare with the reference.
        verdict: sentences.
        reference: the set that all are compared with.
        models: the models of the grid.
        calib: the sets, controls apart, in order.
    """

    def __init__(self, receipt: Mapping[str, Any]) -> None:
        self.receipt = receipt
        self.settings: Mapping[str, Any] = receipt.get("settings", {})
        self.cells: list[dict[str, Any]] = list(receipt.get("cells", ()))
        self.comparison: list[dict[str, Any]] = list(receipt.get("comparison", ()))
        self.verdict: list[str] = list(receipt.get("verdict", ()))
        own = [cell for cell in self.cells if "control" not in cell]
        self.models = list(dict.fromkeys(cell["model"] for cell in own))
        self.calib = list(dict.fromkeys(cell["calib"] for cell in own))
        self.reference = str(self.settings.get("reference") or (self.calib or [""])[0])
        every = dict.fromkeys(cell["calib"] for cell in self.cells)
        self._short = fmt.short_names(every)
        self._models = fmt.short_names(self.models)

    def short(self, calib: str) -> str:
        """A set's name, a path by its last part."""
        return self._short.get(calib, calib)

    def short_model(self, model: str) -> str:
        """A model's name, a path by its last part."""
        return self._models.get(model, model)

    def of_model(self, model: str) -> str:
        """What a title says of the model: nothing where there is one."""
        return f", {self.short_model(model)}" if len(self.models) > 1 else ""

    @property
    def panels(self) -> list[tuple[str, str]]:
        """Every model with every metric."""
        return [(model, metric) for model in self.models for metric in self.metrics(model)]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of one kind of answer: "means", "ranking", "variance", "controls", …"""
        return list(self.receipt.get(name, ()))

    def metrics(self, model: str) -> list[str]:
        """What a model was scored by."""
        found = [row["metric"] for row in self.rows("means") if row["model"] == model]
        return list(dict.fromkeys(found))

    def pooled(self, model: str, metric: str) -> list[dict[str, Any]]:
        """Every set's mean over all ways to prune, the best first."""
        own = [
            row
            for row in self.rows("means")
            if (row["model"], row["metric"]) == (model, metric) and "method" not in row
        ]
        return sorted(own, key=lambda row: row["mean"] * (1 if smaller(metric) else -1))

    def ways(self, model: str, metric: str) -> list[str]:
        """The ways to prune by name."""
        return list(dict.fromkeys(way for _, way in self.by_way(model, metric)))

    def by_way(self, model: str, metric: str) -> dict[tuple[str, str], dict[str, Any]]:
        """(set, way to prune) -> its mean."""
        return {
            (row["calib"], way_of(row)): row
            for row in self.rows("means")
            if (row["model"], row["metric"]) == (model, metric) and "method" in row
        }

    def against(self, model: str, metric: str, calib: str) -> dict[str, Any] | None:
        """A set's comparison with the reference, pooled; None for the reference itself."""
        for row in self.comparison:
            where = (row.get("model"), row["metric"], row["calib"])
            if where == (model, metric, calib) and "method" not in row:
                return row
        return None

    def ranks(self, model: str, metric: str) -> dict[str, list[int]]:
        """Set -> best and worst rank that it may have."""
        return {
            row["calib"]: row["ranks"]
            for row in self.rows("ranking")
            if (row["model"], row["metric"]) == (model, metric)
        }

    def heat(self, model: str) -> tuple[list[list[float | None]], list[str], list[str]]:
        """Cells [sets][metrics] from 0, the best of a column, to 1, the worst; and their names."""
        metrics = [m for m in self.metrics(model) if self.pooled(model, m)]
        means = {
            (row["calib"], metric): row["mean"]
            for metric in metrics
            for row in self.pooled(model, metric)
        }
        calib = [name for name in self.calib if any((name, m) in means for m in metrics)]
        columns: list[list[float | None]] = []
        for metric in metrics:
            known = [means[c, metric] for c in calib if (c, metric) in means]
            best, worst = (min, max) if smaller(metric) else (max, min)
            low, span = best(known), worst(known) - best(known)
            columns.append(
                [
                    abs((means[c, metric] - low) / span) if span and (c, metric) in means else 0.0
                    for c in calib
                ]
            )
        cells = [list(row) for row in zip(*columns)]
        names = [metric_title(m, self, short=True) for m in metrics]
        return cells, [self.short(c) for c in calib], names


def smaller(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric.startswith("loss:")


def metric_title(metric: str, view: StudyView, *, short: bool = False) -> str:
    """A metric as people call it: "loss on wiki.txt, nats a token"."""
    kind, _, of = metric.partition(":")
    named = fmt.short_names([of])[of]
    if short:
        return named
    if kind == "loss":
        return f"loss on {named}, nats a token (less is better)"
    return f"accuracy on {named} (more is better)"


def way_of(row: Mapping[str, Any]) -> str:
    """A way to prune as tables call it: "wanda 0.5"."""
    rule = row.get("allocation", "uniform")
    shown = row.get("pattern") or f"{row['sparsity']:g}"
    return f"{row['method']}{'' if rule == 'uniform' else f' {rule}'} {shown}"


def signed_interval(row: Mapping[str, Any], decimals: int = 3) -> str:
    """A difference with its interval: "−0.012 (−0.020 … −0.004)"."""
    text = fmt.signed(row["difference"], decimals)
    ends: Sequence[float] | None = row.get("ci95")
    if ends is None:
        return text
    low, high = (fmt.signed(end, decimals) for end in ends)
    return f"{text} ({low} … {high})"
