"""SparseGPT: choose and remove weights column by column, and let the others make up for it.

Letters: O output rows, I inputs, B columns of a block. H = Xᵀ X of the layer's inputs, damped;
H⁻¹ = Uᵀ U with U upper triangular. Removing w_j when everything left of j is fixed costs
(w_j / U_jj)², and the best change of the columns k > j is -(w_j / U_jj) U_jk.

The weight is held transposed, [I, O], so that a column of it is contiguous. Updates are applied
late: inside a strip of columns by one vector product, between strips and blocks by matrix products.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from compress.numerics.allocation import largest_remainder
from compress.numerics.select import drop_smallest, keep_n_of_m
from compress.numerics.solve import damped_inverse_cholesky
from compress.sparsity.layer import check_layer, dead_note, join, to_stored

# Columns whose updates are made one by one before a matrix product takes over.
_STRIP = 32


class SparseGPTResult(NamedTuple):
    """A pruned layer."""

    weight: Tensor
    """[out, in] in the weight's dtype; dropped entries are zero, the others are updated."""
    mask: Tensor
    """Bool [out, in], True = kept."""
    loss: float
    """||X (W - W')ᵀ||² under the damped Hessian, in the Hessian's scale."""
    note: str | None
    """What had to be repaired on the way (damping raised, dead inputs), or None."""


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    count: int | None,
    pattern: tuple[int, int] | None = None,
    block_size: int = 128,
    damp: float = 0.01,
    *,
    name: str | None = None,
) -> SparseGPTResult:
    """Prune one linear layer by SparseGPT.

    Each block of columns loses its share of the count (largest remainder over the blocks): the
    lowest (w / U_jj)² of all its rows, by the values it has when its turn comes. A pattern N:M is
    chosen group by group instead. Inputs that calibration never excited (H_jj = 0) cost nothing:
    their weights go first; those that the count doesn't reach stay as they are.

    Args:
        weight: [out, in], any float dtype, only read.
        hessian: [in, in], Xᵀ X up to a factor, float32 or float64, only read.
        count: how many weights to drop; with a pattern None or the number it implies.
        pattern: (N, M) to keep N of every M consecutive inputs, or None.
        block_size: columns chosen together; with a pattern a multiple of M.
        damp: share of the mean diagonal added to the diagonal.
        name: of the matrix, for messages.

    Returns:
        The pruned layer with exactly `count` dropped.

    Raises:
        RequestError: M doesn't divide the width.
        RunError: a Hessian that isn't finite.
        ValueError: shapes, count or block size out of range.

    Cost: about in³ for the factor and out * in² for the updates; 2048 x 2048 on one core 0.7 s.
    Source: Frantar and Alistarh, arXiv:2301.00774. Departures: exact counts, ties by index, dead
    inputs held to the count, damping that escalates.
    """
    if block_size < 1 or (pattern is not None and block_size % max(pattern[1], 1)):
        multiple = f"and a multiple of M = {pattern[1]}" if pattern is not None else ""
        raise ValueError(f"block size {block_size} must be >= 1 {multiple}".rstrip())
    count = check_layer(weight, hessian, count, pattern, name)
    dead = hessian.diagonal() <= 0
    live = hessian.diagonal()[~dead]
    # Dead inputs get the mean of the others, not 1: damping must not depend on the inputs' scale.
    fill = live.mean() if len(live) else hessian.new_ones(())
    factor = damped_inverse_cholesky(hessian + torch.diag(dead.to(hessian.dtype) * fill), damp)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    # Cloned: the transpose of one row is contiguous, and would be the caller's own memory.
    columns = weight.detach().to(dtype).t().clone(memory_format=torch.contiguous_format)
    solver = _Columns(columns, factor.upper.to(dtype), dead)
    blocks = range(0, weight.shape[1], block_size)
    ends = [min(start + block_size, weight.shape[1]) for start in blocks]
    counts = _block_counts(weight.shape, list(blocks), ends, count)
    for start, end, dropped in zip(blocks, ends, counts, strict=True):
        if pattern is None:
            solver.choose(start, end, dropped)
            solver.prune_block(start, end, _STRIP, None)
        else:
            solver.prune_block(start, end, pattern[1], pattern)
    loss = float(solver.loss)
    if math.isnan(loss):  # looked at once: a look at every group would stall a GPU
        raise ValueError("the errors of the weights hold a NaN")
    mask = solver.keep.t().contiguous()
    pruned = to_stored(solver.weight.t().contiguous(), mask, weight.dtype)
    note = join(factor.note, dead_note(dead))
    return SparseGPTResult(pruned, mask, loss, note)


class _Columns:
    """The state of the elimination, transposed: weight [I, O], keep [I, O], U [I, I]."""

    def __init__(self, weight: Tensor, upper: Tensor, dead: Tensor) -> None:
        self.weight = weight
        self.upper = upper
        self.dead = dead
        self.keep = torch.ones_like(weight, dtype=torch.bool)
        self.loss = weight.new_zeros((), dtype=torch.float64)
        # Plain numbers for the columns' loop: reading them off the device there would stall it.
        self.pivots = upper.diagonal().tolist()

    def score(self, start: int, end: int) -> Tensor:
        """[O, B] |w| / U_jj, in float64 so that different weights never tie by rounding."""
        weight = self.weight[start:end].double()
        score = weight.abs() / self.upper.diagonal()[start:end, None]
        # Weights on dead inputs come before all others, the smallest first: -1 .. 0.
        free = -1 / (1 + weight.abs())
        return torch.where(self.dead[start:end, None], free, score).t()

    def choose(self, start: int, end: int, count: int) -> None:
        """Mark the `count` cheapest weights of a block."""
        self.keep[start:end] = drop_smallest(self.score(start, end), count).t()

    def prune_block(
        self, start: int, end: int, strip: int, pattern: tuple[int, int] | None
    ) -> None:
        """Remove the marked weights of a block and spread their errors to the right."""
        errors = torch.zeros_like(self.weight[start:end])
        for left in range(start, end, strip):
            right = min(left + strip, end)
            if left > start:
                self.weight[left:right].addmm_(
                    self.upper[start:left, left:right].t(), errors[: left - start], alpha=-1
                )
            if pattern is not None:
                self.keep[left:right] = keep_n_of_m(
                    self.score(left, right), *pattern, checked=True
                ).t()
            self._prune_strip(left, right, errors[left - start : right - start])
        self.weight[end:].addmm_(self.upper[start:end, end:].t(), errors, alpha=-1)
        live = ~self.dead[start:end, None]  # a weight on a dead input costs nothing
        self.loss += (errors.double().square() * live).sum()

    def _prune_strip(self, left: int, right: int, errors: Tensor) -> None:
        dropped = (~self.keep[left:right]).to(self.weight.dtype)
        for row, column in enumerate(range(left, right)):
            weight = self.weight[column]
            if row:
                weight.addmv_(errors[:row].t(), self.upper[left:column, column], alpha=-1)
            torch.mul(weight, dropped[row], out=errors[row])
            weight -= errors[row]
            errors[row] /= self.pivots[column]


def _block_counts(shape: torch.Size, starts: list[int], ends: list[int], count: int) -> list[int]:
    """Each block's part of the count, in proportion to its columns."""
    sizes = torch.tensor([(b - a) * shape[0] for a, b in zip(starts, ends, strict=True)])
    exact = sizes.double() * count / sizes.sum()
    return largest_remainder(exact, count, upper=sizes).tolist()
