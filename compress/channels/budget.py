"""Which units to keep so that the network fits a budget: one order of all units, one cut in it.

Every scope is an order of all units, best first: by score (global), by rank within the groups of
one structure (isomorphic) or within the group itself (uniform). The cut is the largest number n of
units from the front of that order for which the cost, widths rounded, is within the budget. Costs
are not linear in n, so the cut is found by bisection on the closed form (15 evaluations for 30,000
units, no forward pass); rounding is part of what is evaluated, so the budget holds after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.channels.groups import Group
from compress.errors import RequestError

SCOPES = ("global", "isomorphic", "uniform")
Cost = Callable[[Tensor], Tensor]
"""Units kept [..., G] -> cost [...]."""


@dataclass(frozen=True)
class Bounds:
    """The fewest units of each group, and the steps in which their number goes down.

    Attributes:
        least: int64 [G].
        step: int64 [G].
        width: int64 [G].
    """

    least: Tensor
    step: Tensor
    width: Tensor

    def rounded(self, counts: Tensor) -> Tensor:
        """Round numbers of units [..., G] down to what may be kept; the full width always may.

        Never below `least`; growing counts never give fewer.
        """
        down = torch.div(counts, self.step, rounding_mode="floor") * self.step
        down = torch.maximum(down, self.least)
        return torch.where(counts >= self.width, self.width, down)

    def to(self, device: str | torch.device) -> Bounds:
        """Return the same on another device."""
        return Bounds(self.least.to(device), self.step.to(device), self.width.to(device))


def bounds(groups: Sequence[Group], *, min_keep: float = 0.1, round_to: int = 1) -> Bounds:
    """Return the floors max(1, ceil(min_keep · width)), up to the next step, and the steps.

    Args:
        groups: the coupled groups.
        min_keep: share of each group's units that stays whatever their scores.
        round_to: channel counts become multiples of it. A group narrower than one step keeps all.
    """
    steps = [group.step(round_to) for group in groups]
    least = [
        min(group.width, math.ceil(max(1, math.ceil(min_keep * group.width - 1e-9)) / step) * step)
        for group, step in zip(groups, steps, strict=True)
    ]
    width = torch.tensor([group.width for group in groups])
    return Bounds(torch.tensor(least), torch.tensor(steps), width)


def keep_for_budget(
    scores: Sequence[Tensor],
    groups: Sequence[Group],
    cost: Cost,
    target: float,
    *,
    limits: Bounds | None = None,
    scope: str = "global",
    check: bool = True,
    fill: bool = False,
) -> list[Tensor]:
    """Choose the units to keep: as many from the front of the order as the budget allows.

    Args:
        scores: for each group float [width], higher is better, on one device.
        groups: the coupled groups.
        cost: what is to be bounded, such as `costs.macs_of`; must not fall as units are added.
        target: the most that it may be.
        limits: floors and rounding; default: at least 1 unit, no rounding.
        scope: one of SCOPES.
        check: look whether the budget can be reached at all (a sync on an accelerator).
        fill: go on behind the cut and take what still fits, in order: where rounding makes steps
            large, the first that doesn't fit leaves much of the budget unused. (Without it a larger
            budget never keeps less of any group.)

    Returns:
        For each group bool [width], True = keep. The cost is at most `target`; one more unit of
        the order (or the next step of rounding) would exceed it, unless all are kept.

    Raises:
        RequestError: even the floors cost more; the least that can be reached is said.
    """
    device = scores[0].device
    allowed = (limits or bounds(groups)).to(device)
    if check:
        check_reachable(cost, target, allowed)
    place, owner = unit_order(scores, groups, scope, allowed.least)
    total = len(place)
    low = torch.zeros((), dtype=torch.int64, device=device)  # fits
    high = torch.full((), total + 1, dtype=torch.int64, device=device)  # taken not to fit
    for _ in range(math.ceil(math.log2(total + 2)) + 1):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        fits = cost(_counts(place, owner, middle, allowed)) <= target
        low = torch.where(fits, middle, low)
        high = torch.where(fits, high, middle)
    counts = _counts(place, owner, low, allowed)
    if fill:
        counts = _filled(counts, scores, place, cost, target, allowed)
    return top_units(scores, counts)


def check_reachable(cost: Cost, target: float, limits: Bounds) -> None:
    """Refuse a budget below what all groups at their floors cost.

    Raises:
        RequestError: the least that can be reached is said.
    """
    least = float(cost(limits.least))
    if least > target:
        whole = float(cost(limits.width))
        reachable = math.ceil(least / whole * 1000) / 1000
        raise RequestError(
            f"the budget of {target / whole:.3g} of the network can't be reached: with every "
            f"group at its floor {least / whole:.3g} is left",
            f"ask for {reachable:g} or more, or lower `--min-keep` and `--round-to`",
        )


def keep_by_ratio(
    scores: Sequence[Tensor], groups: Sequence[Group], ratio: float, limits: Bounds
) -> list[Tensor]:
    """Remove a share of the units of every group.

    Args:
        scores: for each group float [width].
        groups: the coupled groups.
        ratio: share removed; the number kept is rounded to the nearest unit, then down to a step.
        limits: floors and rounding.
    """
    counts = torch.tensor([round((1 - ratio) * group.width) for group in groups])
    return top_units(scores, limits.rounded(counts).to(scores[0].device))


def unit_order(
    scores: Sequence[Tensor], groups: Sequence[Group], scope: str, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the place of every unit in the order, and its group, both int64 [N].

    Units that a floor protects come first. Equal scores keep the order of groups and units, so
    that the result doesn't depend on the device.
    """
    device = scores[0].device
    owner = torch.cat([torch.full((g.width,), i, device=device) for i, g in enumerate(groups)])
    ranks = [_rank(score) for score in scores]
    if scope == "global":
        key = torch.cat([score.double() for score in scores])
    else:
        key = -torch.cat(_shares(scores, ranks, groups, scope))
    safe = torch.cat([rank < least[i] for i, rank in enumerate(ranks)])
    key = torch.where(safe, torch.inf, key)
    order = torch.argsort(key, descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=device)
    return place, owner


