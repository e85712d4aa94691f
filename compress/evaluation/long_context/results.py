"""From outcomes by item to the receipt's entry: means and standard errors, over all and by cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from compress.evaluation.long_context.attention import on_answer, summary
from compress.evaluation.long_context.items import Cell, Item
from compress.evaluation.long_context.scoring import Outcome
from compress.evaluation.shown import Shown
from compress.evaluation.tasks import TaskScore, standard_error

ON_ANSWER = "attention_on_answer"
MEASURES: dict[str, Callable[[Outcome], float]] = {
    "acc": lambda outcome: float(outcome.right),
    "exact_match": lambda outcome: float(outcome.greedy),
    "answer_loss": lambda outcome: outcome.loss,
}


def task_score(
    items: Sequence[Item],
    outcomes: Sequence[Outcome],
    left_out: Sequence[str] = (),
    attention: Mapping[str, Tensor] | None = None,
    layers: Sequence[str] = (),
    shown: Mapping[str, Shown] | None = None,
) -> TaskScore:
    """Sum up a task.

    Args:
        items, outcomes: as score_items takes and gives them.
        left_out: cells that don't fit the model, in words.
        attention, layers: of an AttentionWatch, where there was one.
        shown: item key -> what people read of it.

    Returns:
        A TaskScore whose `acc` is that of the likelihood; `exact_match` and `answer_loss` (nats a
        token of the right answer) stand beside it, and with attention its share on the answer where
        the prompt says it; the outcomes of their items are in `more`.
    """
    values = {
        name: {item.key: measure(outcome) for item, outcome in zip(items, outcomes)}
        for name, measure in MEASURES.items()
    }
    if attention is not None:
        values[ON_ANSWER] = {item.key: on_answer(attention[item.key]) for item in items}
    chance = sum(1 / len(item.answers) for item in items) / len(items)
    others = {"chance": chance}
    for name in values:
        if name != "acc":
            others.update(_mean(name, list(values[name].values())))
    details: dict[str, Any] = {"cells": _cells(items, values)}
    if left_out:
        details["left_out"] = list(left_out)
    if attention is not None:
        details["attention"] = summary([attention[item.key] for item in items], layers)
    overall = _mean("acc", list(values["acc"].values()))
    return TaskScore(
        acc=overall["acc"],
        stderr=overall.get("acc_stderr"),
        n=len(items),
        items=values.pop("acc"),
        others=others,
        more=values,
        details=details,
        shown=dict(shown or {}),
    )


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return a mean and its standard error under names of their own."""
    found = {name: sum(values) / len(values)}
    error = standard_error(values)
    return found if error is None else {**found, f"{name}_stderr": error}


def _cells(
    items: Sequence[Item], values: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    by_cell: dict[Cell, list[Item]] = {}
    for item in items:
        by_cell.setdefault(item.cell, []).append(item)
    rows = []
    for cell, members in by_cell.items():
        row: dict[str, Any] = dict(cell)
        row["n"] = len(members)
        for name, outcomes in values.items():
            found = _mean(name, [outcomes[item.key] for item in members])
            if name == "acc":  # CONTRACT's names
                found = {k.replace("acc_stderr", "stderr"): v for k, v in found.items()}
            row.update(found)
        rows.append(row)
    return sorted(rows, key=lambda row: [row[name] for name, _ in items[0].cell])
