"""The study's answer in sentences; it may be "no difference"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compress.study.journal import FAILED, Outcome
from compress.study.settings import StudySettings


def verdict(
    found: Mapping[str, Any],
    comparison: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Outcome],
    settings: StudySettings,
    reference: str,
) -> list[str]:
    """Say what the comparisons with the reference, pooled over the ways to prune, come to.

    Args:
        found: what `answer` gave, without its comparisons.
        comparison: those.
        outcomes: all cells.
        settings: of the study.
        reference: what all are compared with.
    """
    pooled = [row for row in comparison if "method" not in row]
    several = len({row["model"] for row in pooled}) > 1
    lines = []
    for model in dict.fromkeys(row["model"] for row in pooled):
        for metric in dict.fromkeys(row["metric"] for row in pooled):
            own = [r for r in pooled if (r["model"], r["metric"]) == (model, metric)]
            if own:
                where = f"{metric}, {model}" if several else metric
                lines.append(f"{where}: {_one(own, reference)}.{_together(found, model, metric)}")
    lines += _doubts(found, outcomes, settings)
    return lines


def _one(rows: Sequence[Mapping[str, Any]], reference: str) -> str:
    better = [row for row in rows if row["better"]]
    worse = [row for row in rows if row["worse"]]
    if all(row["basis"] != "seeds" for row in rows):
        return "no verdict: the noise of drawing the sets isn't known from these seeds"
    if not better and not worse:
        count = rows[0].get("comparisons", len(rows))
        least = min(row["p_holm"] for row in rows if "p_holm" in row)
        return (
            f"no difference: no set can be told from `{reference}` (least p {least:.2g} after "
            f"Holm's correction for {count} comparisons)"
        )
    parts = [
        f"{word} than `{reference}`: " + ", ".join(_named(row) for row in chosen)
        for word, chosen in (("better", better), ("worse", worse))
        if chosen
    ]
    if not better:
        parts.append(f"none is better than `{reference}`")
    return "; ".join(parts)


def _named(row: Mapping[str, Any]) -> str:
    remarks = [f"{row['difference']:+.3f}"]
    remarks += ["same data set"] if row.get("in_domain") else []
    remarks += ["on these items; others may differ"] if row.get("other_items") is False else []
    return f"`{row['calib']}` ({', '.join(remarks)})"


def _together(found: Mapping[str, Any], model: str, metric: str) -> str:
    """Which sets share the first rank."""
    rows = [r for r in found["ranking"] if (r["model"], r["metric"]) == (model, metric)]
    best = [row["calib"] for row in rows if row["ranks"][0] == 1]
    if len(rows) < 2:
        return ""
    if len(best) == 1:
        return f" First: `{best[0]}` alone."
    names = ", ".join(f"`{name}`" for name in best[:6]) + (" …" if len(best) > 6 else "")
    which = "all" if len(best) == len(rows) else "these"
    return f" First: {which} {len(best)}, which can't be told apart: {names}."


def _doubts(
    found: Mapping[str, Any], outcomes: Sequence[Outcome], settings: StudySettings
) -> Iterator[str]:
    """What the answer must not be believed without."""
    wrong = [row for row in found["controls"] if not row["passed"]]
    exact = [row["text"] for row in wrong if row["control"] != "bad end"]
    if exact:
        yield f"Controls failed, so nothing above can be trusted: {'; '.join(exact)}."
    blind = sorted({row["metric"] for row in wrong if row["control"] == "bad end"})
    if blind:
        names = ", ".join(blind)
        yield f"Blind to bad data (dots or random characters do as well as text): {names}."
    failed = {o.cell.setting.label for o in outcomes if o.status == FAILED}
    if failed:
        yield f"Left out of what is pooled, since cells failed: {', '.join(sorted(failed))}."
    if settings.controls == "none":
        yield "No controls ran (--controls none)."
