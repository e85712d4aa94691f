"""The null controls of a study: what must not differ doesn't, and what must be bad is.

- magnitude pruning reads no data: over all corpora its weights must be the same to the last bit;
- a cell done again from its calibration text must be the same, weights and scores;
- dots and random characters are no text: where they are not clearly the worst, the study can't tell
  good data from bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from compress.study.cells import BAD_END, MAGNITUDE, REPEAT
from compress.study.journal import OK, Outcome
from compress.study.outcomes import Grid


def check_controls(outcomes: Sequence[Outcome], grid: Grid) -> list[dict[str, Any]]:
    """What the controls of one model say; those that didn't run are absent.

    Returns:
        Objects with "control", "passed" and "text".
    """
    return [*_magnitude(outcomes), *_repeat(outcomes), *_bad_ends(outcomes, grid)]


def _magnitude(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    found: dict[Any, dict[str, str]] = {}
    for o in outcomes:
        data_free = o.cell.setting.method == "magnitude" and o.cell.control in (MAGNITUDE, "")
        if o.status == OK and data_free:
            found.setdefault(o.cell.setting, {})[o.cell.calib] = o.digest
    several = {s: digests for s, digests in found.items() if len(digests) > 1}
    if not several:
        return []
    odd = [s.label for s, digests in several.items() if len(set(digests.values())) > 1]
    corpora = max(map(len, several.values()))
    text = f"magnitude pruning, which reads no data, over {corpora} sets: " + (
        f"different weights ({', '.join(odd)})" if odd else "the same weights to the last bit"
    )
    return [{"control": "magnitude", "passed": not odd, "text": text}]


def _repeat(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    by_cell = {o.cell: o for o in outcomes}
    rows = []
    for o in outcomes:
        twin = by_cell.get(replace(o.cell, control=""))
        if o.cell.control != REPEAT or twin is None or {o.status, twin.status} != {OK}:
            continue
        same = (o.digest, o.scores, o.items) == (twin.digest, twin.scores, twin.items)
        what = "weights" if o.digest != twin.digest else "scores"
        text = f"{twin.cell.name}, done twice: " + (
            "the same weights and scores to the last bit" if same else f"different {what}"
        )
        rows.append({"control": "repeat", "passed": same, "text": text})
    return rows


def _bad_ends(outcomes: Sequence[Outcome], grid: Grid) -> list[dict[str, Any]]:
    bad = Grid.of(outcomes, BAD_END)
    rows = []
    for calib in bad.calib:
        for metric in bad.metrics if grid.calib else []:
            own = bad.trials(calib, metric).means
            others = {c: grid.trials(c, metric).means for c in grid.calib}
            means = {c: float(m.mean()) for c, m in others.items() if len(m)}
            if not len(own) or not means:
                continue
            mean = float(own.mean())
            no_worse = [c for c, m in means.items() if (mean <= m if metric.smaller else mean >= m)]
            text = f"`{calib}` on {metric.of}: {mean:.3f}, " + (
                f"no worse than {', '.join(no_worse)}: this metric can't tell bad data there"
                if no_worse
                else f"worse than all {len(means)} sets"
            )
            rows.append(
                {
                    "control": "bad end",
                    "calib": calib,
                    "metric": metric.name,
                    "mean": mean,
                    "passed": not no_worse,
                    "text": text,
                }
            )
    return rows
