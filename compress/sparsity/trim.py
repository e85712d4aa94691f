"""TRIM: how many weights each row of a matrix loses, so that every output keeps about as much.

Letters: o rows w_i, n columns, H = Xᵀ X, ŵ_i a row after pruning, k_i the weights that it loses,
x_i = k_i / n. What an output keeps is the cosine of its values before and after pruning,
c_i = w_i H ŵ_i / sqrt(w_i H w_i · ŵ_i H ŵ_i), and what the matrix keeps is the cosine of all its
outputs together. H gives both over all calibration tokens, so no input is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compress.numerics.allocation import largest_remainder, project
from compress.numerics.select import spread_over_rows

RATES = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16)
OPPOSITE = (-0.01, -0.02, -0.04)  # tried where no positive rate helps: outputs then drift apart
STEPS = 10
MOST = 0.95  # of a row, unless the matrix loses more than that


class Trimmed(NamedTuple):
    """What each row of a matrix loses."""

    counts: Tensor
    """int64 [o] on the CPU, sum equal to the matrix's count."""
    even: float
    """Cosine of the matrix's outputs where all rows lose alike."""
    kept: float
    """The same with `counts`; never below `even`."""
    rate: float
    """The rate that found them; 0 where even counts are the best."""


def trim_rows(
    weight: Tensor,
    score: Tensor,
    gram: Tensor,
    count: int,
    *,
    rates: Sequence[float] = RATES,
    opposite: Sequence[float] = OPPOSITE,
    steps: int = STEPS,
) -> Trimmed:
    """Split a matrix's count over its rows by TRIM.

    From even shares on, x_i grows by 2 rate (c_i - min c) / (max c - min c), and is shifted and
    clipped to [0, 0.95] so that the mean stays; the best of `steps` such steps counts. Rates are
    tried upwards while they better the cosine of the matrix, then, if none did, the opposite ones.

    Args:
        weight: [o, n], any float dtype, only read.
        score: [o, n]; a row loses its lowest scores, equal ones the lower column first.
        gram: [n, n], Xᵀ X up to a factor, only read.
        count: weights that the matrix loses.
        rates, opposite, steps: of the search.

    Returns:
        Counts of the rows; a row whose output is zero anyway counts as keeping all.

    Raises:
        ValueError: shapes that don't fit, or a count out of range.

    Cost: a product 2 o n² for each step, at most 91, in practice about 40.
    Source: Beck et al., arXiv:2505.16743, and its code. Departures: H of all tokens in place of
    one input of each sequence; counts are exact in total, and shares leave [0, 0.95] nowhere.
    """
    if weight.dim() != 2 or score.shape != weight.shape or gram.shape != (weight.shape[1],) * 2:
        raise ValueError(
            f"a weight of {list(weight.shape)}, scores of {list(score.shape)} and a Gram matrix of "
            f"{list(gram.shape)}"
        )
    if not 0 <= count <= weight.numel():
        raise ValueError(f"can't drop {count} of {weight.numel()} weights")
    even = spread_over_rows(count, len(weight))
    outputs = _Outputs(weight, score, gram)
    kept, rows = outputs.keep(even)
    best = Trimmed(even, kept, kept, 0.0)
    if 0 < count < weight.numel():
        for side in (rates, opposite):
            if best.rate == 0:
                best = _upwards(outputs, rows, best, side, steps)
    return best


def _upwards(
    outputs: _Outputs, rows: Tensor, best: Trimmed, rates: Sequence[float], steps: int
) -> Trimmed:
    """Try rates as long as each finds better counts than the one before."""
    before = -1.0
    for rate in rates:
        kept, counts = _descend(outputs.keep, rows, best.counts, outputs.width, rate, steps)
        if kept > best.kept:
            best = best._replace(counts=counts, kept=kept, rate=rate)
        if kept <= before:
            break
        before = kept
    return best


def _descend(
    keep: Callable[[Tensor], tuple[float, Tensor]],
    rows: Tensor,
    start: Tensor,
    width: int,
    rate: float,
    steps: int,
) -> tuple[float, Tensor]:
    """The best cosine of `steps` steps at one rate, and its counts.

    Args:
        keep: counts [o] to the cosine of the matrix and those of the rows.
        rows: those of the rows at even counts.
        start: any counts of the right sum.
        width: n.
    """
    count = int(start.sum())
    share = count / (len(start) * width)
    bounds = (0.0, max(MOST, share))
    sizes = torch.full((len(start),), width)
    shares = torch.full((len(start),), share, dtype=torch.float64)
    best, found = -2.0, start
    for _ in range(steps):
        place = (rows - rows.min()) / (rows.max() - rows.min() + 1e-6)
        shares = project(shares + 2 * rate * place, sizes, share, bounds)
        counts = largest_remainder(shares * width, count, upper=sizes)
        kept, rows = keep(counts)
        if kept > best:
            best, found = kept, counts
    return best, found


class _Outputs:
    """What the outputs of a matrix keep of their values when its rows lose so many weights."""

    def __init__(self, weight: Tensor, score: Tensor, gram: Tensor) -> None:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self._weight = weight.detach().to(dtype)
        self._gram = gram.to(dtype)
        self._image = self._weight @ self._gram
        self._dense = _row_sums(self._image, self._weight)
        order = score.argsort(dim=1, stable=True)
        place = torch.arange(weight.shape[1], device=weight.device).expand_as(order)
        self._place = torch.empty_like(order).scatter_(1, order, place)
        self.width = weight.shape[1]

    def keep(self, counts: Tensor) -> tuple[float, Tensor]:
        """The cosine of all outputs together, and that of each row, float64 [o] on the CPU."""
        pruned = self._weight * (self._place >= counts.to(self._place.device)[:, None])
        shared = _row_sums(self._image, pruned)
        left = _row_sums(pruned @ self._gram, pruned).clamp(min=0)
        rows = _ratio(shared, self._dense * left)
        rows = torch.where(self._dense > 0, rows, 1.0)
        whole = _ratio(shared.sum(), self._dense.sum() * left.sum())
        return (float(whole) if float(self._dense.sum()) > 0 else 1.0), rows.cpu()


def _row_sums(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    return (a * b).sum(1, dtype=wide)


def _ratio(product: Tensor, squares: Tensor) -> Tensor:
    """A cosine from its product and the product of the two squared lengths."""
    return torch.where(squares > 0, product / squares.sqrt(), 0).clamp(-1, 1)
