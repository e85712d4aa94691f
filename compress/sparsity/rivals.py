"""Other allocations beside a run's own: the same model, method and text, in the same walk.

A straight line over the blocks, which knows nothing of spectra, has beaten AlphaPruning in
published tables. So a run by any allocation can be scored beside uniform shares, a plain line and
ATP, whose line is searched on held-out calibration text; differences are paired on the same
examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from compress.checkpoints.plan import Plan
from compress.evaluation.measures import Measures, compare
from compress.numerics.significance import LEVEL, holm
from compress.sparsity import planning
from compress.sparsity.allocators.ground import Ground
from compress.sparsity.allocators.maps import steepest

LINE = "line"


def rival_plans(ground: Ground, digest: str) -> dict[str, Plan]:
    """Plans by uniform shares, by a line of half the steepest slope, and by ATP's searched line.

    The allocation of the run itself is left out.

    Args:
        ground: of the run.
        digest: of the model.

    Raises:
        RequestError: nothing held out to search by.
    """
    settings = ground.settings
    half = steepest(settings.share, len(ground.blocks), ground.bounds) / 2
    every: dict[str, dict[str, Any]] = {
        "uniform": {},
        LINE: {"atp_beta": half, "atp_held_out": None},
        "atp": {"atp_beta": "auto"},
    }
    plans = {}
    for name, options in every.items():
        if name == settings.rule:
            continue
        rule = "atp" if name == LINE else name
        rows = "trim" if settings.trims else "even"
        own = {"allocation": rule, "granularity": None, "rows": rows, **options}
        other = planning.with_settings(ground, dataclasses.replace(settings, **own))
        plans[name] = planning.make_plan(other, planning.measure(other), digest)
    return plans


def compared(
    own: Measures, rivals: Mapping[str, Measures], name: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """The scores of all, and the run's own less each rival's, paired on the same examples.

    Args:
        own: of the run's result.
        rivals: of the others, by allocation.
        name: of the run's allocation.

    Returns:
        "scores" by allocation, as a receipt holds them; "comparison" by rival, in CONTRACT's form,
        each p also corrected over the rivals (Holm) as "p_holm".
    """
    if not rivals:
        return {}
    found = {rival: compare(measured, own) for rival, measured in rivals.items()}
    for kind in ("perplexity", "tasks"):
        for key in {key for parts in found.values() for key in parts.get(kind, {})}:
            entries = [parts[kind][key] for parts in found.values() if key in parts.get(kind, {})]
            tested = [entry for entry in entries if "p" in entry]
            for entry, p in zip(tested, holm([entry["p"] for entry in tested])):
                entry |= {"p_holm": p, "distinguishable": p < LEVEL}
    scores = {n: m.as_receipt() for n, m in {name: own, **rivals}.items()}
    return {"scores": scores, "comparison": found}
