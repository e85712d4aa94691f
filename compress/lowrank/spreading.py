"""Ranks by the rules that try whole models: LEMS and Swift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from compress.lowrank import allocation
from compress.lowrank.allocation import DENSE, Item, Unreachable
from compress.lowrank.allocators import LEMS_REFERENCE, SWIFT_ALPHAS, floored, lems, swift
from compress.lowrank.modules import Unit
from compress.lowrank.planning import budget_of, items_of, unreachable
from compress.lowrank.settings import LowRankSettings
from compress.lowrank.spectra import errors_at
from compress.lowrank.trials import Trials


def spread_by_trials(
    trials: Trials,
    units: Sequence[Unit],
    energies: Mapping[str, Tensor],
    settings: LowRankSettings,
    parameters: int,
) -> tuple[list[int], dict[str, Any]]:
    """Spread rank by what whole models lose.

    Returns:
        A rank for each unit, and facts for the plan's options.

    Raises:
        RequestError: the budget can't be met.
    """
    keep = budget_of(settings, units, parameters)
    items = items_of(units, energies, settings, all_ranks=settings.rule == "swift")
    reference = [max(int(LEMS_REFERENCE * unit.most), 1) for unit in units]
    named = {u.name: r for u, r in zip(units, reference, strict=True)}
    divergence = list(trials.alone(named).values())
    try:
        if settings.rule == "swift":
            return _swift(trials, units, items, divergence, keep)
        lost = [errors_at(energies[u.name], [r])[0] for u, r in zip(units, reference, strict=True)]
        return _lems(units, items, divergence, lost, keep)
    except Unreachable as error:
        raise unreachable(settings, error) from error


def _lems(
    units: Sequence[Unit],
    items: Sequence[Item],
    divergence: Sequence[float],
    lost: Sequence[float],
    keep: float,
) -> tuple[list[int], dict[str, Any]]:
    budget = int(keep * sum(unit.dense for unit in units) + 1e-9)
    weighed = lems(items, divergence, lost, [unit.block for unit in units])
    try:
        ranks = allocation.knapsack(floored(weighed, [u.most for u in units], keep), budget)
    except Unreachable:  # the floor alone is too much for this budget
        ranks = allocation.knapsack(weighed, budget)
    told = {u.name: float(f"{d:.6g}") for u, d in zip(units, divergence, strict=True)}
    return ranks, {"divergence": told}


def _swift(
    trials: Trials,
    units: Sequence[Unit],
    items: Sequence[Item],
    divergence: Sequence[float],
    keep: float,
) -> tuple[list[int], dict[str, Any]]:
    """Try every α, and take the one whose model's outputs move least."""
    even = allocation.uniform(items, keep)
    losses = [item.error(rank) ** 0.5 for item, rank in zip(items, even, strict=True)]
    found: dict[float, tuple[float, list[int]]] = {}
    for alpha in SWIFT_ALPHAS:
        ranks = swift(items, divergence, losses, keep, alpha)
        named = {u.name: r for u, r in zip(units, ranks, strict=True) if r != DENSE}
        found[alpha] = (trials.divergence(named), ranks)
    best = min(found, key=lambda a: (found[a][0], a))
    tried = {f"{a:g}": float(f"{d:.6g}") for a, (d, _) in found.items()}
    return found[best][1], {"swift_alpha": best, "tried": tried}
