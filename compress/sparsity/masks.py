"""Which weights of one linear layer to keep: magnitude, Wanda, N:M. Pure functions on tensors.

Every mask drops exactly the number of weights asked for, ties included; equal scores drop the lower
index first, so that a mask is the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.errors import RequestError
from compress.numerics.select import (
    drop_smallest,
    drop_smallest_per_row,
    keep_n_of_m,
    spread_over_rows,
)


def magnitude_mask(weight: Tensor, amount: float | int) -> Tensor:
    """Drop the smallest weights of a whole matrix.

    Args:
        weight: any shape, any float dtype, only read.
        amount: an int is a number of weights, a float the share of them, in [0, 1).

    Returns:
        Bool of weight's shape, True = keep.

    Raises:
        ValueError: amount out of range, or a weight that is NaN.
    """
    return drop_smallest(weight.abs(), _count(weight, amount))


def wanda_score(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2 in float32 (float64 where an operand is), [out, in].

    Args:
        weight: [out, in], any float dtype, only read.
        input_norm: [in], L2 norm of each input feature over all calibration tokens.

    Raises:
        ValueError: input_norm isn't [in], isn't finite, or is negative.
    """
    if weight.dim() != 2 or input_norm.shape != weight.shape[1:]:
        raise ValueError(
            f"input_norm is {list(input_norm.shape)}; a weight of {list(weight.shape)} needs [in]"
        )
    bad = int((~(input_norm.isfinite() & (input_norm >= 0))).sum())
    if bad:
        raise ValueError(f"{bad} of {len(input_norm)} input norms are not finite and >= 0")
    dtype = torch.promote_types(torch.promote_types(weight.dtype, input_norm.dtype), torch.float32)
    return weight.abs().to(dtype) * input_norm.to(weight.device, dtype)


def wanda_mask(weight: Tensor, input_norm: Tensor, sparsity: float) -> Tensor:
    """Choose which weights of one linear layer to keep, by Wanda.

    Scores are S_ij = |W_ij| * ||X_j||_2. round(sparsity * out * in) weights are dropped: in each
    output row the floor or the ceiling of sparsity * in lowest scores, the first rows taking the
    ceiling; equal scores drop the lower column first.

    Args:
        weight: [out, in], any float dtype, only read.
        input_norm: [in], L2 norm of each input feature over all calibration tokens. Its overall
            scale is irrelevant: rows are ranked alone.
        sparsity: share to drop, 0 <= sparsity < 1.

    Returns:
        Bool [out, in] on weight's device, True = keep.

    Raises:
        ValueError: sparsity out of range; input_norm not [in], not finite or negative.

    Cost: one selection a row, O(out * in); two extra [out, in] tensors.
    Source: Sun et al., arXiv:2306.11695, eq. 1. The authors' code averages squared norms over
    samples (the ranking, hence the mask, is the same) and truncates sparsity * in in each row.
    """
    return wanda_mask_counts(weight, input_norm, _count(weight, float(sparsity)))


def wanda_mask_counts(weight: Tensor, input_norm: Tensor, count: int | Tensor) -> Tensor:
    """Wanda's mask for an exact number of dropped weights, or that of each row [out].

    See `wanda_mask`.
    """
    score = wanda_score(weight, input_norm)
    if isinstance(count, int):
        count = spread_over_rows(_count(weight, count), len(weight))
    return drop_smallest_per_row(score, count)


def nm_mask(score: Tensor, n: int, m: int, *, name: str | None = None) -> Tensor:
    """Keep the n highest scores of each m consecutive inputs (N:M, N kept of M).

    Args:
        score: [out, in]: |W| for magnitude, `wanda_score` for Wanda.
        n, m: 0 <= n <= m.
        name: of the matrix, for messages.

    Returns:
        Bool [out, in], True = keep; exactly n True in every aligned group of m.

    Raises:
        RequestError: m doesn't divide the width.
        ValueError: n or m out of range; a NaN among the scores.
    """
    require_width(score.shape[1], n, m, name)
    return keep_n_of_m(score, n, m)


def require_width(width: int, n: int, m: int, name: str | None = None) -> None:
    """Refuse a matrix over whose inputs N:M can't be laid, by name.

    Raises:
        RequestError: m doesn't divide the width.
    """
    if m >= 1 and width % m:
        raise RequestError(
            f"`{name or 'matrix'}` has {width} inputs, which {m} doesn't divide: the pattern "
            f"{n}:{m} can't be laid over it",
            "leave this matrix alone with --skip, or take another pattern",
        )


def _count(weight: Tensor, amount: float | int) -> int:
    """A number of weights from a number or a share of them."""
    size = weight.numel()
    if isinstance(amount, int):
        if not 0 <= amount <= size:
            raise ValueError(f"can't drop {amount} of {size} weights")
        return amount
    if not 0 <= amount < 1:
        raise ValueError(f"sparsity {amount} is outside [0, 1)")
    return round(amount * size)
