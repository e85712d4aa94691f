"""Squared singular values of weight matrices, by one precision rule.

The eigenvalues of the smaller Gram matrix cost a third to an eighth of a singular value
decomposition. A Gram matrix in float32 has an absolute error of about 1e-7 of its largest
eigenvalue; in float64 about 1e-16 times the width. So: float32 first (TF32 off); a matrix whose
smallest eigenvalue comes out below 1e-5 of its largest is done again in float64, where what is
below the width times the machine epsilon counts as zero. `exact` takes singular values in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this share of the largest eigenvalue float32 leaves fewer than two digits.
_SINGLE_FLOOR = 1e-5


def gram_eigenvalues(weight: Tensor, exact: bool = False) -> Tensor:
    """Squared singular values, ascending.

    Args:
        weight: [..., out, in], any float dtype, any device; a batch of equal shapes is one call.
        exact: decompose in float64 by singular values; slow, resolves eigenvalues down to about
            1e-30 of the largest instead of 1e-13.

    Returns:
        float64 [..., min(out, in)] on weight's device, >= 0; what rounding can't tell from zero is
        zero, so counting the positive ones gives the rank.

    Raises:
        ValueError: fewer than two dimensions, an empty matrix, or a value that isn't finite.
    """
    if weight.dim() < 2 or 0 in weight.shape[-2:]:
        raise ValueError(f"weight must be [..., out, in], not {list(weight.shape)}")
    batch = weight.shape[:-2]
    matrices = weight.detach().reshape(-1, *weight.shape[-2:])
    largest = matrices.abs().amax(dim=(1, 2)).double()
    if not bool(largest.isfinite().all()):
        raise ValueError("weight holds a value that isn't finite")
    # The largest entry comes to lie in [1, 2), so that no weight, however scaled, over- or
    # underflows when squared; a power of two, so that no bit of the weights is lost.
    scale = torch.exp2(torch.where(largest > 0, largest, 1.0).log2().floor())
    # Contiguous, so that a matrix gives the same bits alone, in a batch or as a transposed view.
    matrices = matrices.to(torch.promote_types(matrices.dtype, torch.float32)).contiguous()
    matrices = matrices / scale[:, None, None].to(matrices.dtype)
    values = _exact(matrices) if exact else _by_rule(matrices)
    return (values * scale[:, None] ** 2).reshape(*batch, -1)


def _exact(matrices: Tensor) -> Tensor:
    values = torch.linalg.svdvals(matrices.double()).flip(-1)
    floor = max(matrices.shape[1:]) * torch.finfo(torch.float64).eps * values[:, -1:]
    return values.where(values > floor, 0.0).square()


def _by_rule(matrices: Tensor) -> Tensor:
    values = _gram(matrices.float()).double()
    unresolved = (values[:, 0] <= _SINGLE_FLOOR * values[:, -1]).nonzero().flatten()
    if len(unresolved):
        again = _gram(matrices[unresolved].double())
        floor = max(matrices.shape[1:]) * torch.finfo(torch.float64).eps * again[:, -1:]
        values[unresolved] = again.where(again > floor, 0.0)
    return values


def _gram(matrices: Tensor) -> Tensor:
    """Eigenvalues, ascending, of the smaller of M Mᵀ and Mᵀ M."""
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return torch.linalg.eigvalsh(matrices @ matrices.mT)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