def top_units(scores: Sequence[Tensor], counts: Tensor) -> list[Tensor]:
    """Return for each group the bool mask of its `counts[g]` best units."""
    return [_rank(score) < counts[i] for i, score in enumerate(scores)]


def kept(masks: Sequence[Tensor]) -> Tensor:
    """Return the number of units kept, int64 [G]."""
    return torch.stack([mask.sum() for mask in masks])


def _counts(place: Tensor, owner: Tensor, cut: Tensor, allowed: Bounds) -> Tensor:
    """Return the units that each group keeps if the first `cut` of the order stay."""
    counts = torch.zeros(len(allowed.width), dtype=torch.int64, device=place.device)
    counts.index_add_(0, owner, (place < cut).to(torch.int64))
    return allowed.rounded(counts)


def _filled(
    counts: Tensor,
    scores: Sequence[Tensor],
    place: Tensor,
    cost: Cost,
    target: float,
    allowed: Bounds,
) -> Tensor:
    """Take one step after the other: of those that fit, the one whose next unit comes first.

    Ends where no step of any group fits.
    """
    widths = allowed.width.tolist()
    in_order = [part.sort().values for part in place.split(widths)]
    one = torch.eye(len(widths), dtype=torch.int64, device=counts.device)
    while True:
        step = torch.minimum(allowed.step, allowed.width - counts)
        fits = (cost(counts + one * step) <= target) & (step > 0)
        if not bool(fits.any()):
            return counts
        heads = [part[min(n, len(part) - 1)] for part, n in zip(in_order, counts.tolist())]
        first = torch.where(fits, torch.stack(heads), len(place)).argmin()
        counts = counts + one[first] * step


def _rank(score: Tensor) -> Tensor:
    """Return each unit's rank in its group, 0 the best; equal scores in order of index."""
    order = torch.argsort(score.double(), descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank


def _shares(
    scores: Sequence[Tensor], ranks: Sequence[Tensor], groups: Sequence[Group], scope: str
) -> list[Tensor]:
    """Return each unit's rank within its scope, as a share of the scope's units."""
    if scope == "uniform":
        return [(rank.double() + 0.5) / len(rank) for rank in ranks]
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group.scope, []).append(index)
    shares: list[Tensor] = [torch.empty(0)] * len(groups)
    for indices in members.values():
        joined = torch.cat([scores[i].double() for i in indices])
        share = (_rank(joined).double() + 0.5) / len(joined)
        for index, part in zip(
            indices, share.split([groups[i].width for i in indices]), strict=True
        ):
            shares[index] = part
    return shares
