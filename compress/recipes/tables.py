"""The receipts of a run as the rows of one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError
from compress.recipes.graph import RECEIPT, Graph

if TYPE_CHECKING:
    from compress.reports.compare import Report

_MEASURED = ("perplexity", "tasks", "accuracy", "wer")


def rows_of(graph: Graph, root: Path) -> list[dict[str, str]]:
    """Which receipts make the table: those of the steps that `report:` names, or all that measure.

    Returns:
        {"name": of the row, "receipt": path below the run's directory}.
    """
    wanted = graph.recipe.report
    rows = []
    for instance in graph.instances.values():
        path = root / instance.place / RECEIPT
        if (wanted and instance.step.name not in wanted) or not path.is_file():
            continue
        if _measures(json.loads(path.read_text(encoding="utf-8"))):
            rows.append({"name": graph.rows(instance), "receipt": f"{instance.place}/{RECEIPT}"})
    return rows


def table_of(root: Path) -> Report | None:
    """The table of a run's directory; None where nothing was measured."""
    from compress.reports.compare import report

    try:
        return report([root])
    except CompressError:
        return None


def _measures(data: dict[str, Any]) -> bool:
    if "models" in data or isinstance(data.get("cells"), list):
        return True
    after = data.get("after") or {}
    return any(key in after for key in _MEASURED) or "training" in data or "skill" in data
