"""New values for the weights that a mask keeps, so that the layer's output changes least.

For each row with kept set P: the ŵ on P that minimises (ŵ - w)ᵀ H (ŵ - w), that is
(H (ŵ - w))_P = 0. No method can do better with that mask.

Letters: H = Xᵀ X scaled to a unit diagonal and damped, R rows of a chunk, K the most that a row of
it keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.numerics.solve import Solved, solve_definite
from compress.sparsity.layer import Pruned, check_layer, join, scaled_hessian

# Elements of the systems [R, K, K] solved at once: 128 MB of float32.
_CHUNK = 2**25


def refit_exact(
    weight: Tensor,
    keep: Tensor,
    hessian: Tensor,
    damp: float = 0.01,
    *,
    name: str | None = None,
) -> Pruned:
    """The best values for a mask, row by row through a Cholesky decomposition of H_PP.

    Args:
        weight: [out, in], the dense weight, any float dtype, only read.
        keep: bool [out, in], True = keep.
        hessian: [in, in], Xᵀ X up to a factor, float32 or float64, only read.
        damp: added to the Hessian's unit diagonal; it draws the values to those of weight.
        name: of the matrix, for messages.

    Returns:
        The layer with the same mask; survivors on inputs that were never active stay.

    Raises:
        RunError: a Hessian that isn't finite.
        ValueError: shapes that don't fit.

    Cost: Σ over rows of kept³ / 3, and kept² to gather.
    """
    check_layer(weight, hessian, int((~keep).sum()), None, name)
    scaled = scaled_hessian(hessian, damp)
    dense, matrix = _operands(weight, scaled.matrix, scaled.scale)
    change = -dense * ~keep
    wanted = -change @ matrix  # what the kept weights must make up for
    kept = keep.sum(1)
    order = kept.argsort(dim=0, descending=True, stable=True)  # rows of a chunk keep about as many
    start = doubled = clamped = 0
    while start < len(order) and int(kept[order[start]]):
        most = int(kept[order[start]])
        rows = order[start : start + max(_CHUNK // most**2, 1)]
        columns = keep[rows].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        real = torch.arange(most, device=keep.device) < kept[rows, None]
        found = _solve(matrix, columns, real, wanted[rows].gather(1, columns))
        doubled, clamped = doubled + found.doubled, clamped + found.clamped
        # Places that only fill up a row lie on dropped columns, and are zero.
        change[rows] = change[rows].scatter_add(1, columns, found.values)
        start += len(rows)
    note = join(
        scaled.note,
        f"{doubled} rows refitted in float64" if doubled else None,
        f"{clamped} rows refitted with clamped eigenvalues" if clamped else None,
    )
    return Pruned(keep, scaled.changed(weight, change, keep, weight.dtype), note)


def refit_cg(
    weight: Tensor,
    keep: Tensor,
    hessian: Tensor,
    damp: float = 0.01,
    *,
    start: Tensor | None = None,
    iterations: int = 50,
    tolerance: float = 1e-4,
    name: str | None = None,
) -> Pruned:
    """Nearly the best values for a mask, by conjugate gradients on the kept weights.

    Args:
        weight, keep, hessian, damp, name: as for `refit_exact`.
        start: [out, in] values to begin with; the dense ones by default.
        iterations: at most.
        tolerance: of each row's gradient, as a share of that of the dense values.

    Returns, Raises: as `refit_exact`.

    Cost: 2 * iterations * out * in².
    Source: the last step of ALPS, Meng et al., arXiv:2406.07831; here every row has a step of its
    own, since rows are separate problems.
    """
    check_layer(weight, hessian, int((~keep).sum()), None, name)
    scaled = scaled_hessian(hessian, damp)
    dense, matrix = _operands(weight, scaled.matrix, scaled.scale)
    change = -dense * ~keep
    if start is not None:
        begun = (start.to(dense.dtype) - weight.to(dense.dtype)) * scaled.scale.to(dense.dtype)
        change = torch.where(keep, begun, change)
    change = conjugate_gradient(change, -dense * ~keep, keep, matrix, iterations, tolerance)
    return Pruned(keep, scaled.changed(weight, change, keep, weight.dtype), scaled.note)


def conjugate_gradient(
    change: Tensor,
    plain: Tensor,
    keep: Tensor,
    matrix: Tensor,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """Minimise δ H δᵀ of each row over the kept entries of δ.

    Args:
        change: [out, in], δ to begin with; its dropped entries are fixed.
        plain: [out, in], δ of a mask alone; its gradient is what `tolerance` is a share of.
        keep: bool [out, in].
        matrix: [in, in] symmetric, positive definite, of a constant diagonal.
        iterations, tolerance: when to stop.
    """
    goal = ((plain @ matrix) * keep).square().sum(1) * tolerance**2
    residual = -(change @ matrix) * keep
    power = residual.square().sum(1)
    direction = residual
    for _ in range(iterations):
        if bool((power <= goal).all()):
            break
        image = (direction @ matrix) * keep
        step = _ratio(power, (direction * image).sum(1))
        change = change + step * direction
        residual = residual - step * image
        before, power = power, residual.square().sum(1)
        direction = residual + _ratio(power, before) * direction
    return change


def _operands(weight: Tensor, matrix: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The scaled weight and the Hessian in one dtype."""
    dtype = torch.promote_types(weight.dtype, matrix.dtype)
    return weight.detach().to(dtype) * scale.to(dtype), matrix.to(dtype)


def _solve(matrix: Tensor, columns: Tensor, real: Tensor, wanted: Tensor) -> Solved:
    """Solutions [R, K] of H_PP δ = wanted, zero where a row has no K-th kept column."""
    systems = matrix[columns[:, :, None], columns[:, None, :]]
    systems.mul_(real[:, :, None]).mul_(real[:, None, :])
    systems.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1)
    return solve_definite(systems, wanted * real)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """[R, 1]: above / below, 0 where a row is done."""
    return torch.where(below > 0, above / below, 0)[:, None]
