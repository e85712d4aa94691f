"""How much to remove from each matrix: bounded shares with one exact total, then integer counts.

Letters: n matrices; d_i weights in matrix i; S the global share to remove.

A multiplicative allocator gives ratios r_i and gets clip(eta * r_i, lo, hi); an additive one gives
shares s_i and gets clip(s_i + c, lo, hi). eta and c are the numbers that make sum d_i x_i equal to
S * sum d_i. Both totals are piecewise linear and never fall, so the number is found exactly: bisect
over the sorted breakpoints, then interpolate in the piece that holds the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Bounds = tuple[float, float]

# Shares whose total differs from the target by less than this are the target: rounding of S * d.
_ROUNDING = 1e-12


def allocate(
    ratio: Tensor | Sequence[float],
    sizes: Tensor | Sequence[int],
    sparsity: float,
    bounds: Bounds = (0.0, 0.99),
) -> Tensor:
    """Scale ratios to shares with a given weighted mean: clip(eta * ratio, *bounds).

    Args:
        ratio: [n], >= 0 and finite; relative shares (only their proportions count).
        sizes: [n], > 0; weights in each matrix.
        sparsity: the share of all weights to remove, 0 <= sparsity <= 1.
        bounds: the least and greatest share of one matrix, 0 <= lo <= hi <= 1.

    Returns:
        float64 [n] with sum(sizes * result) = sparsity * sum(sizes) to rounding.

    Raises:
        ValueError: shapes or values out of range; or a bound that can't hold, named together with
            the range of sparsity that can be reached.

    Source: AlphaPruning (Lu et al. 2024), the linear map's eta; the bounds are ours.
    """
    ratio = _vector(ratio, "ratio")
    sizes = _sizes(sizes, len(ratio))
    if bool((ratio < 0).any()):
        raise ValueError(f"ratio: {float(ratio.min())} is negative; ratios must be >= 0")
    return _solve(torch.zeros_like(ratio), ratio, sizes, sparsity, bounds)


def project(
    shares: Tensor | Sequence[float],
    sizes: Tensor | Sequence[int],
    sparsity: float,
    bounds: Bounds = (0.0, 0.99),
) -> Tensor:
    """Shift shares to a given weighted mean: clip(shares + c, *bounds).

    The nearest point (in the least-squares sense weighted by sizes) that has the mean and keeps
    the bounds. Arguments, result and errors as in `allocate`, but shares may have any sign.
    """
    shares = _vector(shares, "shares")
    sizes = _sizes(sizes, len(shares))
    return _solve(shares, torch.ones_like(shares), sizes, sparsity, bounds)


def to_counts(shares: Tensor, sizes: Tensor, sparsity: float) -> Tensor:
    """Turn shares into weights to remove, exact in total.

    Args:
        shares: [n] in [0, 1], with sizes-weighted mean `sparsity` (from `allocate`, `project`).
        sizes: [n] integers > 0.
        sparsity: the global share.

    Returns:
        int64 [n], 0 <= count <= size, sum equal to round(sparsity * sum(sizes)); each within one
        of shares * sizes.

    Raises:
        ValueError: the shares' mean isn't the sparsity, so no such counts exist.
    """
    shares = _vector(shares, "shares")
    exact_sizes = _sizes(sizes, len(shares))
    total = round(sparsity * int(exact_sizes.sum()))
    return largest_remainder(shares * exact_sizes, total, upper=exact_sizes.to(torch.int64))


def largest_remainder(exact: Tensor, total: int, upper: Tensor | None = None) -> Tensor:
    """Round real numbers to integers with a given sum, each within one of its number.

    Floors first; the units that are missing go to the largest remainders, equal ones in order of
    index.

    Args:
        exact: [n] float64, >= 0, whose sum is within one rounding of `total`.
        total: the sum wanted.
        upper: [n] integers that may not be exceeded, or None.

    Returns:
        int64 [n].

    Raises:
        ValueError: `total` is further from sum(exact) than rounding up or down can bridge.
    """
    exact = _vector(exact, "exact")
    counts = exact.floor()
    remainder = exact - counts
    counts = counts.to(torch.int64)
    room = torch.ones_like(counts, dtype=torch.bool)
    if upper is not None:
        upper = upper.to(counts)
        counts = counts.minimum(upper)
        room = counts < upper
    missing = total - int(counts.sum())
    if not 0 <= missing <= int(room.sum()):
        raise ValueError(
            f"counts can't sum to {total}: the numbers given sum to {float(exact.sum()):.6g}"
        )
    order = torch.argsort(remainder.where(room, -1.0), descending=True, stable=True)
    counts[order[:missing]] += 1
    return counts


def _solve(offset: Tensor, slope: Tensor, sizes: Tensor, sparsity: float, bounds: Bounds) -> Tensor:
    """clip(offset + slope * t, lo, hi) for the t that gives the weighted mean `sparsity`."""
    lo, hi = _check_bounds(bounds)
    if not (math.isfinite(sparsity) and 0.0 <= sparsity <= 1.0):
        raise ValueError(f"sparsity {sparsity} is outside [0, 1]")
    moving = slope > 0
    least = torch.full_like(offset, lo)  # a matrix of ratio 0 has nothing to scale: it stays here
    most = torch.full_like(offset, hi).where(moving, lo)
    target = sparsity * float(sizes.sum())
    _check_reachable(sparsity, sizes, most, lo, hi)

    def shares_at(t: Tensor) -> Tensor:
        return torch.where(moving, (offset + slope * t).clamp(lo, hi), least)

    def total_at(t: Tensor) -> float:
        return float((sizes * shares_at(t)).sum())

    at_least, at_most = lo * float(sizes.sum()), float((sizes * most).sum())
    if target <= at_least:
        return least
    if target >= at_most:
        return most
    edge = torch.cat([(lo - offset) / slope, (hi - offset) / slope])
    points = edge[moving.repeat(2)].sort().values
    left, right = 0, len(points) - 1  # total_at(points[left]) < target <= total_at(points[right])
    while right - left > 1:
        middle = (left + right) // 2
        if total_at(points[middle]) < target:
            left = middle
        else:
            right = middle
    low, high = total_at(points[left]), total_at(points[right])
    share = (target - low) / (high - low) if high > low else 1.0
    return shares_at(points[left] + share * (points[right] - points[left]))


def _check_reachable(sparsity: float, sizes: Tensor, most: Tensor, lo: float, hi: float) -> None:
    reach = float((sizes * most).sum() / sizes.sum())
    if sparsity < lo - _ROUNDING:
        side, bound = "lower", lo
    elif sparsity > reach + _ROUNDING:
        side, bound = "upper", hi
    else:
        return
    raise ValueError(
        f"sparsity {sparsity:g} can't hold the {side} bound {bound:g}: "
        f"bounds {lo:g} to {hi:g} reach {lo:g} to {reach:g}"
    )


def _check_bounds(bounds: Bounds) -> Bounds:
    lo, hi = (float(b) for b in bounds)
    if not 0.0 <= lo <= hi <= 1.0:
        raise ValueError(f"bounds ({lo:g}, {hi:g}) must satisfy 0 <= lower <= upper <= 1")
    return lo, hi


def _vector(values: Tensor | Sequence[float], name: str) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64).cpu()
    if vector.dim() != 1 or len(vector) == 0:
        raise ValueError(f"{name} must be [n] with n >= 1, not {list(vector.shape)}")
    if not bool(vector.isfinite().all()):
        raise ValueError(f"{name} holds a value that isn't finite")
    return vector


def _sizes(sizes: Tensor | Sequence[int], n: int) -> Tensor:
    vector = _vector(sizes, "sizes")
    if len(vector) != n:
        raise ValueError(f"sizes has {len(vector)} entries, {n} needed")
    if bool((vector <= 0).any()):
        raise ValueError(f"sizes: {float(vector.min()):g} isn't positive")
    return vector
