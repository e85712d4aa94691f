"""What the pruners of one matrix share: result, checks, choice by score, Hessian, way to disk."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compress.errors import RunError
from compress.numerics.select import drop_smallest, keep_n_of_m
from compress.numerics.solve import damped_definite
from compress.sparsity.masks import require_width


class Pruned(NamedTuple):
    """A pruned matrix."""

    mask: Tensor
    """Bool [out, in], True = kept."""
    weight: Tensor | None = None
    """[out, in] in the dtype on disk, zero where dropped; None where survivors stay as they are."""
    note: str | None = None
    """What had to be repaired on the way (damping raised, dead inputs), or None."""


class ScaledHessian(NamedTuple):
    """D⁻¹ H D⁻¹ + damp I with D = diag(H)^½: every input has the same weight."""

    matrix: Tensor
    """[n, n], diagonal 1 + damp, positive definite; zero beside the diagonal for dead inputs."""
    scale: Tensor
    """[n], the diagonal of D; 1 for dead inputs."""
    dead: Tensor
    """Bool [n], inputs that calibration never excited (H_jj = 0)."""
    damp: float
    """The damping that worked."""
    note: str | None
    """Damping raised, dead inputs; or None."""

    def changed(self, weight: Tensor, scaled: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
        """What to store: [out, in] in `dtype`, dropped entries zero.

        Args:
            weight: the dense matrix.
            scaled: the new values times `scale`, minus those of weight times `scale`: what doesn't
                change is stored to the last bit, as are the survivors on dead inputs.
            keep: bool [out, in].
            dtype: of the result.
        """
        change = (scaled / self.scale).masked_fill(self.dead, 0)
        return to_stored((weight.to(change.dtype) + change) * keep, keep, dtype)


def scaled_hessian(hessian: Tensor, damp: float) -> ScaledHessian:
    """Scale a Hessian to a unit diagonal, damp it, and see to it that it is positive definite.

    Args:
        hessian: [n, n], Xᵀ X up to a factor, float32 or float64, only read.
        damp: > 0, added to the unit diagonal. Where that isn't enough it grows tenfold, at most
            three times; then float64 is tried; then eigenvalues are clamped. The note says which.
    """
    dead = hessian.diagonal() <= 0
    scale = hessian.diagonal().sqrt().masked_fill(dead, 1)
    matrix = hessian / torch.outer(scale, scale)
    matrix.masked_fill_(dead[:, None] | dead, 0).diagonal().fill_(1)
    found = damped_definite(matrix, damp)
    return ScaledHessian(found.matrix, scale, dead, found.damp, join(found.note, dead_note(dead)))


def choose(score: Tensor, count: int, pattern: tuple[int, int] | None = None) -> Tensor:
    """Keep-mask without the `count` lowest scores of a matrix, equal ones by index.

    With a pattern N:M only those go that N:M would drop, the lowest first; all of them when count
    is what the pattern implies.
    """
    if pattern is not None:
        score = score.masked_fill(keep_n_of_m(score, *pattern), torch.inf)
    return drop_smallest(score, count)


def dead_first(score: Tensor, weight: Tensor, dead: Tensor) -> Tensor:
    """Scores >= 0 in which weights on dead inputs come before all others, the smallest first."""
    return torch.where(dead, -1 / (1 + weight.abs().to(score.dtype)), score)


def dead_note(dead: Tensor) -> str | None:
    """How many inputs are dead, or None."""
    return f"{int(dead.sum())} of {len(dead)} inputs are never active" if bool(dead.any()) else None


def join(*notes: str | None) -> str | None:
    """Several notes in one, or None."""
    return "; ".join(note for note in notes if note) or None


def to_stored(weight: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """To the dtype on disk, where no survivor may round to zero: zeros are counted exactly."""
    cast = weight.to(dtype)
    info = torch.finfo(dtype)
    lost = keep & (cast == 0) & (weight != 0)
    least = torch.full_like(cast, info.smallest_normal * info.eps).copysign(cast)
    return torch.where(lost, least, cast)


def check_layer(
    weight: Tensor,
    hessian: Tensor,
    count: int | None,
    pattern: tuple[int, int] | None,
    name: str | None,
) -> int:
    """Check a matrix, its Hessian and what it shall lose; return the number of weights to drop.

    Raises:
        RequestError: M doesn't divide the width.
        RunError: a Hessian that isn't finite.
        ValueError: shapes or count out of range, or a count that isn't the pattern's.
    """
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"a weight of {list(weight.shape)} and a Hessian of {list(hessian.shape)}")
    if not bool(hessian.isfinite().all()):
        bad = int((~hessian.isfinite()).any(1).sum())
        raise RunError(
            f"`{name or 'matrix'}`: {bad} of {len(hessian)} rows of the Hessian are not finite",
            "an activation overflowed; calibrate in bfloat16 or float32",
        )
    return check_count(weight, count, pattern, name)


def check_count(
    weight: Tensor, count: int | None, pattern: tuple[int, int] | None, name: str | None
) -> int:
    """The number of weights to drop; raises as `check_layer` does."""
    implied = count
    if pattern is not None:
        n, m = pattern
        if not (m >= 1 and 0 <= n <= m):
            raise ValueError(f"{n}:{m} must satisfy 0 <= N <= M and M >= 1")
        require_width(weight.shape[1], n, m, name)
        implied = weight.numel() // m * (m - n)
    if implied is None or not 0 <= implied <= weight.numel():
        raise ValueError(f"can't drop {count} of {weight.numel()} weights")
    if count is not None and count != implied:
        raise ValueError(f"the pattern drops {implied} weights, not {count}")
    return implied
