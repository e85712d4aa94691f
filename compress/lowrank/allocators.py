"""Published rules for spreading rank, on numbers alone; what is ours is said.

Letters: κ the share of a unit's weights that is kept, e_l(r) the share of its output energy lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from compress.lowrank.allocation import DENSE, Item, Unreachable, total_kept
from compress.numerics.allocation import allocate

LEMS_ALPHA, LEMS_GAMMA = 0.0, 5.0
LEMS_REFERENCE = 0.1  # of the break-even rank: where a unit is tried alone
LEMS_FLOOR, LEMS_LOW_FLOOR, LEMS_LOW = 0.3, 0.1, 0.5  # of the break-even rank; below keep 0.5
SWIFT_EVEN = 0.5  # δ: share of the budget that is spread evenly
SWIFT_ALPHAS = tuple(k / 10 for k in range(11))


def by_shares(items: Sequence[Item], shares: Sequence[float], budget: float) -> list[int]:
    """Turn shares of weights kept into ranks: the largest that fit, dense from a share of 1.

    Raises:
        Unreachable: the least ranks hold more than the budget.
    """
    ranks = []
    for item, share in zip(items, shares, strict=True):
        fitting = [r for r in item.ranks if r * item.cost <= share * item.dense * (1 + 1e-12)]
        dense = share >= 1 - 1e-9 or not item.ranks
        ranks.append(DENSE if dense else fitting[-1] if fitting else item.ranks[0])
    if total_kept(items, ranks) > budget * (1 + 1e-9):
        raise Unreachable(sum(i.least for i in items) / max(sum(i.dense for i in items), 1))
    return ranks


def svdllm_v2(
    items: Sequence[Item], kinds: Sequence[str], losses: Sequence[float], keep: float
) -> list[int]:
    """Remove most from the layers of a kind that lose least by an even removal.

    As printed, R_l = N R q_l / Σq with q = 1 / ln L depends on the scale of L and is negative or
    unbounded for L ≤ 1. Here L is relative and counted from the smallest of its kind,
    q = 1 / (1 + ln(L / min L)), and the shares are bounded with an exact total.

    Args:
        items: the units.
        kinds: of each, such as q_proj.
        losses: relative losses at the even share.
        keep: κ of every kind.

    Source: Wang et al., SVD-LLM V2, arXiv:2503.12340; the repair is ours.
    """
    shares = [1.0] * len(items)
    for kind in dict.fromkeys(kinds):
        own = [i for i, k in enumerate(kinds) if k == kind]
        least = max(min(losses[i] for i in own), 1e-12)
        q = [1 / (1 + math.log(max(losses[i], least) / least)) for i in own]
        most = 1 - max(items[i].least / items[i].dense for i in own)
        removed = _allocated(q, [items[i].dense for i in own], 1 - keep, (0.0, most), items)
        for i, part in zip(own, removed, strict=True):
            shares[i] = 1 - part
    return by_shares(items, shares, keep * sum(i.dense for i in items))


def swift(
    items: Sequence[Item],
    importance: Sequence[float],
    losses: Sequence[float],
    keep: float,
    alpha: float,
) -> list[int]:
    """Half the budget evenly, half by s = β^α ln(e + ε)^(1 − α).

    Args:
        items: the units.
        importance: of each, any scale; β is it mapped to [1, 2].
        losses: ε, relative losses at the even share.
        keep: κ.
        alpha: between losses (0) and importance (1).

    Source: Swift-SVD, arXiv:2604.01609, in weights kept instead of ranks, so that layers of any
    shape can be compared; importance is the divergence of the outputs where the unit alone is
    compressed, which is ours.
    """
    low, high = min(importance), max(importance)
    beta = [1 + (v - low) / (high - low) if high > low else 1.0 for v in importance]
    s = [b**alpha * math.log(math.e + e) ** (1 - alpha) for b, e in zip(beta, losses, strict=True)]
    even = SWIFT_EVEN * keep
    sizes = [item.dense for item in items]
    more = _allocated(s, sizes, keep - even, (0.0, 1 - even), items)
    return by_shares(items, [even + part for part in more], keep * sum(sizes))


def lems(
    items: Sequence[Item],
    divergence: Sequence[float],
    reference: Sequence[float],
    blocks: Sequence[str],
    *,
    alpha: float = LEMS_ALPHA,
    gamma: float = LEMS_GAMMA,
) -> list[Item]:
    """Weigh units by what the model loses where each alone is compressed, early blocks more.

    e_l(r) = KL_l (1 − E_l(r)) / (1 − E_l(r_ref)) (1 + γ h_l), with h_l the sum of (k + 1)^−α over
    the blocks from l on, mapped to [0, 1].

    Args:
        items: the units.
        divergence: KL_l.
        reference: 1 − E_l(r_ref), the energy lost at the rank at which it was measured.
        blocks: of each unit.
        alpha, gamma: as above.

    Returns:
        The items with weights, for the knapsack.

    Source: LEMS (ICML 2026).
    """
    order = list(dict.fromkeys(blocks))
    tails = [sum((k + 1) ** -alpha for k in range(i, len(order))) for i in range(len(order))]
    low, high = min(tails), max(tails)
    h = {b: (t - low) / (high - low) if high > low else 0.0 for b, t in zip(order, tails)}
    return [
        replace(item, weight=kl / max(lost, 1e-12) * (1 + gamma * h[block]))
        for item, kl, lost, block in zip(items, divergence, reference, blocks, strict=True)
    ]


def floored(items: Sequence[Item], most: Sequence[int], keep: float) -> list[Item]:
    """Leave out the ranks below LEMS's floor, a share of each unit's break-even rank."""
    share = LEMS_LOW_FLOOR if keep < LEMS_LOW else LEMS_FLOOR
    out = []
    for item, top in zip(items, most, strict=True):
        kept = [i for i, r in enumerate(item.ranks) if r >= share * top] or [len(item.ranks) - 1]
        if item.ranks:
            ranks, errors = tuple(item.ranks[i] for i in kept), tuple(item.errors[i] for i in kept)
            item = replace(item, ranks=ranks, errors=errors)
        out.append(item)
    return out


def _allocated(
    ratio: Sequence[float],
    sizes: Sequence[int],
    share: float,
    bounds: tuple[float, float],
    items: Sequence[Item],
) -> list[float]:
    try:
        found = allocate(torch.tensor(ratio, dtype=torch.float64), sizes, share, bounds)
    except ValueError as error:
        least = sum(i.least for i in items) / max(sum(i.dense for i in items), 1)
        raise Unreachable(least) from error
    return found.tolist()
