"""How much rank which layer gets: pure functions on costs and errors.

A unit (a layer, or layers that share a factor) has m outputs, n inputs, m n weights as it is and
r (m + n) as two factors of rank r. Its error at a rank is the share of its output energy that is
lost, so that loud layers don't eat the budget. To stay as it is costs m n and has no error, and
near the break-even rank m n / (m + n) that is the better bargain: it is one of the choices.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DENSE = 0
"""The rank that stands for a unit that stays as it is."""
WORTHWHILE = (
    0.9  # of a unit's weights: factors that hold more aren't offered beside the unit itself
)
_GRID = 20_000  # steps of the budget where costs have no common measure


class Unreachable(ValueError):
    """No choice of ranks keeps a budget.

    Attributes:
        least: the smallest share of the weights that can be kept.
    """

    def __init__(self, least: float) -> None:
        super().__init__(f"at least {least:.4f} of the weights have to be kept")
        self.least = least


@dataclass(frozen=True)
class Item:
    """What one unit may become.

    Attributes:
        dense: weights as it is.
        cost: weights for each unit of rank.
        ranks: ranks that it may have, ascending; none where no rank saves anything.
        errors: the error at each.
        weight: by which its errors count.
    """

    dense: int
    cost: int
    ranks: tuple[int, ...]
    errors: tuple[float, ...]
    weight: float = 1.0

    def kept(self, rank: int) -> int:
        """Weights held at a rank."""
        return self.dense if rank == DENSE else rank * self.cost

    def error(self, rank: int) -> float:
        """The weighted error at one of its ranks."""
        return 0.0 if rank == DENSE else self.weight * self.errors[self.ranks.index(rank)]

    @property
    def least(self) -> int:
        """The fewest weights that it can have."""
        return self.ranks[0] * self.cost if self.ranks else self.dense


def steps(most: int, smallest_side: int, step: int | None, least: int) -> tuple[int, ...]:
    """Return the ranks that a unit may have: multiples of a step from the least to the most.

    Args:
        most: the largest rank that saves weights.
        smallest_side: min(m, n) of the unit.
        step: ranks are its multiples; None is 8, or the largest power of two below it that is at
            most a sixteenth of the smaller side.
        least: the least rank wanted.
    """
    if step is None:
        step = 8
        while step > 1 and step > smallest_side // 16:
            step //= 2
    first = max(step, math.ceil(least / step) * step)
    found = tuple(range(first, most + 1, step))
    return found or ((most,) if most >= least and most > 0 else ())


def worthwhile(ranks: Sequence[int], cost: int, dense: int) -> tuple[int, ...]:
    """Leave out the ranks at which the unit itself costs hardly more; one is always left."""
    kept = tuple(r for r in ranks if r * cost <= WORTHWHILE * dense)
    return kept or tuple(ranks[:1])


def total_kept(items: Sequence[Item], ranks: Sequence[int]) -> int:
    """Weights held by a choice of ranks."""
    return sum(item.kept(rank) for item, rank in zip(items, ranks, strict=True))


def total_error(items: Sequence[Item], ranks: Sequence[int]) -> float:
    """The sum of weighted errors."""
    return sum(item.error(rank) for item, rank in zip(items, ranks, strict=True))


def uniform(items: Sequence[Item], keep: float) -> list[int]:
    """The same share of the weights kept everywhere, rounded down to the next rank.

    Raises:
        Unreachable: the ranks allowed hold more.
    """
    ranks = [_below(item, keep * item.dense) for item in items]
    return _checked(items, ranks, keep * _weights(items))


def energy(items: Sequence[Item], threshold: float) -> list[int]:
    """The least rank that keeps a share of each unit's energy; the unit itself where none does.

    Source: Kamahori et al., LiteASR, arXiv:2502.20583.
    """
    ranks = []
    for item in items:
        enough = (r for r, e in zip(item.ranks, item.errors, strict=True) if e <= 1 - threshold)
        ranks.append(next(enough, DENSE))
    return ranks


def energy_within(items: Sequence[Item], keep: float) -> tuple[list[int], float]:
    """The highest common share of energy whose ranks keep a budget, and that share.

    Raises:
        Unreachable: even the least ranks hold more.
    """
    budget = keep * _weights(items)
    levels = sorted({1 - e for item in items for e in item.errors} | {0.0, 1.0})
    low, high = 0, len(levels)
    _checked(items, energy(items, levels[0]), budget)
    while high - low > 1:
        middle = (low + high) // 2
        if total_kept(items, energy(items, levels[middle])) <= budget:
            low = middle
        else:
            high = middle
    return energy(items, levels[low]), levels[low]


def greedy(items: Sequence[Item], budget: int) -> list[int]:
    """Take the step of rank that lowers the error most for each weight it costs, again and again.

    Optimal for the budget that it ends at, as long as errors fall ever more slowly, which those of
    an optimal truncation do. A unit at its highest rank may become dense in one last step.

    Raises:
        Unreachable: even the least ranks hold more.
    """
    ranks = [item.ranks[0] if item.ranks else DENSE for item in items]
    _checked(items, ranks, budget)
    left = budget - total_kept(items, ranks)
    heap = [entry for i, item in enumerate(items) if (entry := _step(item, ranks[i], i))]
    heapq.heapify(heap)
    while heap:
        _, index, rank, price = heapq.heappop(heap)
        if price > left:
            continue  # cheaper steps of other units may still fit
        left -= price
        ranks[index] = rank
        following = _step(items[index], rank, index)
        if following:
            heapq.heappush(heap, following)
    return ranks


def knapsack(items: Sequence[Item], budget: int) -> list[int]:
    """The choice of one rank (or dense) for every unit with the least error within a budget.

    A multiple-choice knapsack, by dynamic programming over the budget in steps of the costs'
    greatest common divisor: exact. Where that would be more than 20,000 steps the costs are rounded
    up to that many (never above the budget), and what rounding left over is spent afterwards.

    Raises:
        Unreachable: even the least ranks hold more.

    Cost: O(units * choices * steps).
    """
    least = [item.ranks[0] if item.ranks else DENSE for item in items]
    _checked(items, least, budget)
    unit = math.gcd(*(c for item in items for c in (item.dense, item.cost)))
    unit = max(unit, math.ceil(budget / _GRID))
    size = budget // unit
    options = [_options(item, unit) for item in items]
    best: NDArray[np.float64] = np.zeros(size + 1)
    taken: list[NDArray[np.int16]] = []
    for choices in options:
        following = np.full(size + 1, np.inf)
        which = np.zeros(size + 1, np.int16)
        for number, (_, price, error) in enumerate(choices):
            if price > size:
                continue
            value = best[: size + 1 - price] + error
            better = value < following[price:]
            following[price:][better] = value[better]
            which[price:][better] = number
        best = following
        taken.append(which)
    if not math.isfinite(best[size]):  # rounding up has closed every way
        return greedy(items, budget)
    ranks, place = [DENSE] * len(items), size
    for index in range(len(items) - 1, -1, -1):
        rank, price, _ = options[index][taken[index][place]]
        ranks[index] = rank
        place -= price
    _spend(items, ranks, budget)
    return min((ranks, greedy(items, budget)), key=lambda found: total_error(items, found))


def _options(item: Item, unit: int) -> list[tuple[int, int, float]]:
    """(rank, price in steps, error) of each choice of a unit."""
    ranks = [*item.ranks, DENSE]
    return [(r, math.ceil(item.kept(r) / unit), item.error(r)) for r in ranks]


def _spend(items: Sequence[Item], ranks: list[int], budget: int) -> None:
    """Raise ranks in place while what is left of the budget allows a step."""
    left = budget - total_kept(items, ranks)
    heap = [entry for i, item in enumerate(items) if (entry := _step(item, ranks[i], i))]
    heapq.heapify(heap)
    while heap:
        _, index, rank, price = heapq.heappop(heap)
        if price <= left:
            left -= price
            ranks[index] = rank
            following = _step(items[index], rank, index)
            if following:
                heapq.heappush(heap, following)


def _step(item: Item, rank: int, index: int) -> tuple[float, int, int, int] | None:
    """(-gain per weight, index, next rank, price) of a unit's next step, None where it is dense."""
    if rank == DENSE:
        return None
    place = item.ranks.index(rank) + 1
    following = item.ranks[place] if place < len(item.ranks) else DENSE
    price = item.kept(following) - item.kept(rank)
    gain = item.error(rank) - item.error(following)
    return -gain / max(price, 1), index, following, price


def _below(item: Item, weights: float) -> int:
    """The largest rank whose factors hold at most so many weights; the least one if none does."""
    if weights >= item.dense or not item.ranks:
        return DENSE
    fitting = [r for r in item.ranks if r * item.cost <= weights]
    return fitting[-1] if fitting else item.ranks[0]


def _weights(items: Sequence[Item]) -> int:
    return sum(item.dense for item in items)


def _checked(items: Sequence[Item], ranks: list[int], budget: float) -> list[int]:
    if total_kept(items, ranks) > budget * (1 + 1e-12):
        raise Unreachable(sum(item.least for item in items) / max(_weights(items), 1))
    return ranks
