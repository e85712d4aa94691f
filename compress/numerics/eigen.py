"""Squared singular values of weight matrices, by one precision rule.

The eigenvalues of the smaller Gram matrix cost a third of a singular value decomposition. The
product and the decomposition are made in float64: an eigenvalue is then right to about 1e-13 of the
largest, and what lies below counts as zero. That is the rule wherever small eigenvalues count: for
ranks, and for whatever looks at bins (the least eigenvalue of a square matrix lies near 1e-7 of the
largest, and the edges of the bins hang on it). `exact` takes singular values, in float64 too.

`single` halves the time: product and reduction to tridiagonal form in float32, the eigenvalues of
the tridiagonal matrix in float64 (in float32 that step alone loses a digit: 2.7e-7 of the largest
instead of 2.2e-8, 512 x 512). Whoever uses it asks `single_error` what it is worth.

On a CPU the steps are LAPACK's own: a symmetric product of which one triangle is made, its
reduction in the upper triangle, and the square-root-free QR of `sterf`. That is a quarter less time
than numpy's `eigvalsh` of a full product, which copies the other triangle and reduces the lower.
They are called without the interpreter's lock (`lapack`), so that threads share matrices out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compress.numerics.lapack import gram_upper, tridiagonal, tridiagonal_eigenvalues

UNIT_SINGLE = 2.0**-24
# Weights within these powers of two can be squared and summed as they are, in float32 too.
_SAFE = 30
# Block sizes of the reduction; measured at 512 and 2048.
_BLOCK_DOUBLE, _BLOCK_SINGLE = 16, 32


def gram_eigenvalues(weight: Tensor, exact: bool = False, single: bool = False) -> Tensor:
    """Squared singular values, ascending.

    Args:
        weight: [..., out, in], any float dtype; on CUDA a batch of equal shapes is one call.
        exact: decompose by singular values; three times slower, and resolves eigenvalues down to
            about 1e-30 of the largest instead of 1e-13.
        single: in float32, on a CPU, where the weights have no more digits; see `single_error`.

    Returns:
        float64 [..., min(out, in)], >= 0; what rounding can't tell from zero is zero, so counting
        the positive ones gives the rank. With `single` rounding can't tell: what lies below its
        level is raised to it. On weight's device if that is CUDA, else on the CPU.

    Raises:
        ValueError: fewer than two dimensions, an empty matrix, or a value that isn't finite.
    """
    if weight.dim() < 2 or 0 in weight.shape[-2:]:
        raise ValueError(f"weight must be [..., out, in], not {list(weight.shape)}")
    matrices = weight.detach().reshape(-1, *weight.shape[-2:])
    if not matrices.is_cuda:
        matrices = matrices.cpu()
    largest = _largest(matrices)
    if not bool(largest.isfinite().all()):
        raise ValueError("weight holds a value that isn't finite")
    # The largest entry comes to lie in [1, 2) where it is far from 1, so that no weight, however
    # scaled, over- or underflows when squared; a power of two, so that no bit is lost.
    power = torch.where(largest > 0, largest, 1.0).log2().floor()
    scale = torch.exp2(torch.where(power.abs() > _SAFE, power, 0.0))
    if exact:
        values = _exact(matrices, scale)
    elif single and allows_single(weight):
        values = _on_cpu(matrices, scale, torch.float32)
        values = torch.maximum(values, 2 * UNIT_SINGLE * _rms(values)).sort(dim=-1).values
    else:
        values = _gram(matrices, scale)
    return (values * scale[:, None] ** 2).reshape(*weight.shape[:-2], -1)


def allows_single(weight: Tensor) -> bool:
    """Whether `single` does anything: on a CPU, for weights of 32 bits or fewer."""
    return not weight.is_cuda and weight.dtype != torch.float64


def single_error(values: Tensor) -> Tensor:
    """A bound of the error of eigenvalues that `gram_eigenvalues` found with `single`.

    With u = 2^-24, F the root mean square of a matrix's eigenvalues and L the largest:

        |error of e| <= 6 u (e + F) + c u L,  20 u e more where e > L / 20

    c = 8 where one eigenvalue makes up nearly all of the sum of squares (S = sum e² / L² < 1.2),
    1.5 where few do (S < 8), else 0. By the theorem of Hoffman and Wielandt the errors' root mean
    square is at most that of the rounding errors of product and reduction, about u F, whatever the
    spectrum; that a single one isn't much larger than that is measured, not proven: on Gaussian,
    heavy-tailed, spiked and trained matrices of 16 to 2048 rows the largest was 0.8 of the bound,
    mostly below half of it. It doesn't hold, and infinity is returned, where more than a tenth of
    the eigenvalues coincide (orthogonal matrices, low ranks): there errors gather in a few of them.

    Args:
        values: [..., N] float64, ascending.

    Returns:
        [..., N], in units of the values.
    """
    rms, largest = _rms(values), values[..., -1:]
    share = (values / largest.clamp(min=torch.finfo(torch.float64).tiny)).square().sum(-1, True)
    loud = torch.where(share < 1.2, 8.0, torch.where(share < 8, 1.5, 0.0))
    top = torch.where(values > largest / 20, 20 * values, 0.0)
    bound = UNIT_SINGLE * (6 * (values + rms) + loud * largest + top)
    alike = (values.diff(dim=-1) <= 8 * UNIT_SINGLE * rms).double().sum(-1, True)
    return bound.where(alike <= 0.1 * values.shape[-1] + 2, torch.inf)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(-1, keepdim=True).sqrt()


def _largest(matrices: Tensor) -> Tensor:
    """[B] the largest size of an entry; NaN where there is one."""
    return torch.maximum(-matrices.amin(dim=(1, 2)), matrices.amax(dim=(1, 2))).double()


def _exact(matrices: Tensor, scale: Tensor) -> Tensor:
    values = torch.linalg.svdvals(matrices.double() / scale[:, None, None]).flip(-1)
    return _resolved(values, matrices).square()


def _gram(matrices: Tensor, scale: Tensor) -> Tensor:
    """Eigenvalues, ascending, of the smaller of M Mᵀ and Mᵀ M, in float64."""
    if matrices.is_cuda:
        if matrices.shape[1] > matrices.shape[2]:
            matrices = matrices.mT
        scaled = matrices.double() / scale[:, None, None]
        values = torch.linalg.eigvalsh(scaled @ scaled.mT)
    else:
        values = _on_cpu(matrices, scale, torch.float64)
    return _resolved(values, matrices)


def _on_cpu(matrices: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    # One by one: the double-precision copy of a batch would only cost memory.
    found = []
    for matrix, by in zip(matrices, scale.tolist(), strict=True):
        if matrix.shape[0] > matrix.shape[1]:
            matrix = matrix.mT
        if not matrix.is_contiguous() and not matrix.mT.is_contiguous():
            matrix = matrix.contiguous()
        wide = matrix.to(dtype)
        if by != 1.0:
            wide = wide / by
        found.append(torch.from_numpy(_gram_values(wide.numpy())))
    return torch.stack(found)


def _gram_values(matrix: np.ndarray) -> np.ndarray:
    """Eigenvalues of M Mᵀ for M [short, long], rows or columns contiguous; float64."""
    gram = gram_upper(matrix)
    if len(gram) == 1:
        return gram[0].astype(np.float64)
    block = _BLOCK_DOUBLE if matrix.dtype == np.float64 else _BLOCK_SINGLE
    return tridiagonal_eigenvalues(*tridiagonal(gram, block))


def _resolved(values: Tensor, matrices: Tensor) -> Tensor:
    """Values with those at the level of rounding set to zero; the usual tolerance of a rank."""
    floor = max(matrices.shape[1:]) * torch.finfo(torch.float64).eps * values[:, -1:]
    return values.where(values > floor, 0.0)
