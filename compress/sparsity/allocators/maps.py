"""From what was measured to shares of zeros: pure functions, all through one bounded projection.

Each gives the share of every matrix so that the mean weighted by the numbers of weights is the
sparsity asked for and no share leaves its bounds (numerics.allocation).

Letters: n matrices, b blocks, S the sparsity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.numerics.allocation import allocate, project

OWL_MULTIPLE = 5.0
OWL_SPREAD = 0.08
BOUNDS = (0.0, 0.99)
Bounds = tuple[float, float]
# DLP's half spread at a sparsity: its paper's 0.04 at 50 %, 0.1 at 60 % and 0.15 at 70 %.
_DLP_SPREADS = ((0.5, 0.04), (0.6, 0.1), (0.7, 0.15))


def by_metric(
    metric: Sequence[float],
    sizes: Sequence[int],
    sparsity: float,
    *,
    epsilon: float = 0.3,
    bounds: Bounds = BOUNDS,
    sign: int = 1,
) -> Tensor:
    """AlphaPruning's linear map from a shape metric to shares.

    The metric is stretched to [1 - epsilon, 1 + epsilon], and that ratio scaled by one factor so
    that the shares, clipped to the bounds, have the mean asked for. Equal metrics: equal shares.

    Args:
        metric: [n], finite; with sign 1 a larger value is pruned more.
        sizes: [n] parameters.
        sparsity: fraction of all parameters to remove.
        epsilon: half the spread of the ratios, 0 <= epsilon < 1.
        bounds: least and greatest share.
        sign: -1 where a larger metric means a better trained layer.

    Returns:
        float64 [n], sum(sizes * shares) = sparsity * sum(sizes).

    Raises:
        ValueError: bounds that can't hold, a metric that isn't finite.

    Source: AlphaPruning, arXiv:2410.10912, section 3.3 (tau there, epsilon in its code).
    """
    value = torch.as_tensor(list(metric), dtype=torch.float64) * sign
    if not bool(value.isfinite().all()):
        raise ValueError("metric: a value isn't finite")
    place = _placed(value)
    ratio = torch.ones_like(value) if place is None else 1 - epsilon + 2 * epsilon * place
    return allocate(ratio, sizes, sparsity, bounds)


def by_spread(
    values: Sequence[float],
    sizes: Sequence[int],
    sparsity: float,
    *,
    spread: float,
    bounds: Bounds = BOUNDS,
) -> Tensor:
    """OWL's and DLP's map: shares fall by 2 spread from the smallest to the largest value.

    Args:
        values: [n], finite; a larger one is pruned less.
        sizes: [n] parameters.
        sparsity: fraction of all parameters to remove.
        spread: shares stay within about sparsity +- 2 spread.
        bounds: least and greatest share.

    Returns:
        float64 [n], parameter-weighted mean equal to sparsity. Equal values: equal shares.

    Raises:
        ValueError: as `by_metric`.

    Source: OWL, arXiv:2310.05175 (lambda); DLP, arXiv:2505.23807 (a). Their code is exact only for
    blocks of equal size; here the shift that gives the mean is found with the sizes.
    """
    value = torch.as_tensor(list(values), dtype=torch.float64)
    if not bool(value.isfinite().all()):
        raise ValueError("a value isn't finite")
    place = _placed(value)
    keep = torch.zeros_like(value) if place is None else 2 * spread * place
    return project(sparsity - keep + keep.mean(), sizes, sparsity, bounds)


def by_density(
    density: Sequence[float],
    sizes: Sequence[int],
    sparsity: float,
    *,
    bounds: Bounds = BOUNDS,
) -> Tensor:
    """Erdos-Renyi: the share that a matrix keeps is proportional to (out + in) / (out * in).

    Small and narrow matrices keep more. The kept shares are scaled by one factor and clipped.

    Args:
        density: [n], > 0, up to a common factor.
        sizes: [n] parameters.
        sparsity: fraction of all parameters to remove.
        bounds: least and greatest share removed.

    Returns:
        float64 [n], parameter-weighted mean equal to sparsity.

    Raises:
        ValueError: bounds that can't hold.

    Source: Mocanu et al. 2018 (SET); Evci et al. 2020 (RigL) for layers of any kind.
    """
    project([sparsity] * len(sizes), sizes, sparsity, bounds)  # says what can't be reached
    low, high = bounds
    return 1 - allocate(density, sizes, 1 - sparsity, (1 - high, 1 - low))


def shifted(
    shares: Sequence[float] | Tensor,
    sizes: Sequence[int],
    sparsity: float,
    *,
    bounds: Bounds = BOUNDS,
) -> Tensor:
    """Shares that are known but for their mean: shifted and clipped to it; see `project`."""
    return project(torch.as_tensor(shares, dtype=torch.float64), sizes, sparsity, bounds)


def steepest(sparsity: float, blocks: int, bounds: Bounds = BOUNDS) -> float:
    """The largest beta whose straight line over the blocks keeps within the bounds.

    With bounds 0 and 1 that is ATP's limit, min(2 S, 2 (1 - S)) / (b - 1); 0 for a single block.
    """
    if blocks < 2:
        return 0.0
    low, high = bounds
    return max(2 * min(sparsity - low, high - sparsity) / (blocks - 1), 0.0)


def line(sparsity: float, beta: float, blocks: int) -> Tensor:
    """ATP's shares by block: s_i = S - beta (b - 1) / 2 + beta i, i = 0 … b - 1, float64 [b].

    Source: ATP, arXiv:2502.14770.
    """
    place = torch.arange(blocks, dtype=torch.float64)
    return sparsity + beta * (place - (blocks - 1) / 2)


def by_line(
    groups: Sequence[str],
    sizes: Sequence[int],
    sparsity: float,
    beta: float,
    *,
    bounds: Bounds = BOUNDS,
) -> Tensor:
    """ATP: shares that rise in a straight line from the first block to the last.

    Args:
        groups: [n] each matrix's block, blocks in order of depth.
        sizes: [n] parameters.
        sparsity: fraction of all parameters to remove.
        beta: rise from a block to the next, >= 0; `steepest` is its limit within the bounds.
        bounds: least and greatest share.

    Returns:
        float64 [n], parameter-weighted mean equal to sparsity: where blocks differ in size the line
        is shifted, and clipped where it leaves the bounds.
    """
    index = _numbered(groups)
    shares = line(sparsity, beta, int(index.max()) + 1)[index]
    return project(shares, sizes, sparsity, bounds)


def dlp_spread(sparsity: float) -> float:
    """DLP's a at a sparsity: its paper's values, straight between them, constant beyond."""
    left = _DLP_SPREADS[0]
    if sparsity <= left[0]:
        return left[1]
    for right in _DLP_SPREADS[1:]:
        if sparsity <= right[0]:
            part = (sparsity - left[0]) / (right[0] - left[0])
            return left[1] + part * (right[1] - left[1])
        left = right
    return left[1]


def outlier_share(scores: Sequence[Tensor], multiple: float = OWL_MULTIPLE) -> float:
    """Percentage of a block's Wanda scores above `multiple` times their mean (OWL's D_b).

    Args:
        scores: score matrices of one block, any shapes.
        multiple: M in the paper, 5 by default.
    """
    total = sum(s.numel() for s in scores)
    mean = sum(float(s.double().sum()) for s in scores) / total
    above = sum(int((s > multiple * mean).sum()) for s in scores)
    return 100.0 * above / total


def _placed(value: Tensor) -> Tensor | None:
    """Where each value lies between the least, 0, and the greatest, 1; None if all are alike."""
    low, high = value.min(), value.max()
    # A spread of rounding errors is no spread: stretching it would turn noise into a plan.
    if high - low <= 1e-9 * max(abs(float(low)), abs(float(high)), 1e-30):
        return None
    return (value - low) / (high - low)


def _numbered(groups: Sequence[str]) -> Tensor:
    """int64 [n]: the number of each matrix's group, counted in order of first appearance."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[name] for name in groups])
