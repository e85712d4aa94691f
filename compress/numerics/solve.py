"""Hessians that may be singular, damped until they can be decomposed; how far, a note says.

The inverse comes as the Cholesky factor that column-by-column pruning needs.

With R upper triangular and H = R Rᵀ, U = R⁻¹ is upper triangular and Uᵀ U = R⁻ᵀ R⁻¹ = H⁻¹. So one
Cholesky decomposition (of H with rows and columns reversed) and one triangular inverse do the
work of the usual three steps (decompose, invert, decompose again) with half the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
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


class Definite(NamedTuple):
    """A positive definite matrix, and what it took to make it one."""

    matrix: Tensor
    """[n, n] with the damping that worked; float64 where only that held."""
    damp: float
    """The damping that worked, a share of the mean diagonal."""
    note: str | None
    """How far damping or precision had to be raised; None if the first attempt held."""


class Solved(NamedTuple):
    """Solutions of many systems, and how many needed more than a decomposition."""

    values: Tensor
    """[R, K]."""
    doubled: int
    """Systems that only float64 could decompose."""
    clamped: int
    """Systems whose eigenvalues had to be clamped."""


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
    for amount, matrix, note in _attempts(hessian, damp):
        upper = _factor(matrix)
        if upper is not None:
            return InverseFactor(upper.to(hessian.dtype), amount, note)
    raise ValueError("hessian can't be repaired: its eigenvalues span more than float64 holds")


def damped_definite(hessian: Tensor, damp: float = 0.01) -> Definite:
    """H + damp * mean(diag H) * I, positive definite with room for the rounding of a solver.

    Half the damping must do for a Cholesky decomposition; the other half is the room. Where it
    doesn't, the same steps are taken as in `damped_inverse_cholesky`, with its arguments and
    errors.
    """
    for amount, matrix, note in _attempts(hessian, damp):
        trial = matrix.clone()
        trial.diagonal().sub_(amount / 2 * hessian.diagonal().abs().mean())
        if _is_definite(trial):
            return Definite(matrix, amount, note)
    raise ValueError("hessian can't be repaired: its eigenvalues span more than float64 holds")


def solve_definite(systems: Tensor, right: Tensor) -> Solved:
    """Solve many positive definite systems; those that can't be decomposed in higher precision.

    Args:
        systems: [R, K, K] symmetric.
        right: [R, K].

    Returns:
        The solutions in the systems' dtype. A system that isn't positive definite in float64
        either is solved with its eigenvalues clamped to 1e-4 of the largest.
    """
    lower, info = torch.linalg.cholesky_ex(systems)
    values = torch.cholesky_solve(right[..., None], lower)[..., 0]
    failed = (info != 0) | ~values.isfinite().all(1)
    if not bool(failed.any()):
        return Solved(values, 0, 0)
    rows = failed.nonzero().flatten()
    hard, wanted = systems[rows].double(), right[rows].double()[..., None]
    lower, info = torch.linalg.cholesky_ex(hard)
    found = torch.cholesky_solve(wanted, lower)
    bad = (info != 0) | ~found.isfinite().all(dim=(1, 2))
    if bool(bad.any()):
        eigen, vectors = torch.linalg.eigh(hard[bad])
        eigen = eigen.clamp(min=_LEAST_DAMP * eigen.abs().amax(1, keepdim=True).clamp(min=1e-300))
        found[bad] = vectors @ ((vectors.mT @ wanted[bad]) / eigen[..., None])
    values[rows] = found[..., 0].to(values.dtype)
    clamped = int(bad.sum())
    return Solved(values, len(rows) - clamped, clamped)


def _attempts(hessian: Tensor, damp: float) -> Iterator[tuple[float, Tensor, str | None]]:
    """Damping, damped matrix and note of each step of the escalation, made one by one."""
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"hessian must be [n, n], not {list(hessian.shape)}")
    if not damp >= 0:
        raise ValueError(f"damp {damp} must be >= 0")
    if not bool(hessian.isfinite().all()):
        raise ValueError("hessian holds a value that isn't finite")
    yield damp, _damped(hessian, damp), None
    for power in range(1, _RAISES + 1):
        amount = max(damp, _LEAST_DAMP) * 10.0**power
        yield amount, _damped(hessian, amount), f"damping {amount:g} instead of {damp:g}"
    if hessian.dtype != torch.float64:
        note = f"float64 instead of {str(hessian.dtype).removeprefix('torch.')}, damping {damp:g}"
        yield damp, _damped(hessian.double(), damp), note
    yield _clamped(hessian, damp)


def _damped(hessian: Tensor, damp: float) -> Tensor:
    damped = hessian.clone()
    damped.diagonal().add_(damp * hessian.diagonal().abs().mean())
    return damped


def _is_definite(matrix: Tensor) -> bool:
    return not int(torch.linalg.cholesky_ex(matrix).info)


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


def _clamped(hessian: Tensor, damp: float) -> tuple[float, Tensor, str]:
    """The last resort: float64 with every eigenvalue raised to a floor."""
    values, vectors = torch.linalg.eigh(hessian.double())
    largest = values.abs().max()
    largest = largest.where(largest > 0, 1.0)  # a Hessian of zeros: any multiple of I will do
    floor = max(damp, _LEAST_DAMP) * hessian.double().diagonal().abs().mean()
    floor = floor.clamp(min=_LEAST_DAMP * largest)
    repaired = (vectors * values.clamp(min=floor)) @ vectors.mT
    count = int((values < floor).sum())
    note = f"{count} of {len(values)} eigenvalues clamped to {float(floor):.3g}, in float64"
    return damp, (repaired + repaired.mT) / 2, note
