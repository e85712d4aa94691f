"""Which examples two models answer differently, and which windows moved most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.evaluation.error_rates import WORDS, ErrorRate
from compress.evaluation.shown import Shown

if TYPE_CHECKING:
    from compress.evaluation.measures import Measures
    from compress.evaluation.perplexity import Perplexity

DEFAULT = 5
"""Rows of each table unless asked for otherwise."""

Changes = dict[str, dict[str, dict[str, Any]]]
"""Kind of measure -> data spec or task -> how many changed and which."""


def changes(before: Measures, after: Measures) -> Changes:
    """List what changed between two models measured on the same examples.

    Returns:
        Kind -> key -> an entry of plain values. Right-or-wrong items: "gained" (wrong before, right
        after), "lost" and "items", the lost ones first. Other outcomes, windows' losses (nats a
        token) and word errors: how many "rose" and "fell", and all that moved, the largest change
        first. What two models don't share is absent, as in `measures.compare`.
    """
    texts = {
        spec: _windows(before.perplexity[spec], value)
        for spec, value in after.perplexity.items()
        if _same_windows(before.perplexity.get(spec), value)
    }
    tasks = {
        name: _items(twin.items, score.items, twin.shown, score.shown)
        for name, score in after.tasks.items()
        if (twin := before.tasks.get(name)) is not None
        and score.items
        and twin.items.keys() == score.items.keys()
    }
    images = {
        spec: _items(old.items, value.items, old.shown, value.shown)
        for spec, value in after.accuracy.items()
        if (old := before.accuracy.get(spec)) and old.items.keys() == value.items.keys()
    }
    speech = {
        spec: _utterances(said, rate)
        for spec, rate in after.wer.items()
        if (said := before.wer.get(spec))
        and (said.digest, said.counts) == (rate.digest, rate.counts)
    }
    found = {"perplexity": texts, "tasks": tasks, "accuracy": images, WORDS: speech}
    return {kind: entries for kind, entries in found.items() if entries}


def _same_windows(one: Perplexity | None, other: Perplexity) -> bool:
    return one is not None and (one.digest, one.stride) == (other.digest, other.stride)


def _windows(before: Perplexity, after: Perplexity) -> dict[str, Any]:
    texts = after.openings or [""] * len(after.losses)
    rows = [
        {"window": number, "before": old, "after": new, **({"text": text} if text else {})}
        for number, (old, new, text) in enumerate(
            zip(before.losses.tolist(), after.losses.tolist(), texts)
        )
    ]
    return _moved(rows, "windows")


def _utterances(before: ErrorRate, after: ErrorRate) -> dict[str, Any]:
    rows = []
    for number, (old, new) in enumerate(zip(before.errors, after.errors)):
        row: dict[str, Any] = {"item": number, "before": old, "after": new}
        if before.shown and after.shown:
            one, other = before.shown[number], after.shown[number]
            row.update(item=one["item"], target=one["target"])
            row.update(answer_before=one["answer"], answer_after=other["answer"])
        rows.append({**row, "words": before.counts[number]})
    return _moved(rows, "items")


def _items(
    before: Mapping[str, float],
    after: Mapping[str, float],
    shown_before: Mapping[str, Shown],
    shown_after: Mapping[str, Shown],
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for key in before:
        row: dict[str, Any] = {"item": key, "before": before[key], "after": after[key]}
        one, other = shown_before.get(key, {}), shown_after.get(key, {})
        row.update({name: one[name] for name in ("question", "target", "choices") if name in one})
        for name in ("answer", "scores"):
            if name in one and name in other:
                row[f"{name}_before"], row[f"{name}_after"] = one[name], other[name]
        rows.append(row)
    if {*before.values(), *after.values()} <= {0.0, 1.0}:
        lost = _where(rows, lambda row: row["before"] > row["after"])
        gained = _where(rows, lambda row: row["before"] < row["after"])
        return {"n": len(rows), "lost": len(lost), "gained": len(gained), "items": [*lost, *gained]}
    return _moved(rows, "items")


def _moved(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Count what rose and fell, and order what did by how far."""
    rose = _where(rows, lambda row: row["after"] > row["before"])
    fell = _where(rows, lambda row: row["after"] < row["before"])
    moved = sorted([*rose, *fell], key=lambda row: -abs(row["after"] - row["before"]))
    return {"n": len(rows), "rose": len(rose), "fell": len(fell), name: moved}


def _where(
    rows: Sequence[dict[str, Any]], true: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    return [row for row in rows if true(row)]
