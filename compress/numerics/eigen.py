"""Squared singular values of weight matrices, by one precision rule.

The eigenvalues of the smaller Gram matrix cost a third of a singular value decomposition. The
product and the decomposition are made in float64: an eigenvalue is then right to about 1e-13 of the
largest, and what lies below counts as zero. float32 would be right to about 1e-7 of the largest
only, too little for square matrices, whose least eigenvalue lies near 1e-9, and for whatever looks
at bins: rescaling a 60 x 110 matrix by 1e-3 moved a value over the edge of a bin, and one of the
tail exponents by 0.3 %. It would gain little: on a CPU, 512 x 512 and one thread, LAPACK takes
20 ms in float64, 14 in float32. `exact` takes singular values, in float64 too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def gram_eigenvalues(weight: Tensor, exact: bool = False) -> Tensor:
    """Squared singular values, ascending.

    Args:
        weight: [..., out, in], any float dtype; on CUDA a batch of equal shapes is one call.
        exact: decompose by singular values; three times slower, and resolves eigenvalues down to
            about 1e-30 of the largest instead of 1e-13.

    Returns:
        float64 [..., min(out, in)], >= 0; what rounding can't tell from zero is zero, so counting
        the positive ones gives the rank. On weight's device if that is CUDA, else on the CPU.

    Raises:
        ValueError: fewer than two dimensions, an empty matrix, or a value that isn't finite.
    """
    if weight.dim() < 2 or 0 in weight.shape[-2:]:
        raise ValueError(f"weight must be [..., out, in], not {list(weight.shape)}")
    matrices = weight.detach().reshape(-1, *weight.shape[-2:])
    if not matrices.is_cuda:
        matrices = matrices.cpu()
    largest = matrices.abs().amax(dim=(1, 2)).double()
    if not bool(largest.isfinite().all()):
        raise ValueError("weight holds a value that isn't finite")
    # The largest entry comes to lie in [1, 2), so that no weight, however scaled, over- or
    # underflows when squared; a power of two, so that no bit of the weights is lost.
    scale = torch.exp2(torch.where(largest > 0, largest, 1.0).log2().floor())
    values = _exact(matrices, scale) if exact else _gram(matrices, scale)
    return (values * scale[:, None] ** 2).reshape(*weight.shape[:-2], -1)


def _exact(matrices: Tensor, scale: Tensor) -> Tensor:
    values = torch.linalg.svdvals(matrices.double() / scale[:, None, None]).flip(-1)
    return _resolved(values, matrices).square()


def _gram(matrices: Tensor, scale: Tensor) -> Tensor:
    """Eigenvalues, ascending, of the smaller of M Mᵀ and Mᵀ M."""
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    if matrices.is_cuda:
        scaled = matrices.double() / scale[:, None, None]
        values = torch.linalg.eigvalsh(scaled @ scaled.mT)
    else:  # one by one: the double-precision copy of a batch would only cost memory
        pairs = zip(matrices, scale, strict=True)
        values = torch.stack([_gram_on_cpu((m.double() / s).numpy()) for m, s in pairs])
    return _resolved(values, matrices)


def _gram_on_cpu(matrix: np.ndarray) -> Tensor:
    # numpy forms M Mᵀ by a symmetric product, its LAPACK takes two thirds of the time of torch's,
    # and both let other threads run meanwhile.
    matrix = np.ascontiguousarray(matrix)  # the same bits for a transposed view
    return torch.from_numpy(np.linalg.eigvalsh(matrix @ matrix.T))


def _resolved(values: Tensor, matrices: Tensor) -> Tensor:
    """Values with those at the level of rounding set to zero; the usual tolerance of a rank."""
    floor = max(matrices.shape[1:]) * torch.finfo(torch.float64).eps * values[:, -1:]
    return values.where(values > floor, 0.0)
