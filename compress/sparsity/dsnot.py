"""DSnoT: swap weights of a Wanda mask so that each output's mean stays where it was.

Letters: μ_j and v_j mean and variance of input j, P the dropped weights of a row. Dropping them
moves the row's mean output by -E with E = Σ_P W_j μ_j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.calibration.statistics import Moments
from compress.sparsity.layer import check_count
from compress.sparsity.masks import nm_mask, wanda_mask_counts, wanda_score


def dsnot_mask(
    weight: Tensor,
    moments: Moments,
    count: int | None,
    pattern: tuple[int, int] | None = None,
    *,
    rows: Tensor | None = None,
    cycles: int = 50,
    tolerance: float = 1e-3,
    name: str | None = None,
) -> Tensor:
    """Choose which weights of one linear layer to keep, by Wanda and then DSnoT.

    In each cycle every row whose |E| is above the tolerance regrows the dropped weight with the
    largest W_j μ_j / v_j in E's direction, and drops the kept weight of the lowest Wanda score
    among those whose W_j μ_j points the other way. A swap that doesn't lower |E| isn't made and
    ends the row. With a pattern both lie in the same group.

    Args:
        weight: [out, in], any float dtype, only read.
        moments: of the inputs.
        count: how many weights to drop; with a pattern None or the number it implies.
        pattern: (N, M) to keep N of every M consecutive inputs, or None.
        rows: int64 [out], how many of `count` each row drops; None spreads them evenly.
        cycles: most swaps in a row.
        tolerance: a row with |E| up to this share of Σ_j |W_j μ_j| is left alone.
        name: of the matrix, for messages.

    Returns:
        Bool [out, in], True = keep, with exactly `count` False.

    Raises:
        RequestError: M doesn't divide the width.
        ValueError: shapes or count out of range.

    Cost: O(cycles * out * in).
    Source: Zhang et al., arXiv:2310.08915. Departures: the tolerance is relative (the code's is
    0.1 in the units of the output), MLP matrices take part, and |E| never grows.
    """
    count = check_count(weight, count, pattern, name)
    score = wanda_score(weight, moments.norm)
    if pattern is not None:
        keep = nm_mask(score, *pattern, name=name)
    else:
        keep = wanda_mask_counts(weight, moments.norm, count if rows is None else rows)
    group = pattern[1] if pattern is not None else weight.shape[1]
    part = weight.detach().double() * moments.mean.double()
    spread = moments.variance.double()
    ranking = part / spread.clamp(min=_floor(spread))
    error = (part * ~keep).sum(1)
    goal = tolerance * part.abs().sum(1)
    rows = (error.abs() > goal).nonzero().flatten()
    for _ in range(cycles):
        if not len(rows):
            break
        sign = error[rows, None].sign()
        found = _swap(keep[rows], sign * part[rows], sign * ranking[rows], score[rows], group)
        grow, drop = found
        moved = error[rows] + part[rows, drop] - part[rows, grow]
        better = moved.abs() < error[rows].abs()
        better &= ~keep[rows, grow] & keep[rows, drop]  # False where a row has no such weight
        rows, grow, drop = rows[better], grow[better], drop[better]
        keep[rows, grow], keep[rows, drop] = True, False
        error[rows] = moved[better]
        rows = rows[error[rows].abs() > goal[rows]]
    return keep


def _swap(
    keep: Tensor, part: Tensor, ranking: Tensor, score: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """[R], [R]: the column that each row regrows, and the one that it drops.

    Args:
        keep: bool [R, in].
        part, ranking: W μ and W μ / v, in the direction of the row's error.
        score: Wanda's.
        group: columns within which a swap stays.
    """
    droppable = keep & (part < 0)
    open_groups = droppable.unflatten(1, (-1, group)).any(2).repeat_interleave(group, 1)
    grow = ranking.masked_fill(keep | ~open_groups, -torch.inf).argmax(1)
    columns = torch.arange(keep.shape[1], device=keep.device)
    beside = columns // group == (grow // group)[:, None]
    return grow, score.masked_fill(~(droppable & beside), torch.inf).argmin(1)


def _floor(spread: Tensor) -> float:
    """A least variance, so that constant inputs rank first but not at infinity."""
    return max(1e-6 * float(spread.mean()), torch.finfo(spread.dtype).tiny)
