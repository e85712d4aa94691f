"""RIA: relative importance and activations. A weight counts by its share of its row and column."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.sparsity.layer import check_count, choose
from compress.sparsity.masks import wanda_score


def ria_score(weight: Tensor, input_norm: Tensor, power: float = 0.5) -> Tensor:
    """(|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) * ||X_j||^power, [out, in].

    A row or column of zeros has shares of zero.

    Args:
        weight: [out, in], any float dtype, only read.
        input_norm: [in], L2 norm of each input feature over all calibration tokens.
        power: of the norm; 0 leaves the inputs out of account.

    Raises:
        ValueError: input_norm isn't [in], isn't finite, or is negative.

    Source: Zhang et al., Plug-and-Play, ICLR 2024, eq. 4.
    """
    score = wanda_score(weight, input_norm.pow(power))
    size = weight.abs()
    by_column, by_row = (
        _inverse(size.sum(axis, dtype=torch.float64)).to(score.dtype) for axis in (0, 1)
    )
    return score * (by_column + by_row[:, None])


def ria_mask(
    weight: Tensor,
    input_norm: Tensor,
    count: int | None,
    pattern: tuple[int, int] | None = None,
    power: float = 0.5,
    *,
    name: str | None = None,
) -> Tensor:
    """Choose which weights of one linear layer to keep, by RIA: the whole matrix is ranked at once.

    Args:
        weight, input_norm, power: as for `ria_score`.
        count: how many weights to drop; with a pattern None or the number it implies.
        pattern: (N, M) to keep N of every M consecutive inputs, or None.
        name: of the matrix, for messages.

    Returns:
        Bool [out, in], True = keep, with exactly `count` False; equal scores drop the lower index
        first.

    Raises:
        RequestError: M doesn't divide the width.
        ValueError: as for `ria_score`, or a count out of range.

    Cost: two sums and one selection, O(out * in).
    """
    count = check_count(weight, count, pattern, name)
    return choose(ria_score(weight, input_norm, power), count, pattern)


def _inverse(total: Tensor) -> Tensor:
    return torch.where(total > 0, 1 / total, 0)
