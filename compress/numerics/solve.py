"""The damped inverse of a Hessian, as the Cholesky factor that column-by-column pruning needs.

With R upper triangular and H = R Rᵀ, U = R⁻¹ is upper triangular and Uᵀ U = R⁻ᵀ R⁻¹ = H⁻¹. So one
Cholesky decomposition (of H with rows and columns reversed) and one triangular inverse do the
work of the usual three steps (decompose, invert, decompose again) with half the arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_RAISES = 3  # how often damping grows tenfold before the precision does
_LEAST_DAMP = 1e-4  # what a damping of zero grows from
_LEAF = 256  # below this width one triangular solve beats splitting further


class InverseFactor(NamedTuple):
    """U with (H + damping)⁻¹ = Uᵀ U, and what it took."""

    upper: Tensor
    """[n, n] upper triangular, in the Hessian's dtype."""
    damp: float
    """The damping that worked, a share of the mean diagonal."""
    note: str | None
    """How far damping or precision had to be raised; None if the first attempt held."""


def damped_inverse_cholesky(hessian: Tensor, damp: float = 0.01) -> InverseFactor:
    """Factor the inverse of H + damp * mean(diag H) * I.

    Where the decomposition fails, damping grows tenfold, at most three times; then float64 is tried
    with the damping asked for; then float64 with the eigenvalues clamped from below.

    Args:
        hessian: [n, n] symmetric, float32 or float64, only read.
        damp: >= 0, share of the mean diagonal added to the diagonal.

    Raises:
        ValueError: not square, a value that isn't finite, or a negative damp.

    Source: Frantar and Alistarh, SparseGPT, arXiv:2301.00774 (H⁻¹ = Uᵀ U); the escalation is ours.
    """
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"hessian must be [n, n], not {list(hessian.shape)}")
    if not damp >= 0:
        raise ValueError(f"damp {damp} must be >= 0")
    if not bool(hessian.isfinite().all()):
        raise ValueError("hessian holds a value that isn't finite")
    raised = [damp, *(max(damp, _LEAST_DAMP) * 10.0**i for i in range(1, _RAISES + 1))]
    attempts = [(amount, hessian) for amount in raised]
    if hessian.dtype != torch.float64:
        attempts.append((damp, hessian.double()))
    for number, (amount, matrix) in enumerate(attempts):
        upper = _factor(_damped(matrix, amount))
        if upper is not None:
            in_double = ", in float64" if matrix is not hessian else ""
            note = f"damping {amount:g} instead of {damp:g}{in_double}" if number else None
            return InverseFactor(upper.to(hessian.dtype), amount, note)
    return _clamped(hessian, damp)


def _damped(hessian: Tensor, damp: float) -> Tensor:
    damped = hessian.clone()
    damped.diagonal().add_(damp * hessian.diagonal().abs().mean())
    return damped


def _factor(hessian: Tensor) -> Tensor | None:
    """U with H⁻¹ = Uᵀ U, or None where H isn't positive definite in its precision."""
    lower, info = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if int(info):
        return None
    inverse = _inverse_lower(lower).flip(0, 1)
    return inverse if bool(inverse.isfinite().all()) else None


def _inverse_lower(lower: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix by halves, so that most of it is matrix products."""
    n = len(lower)
    if n <= _LEAF:
        eye = torch.eye(n, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, eye, upper=False)
    half = n // 2
    inverse = torch.zeros_like(lower)
    inverse[:half, :half] = _inverse_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ lower[half:, :half] @ inverse[:half, :half]
    return inverse


def _clamped(hessian: Tensor, damp: float) -> InverseFactor:
    """The last resort: float64 with every eigenvalue raised to a floor."""
    values, vectors = torch.linalg.eigh(hessian.double())
    largest = values.abs().max()
    largest = largest.where(largest > 0, 1.0)  # a Hessian of zeros: any multiple of I will do
    floor = max(damp, _LEAST_DAMP) * hessian.double().diagonal().abs().mean()
    floor = floor.clamp(min=_LEAST_DAMP * largest)
    repaired = (vectors * values.clamp(min=floor)) @ vectors.mT
    upper = _factor((repaired + repaired.mT) / 2)
    if upper is None:
        raise ValueError("hessian can't be repaired: its eigenvalues span more than float64 holds")
    count = int((values < floor).sum())
    note = f"{count} of {len(values)} eigenvalues clamped to {float(floor):.3g}, in float64"
    return InverseFactor(upper.to(hessian.dtype), damp, note)
