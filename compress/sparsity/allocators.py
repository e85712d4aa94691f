"""How much of each matrix to remove: pure functions from what was measured to shares of zeros.

Every allocator goes through one exact, bounded projection (numerics.allocation), so that the
parameter-weighted mean of the shares is the sparsity asked for.

Letters: n matrices, b blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.numerics.allocation import allocate, project

OWL_MULTIPLE = 5.0
OWL_SPREAD = 0.08


def by_metric(
    metric: Sequence[float],
    sizes: Sequence[int],
    sparsity: float,
    *,
    epsilon: float = 0.3,
    bounds: tuple[float, float] = (0.0, 0.99),
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
    low, high = value.min(), value.max()
    # A spread of rounding errors is no spread: stretching it would turn noise into a plan.
    if high - low <= 1e-9 * max(abs(float(low)), abs(float(high)), 1e-30):
        ratio = torch.ones_like(value)
    else:
        ratio = 1 - epsilon + 2 * epsilon * (value - low) / (high - low)
    return allocate(ratio, sizes, sparsity, bounds)


def by_outliers(
    outliers: Sequence[float],
    sizes: Sequence[int],
    sparsity: float,
    *,
    spread: float = OWL_SPREAD,
    bounds: tuple[float, float] = (0.0, 0.99),
) -> Tensor:
    """OWL: blocks with more outlying scores keep more.

    Args:
        outliers: [n] share of outliers of each matrix's block (see `outlier_share`).
        sizes: [n] parameters.
        sparsity: fraction of all parameters to remove.
        spread: lambda; shares stay within about sparsity +- 2 lambda.
        bounds: least and greatest share.

    Returns:
        float64 [n], parameter-weighted mean equal to sparsity.

    Source: OWL, arXiv:2310.05175. Its code is exact only for blocks of equal size; here the shift
    that gives the mean is found with the sizes.
    """
    value = torch.as_tensor(list(outliers), dtype=torch.float64)
    low, high = value.min(), value.max()
    if high <= low:
        keep = torch.zeros_like(value)
    else:
        keep = 2 * spread * (value - low) / (high - low)
    return project(sparsity - keep + keep.mean(), sizes, sparsity, bounds)


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
