"""ADMM pruning: choose weights little by little while the others make up for them.

Letters: W₀ the dense weight, H = Xᵀ X scaled to a unit diagonal and damped, M the mask. Alternates
between Z = (W + U) ∘ M, U ← U + W - Z and W = (W₀ H + ρ (Z - U)) (H + ρ I)⁻¹, all with one inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.sparsity.layer import Pruned, check_layer, choose, dead_first, scaled_hessian

ITERATIONS = 20
CHOOSING = 15


def schedule(count: int, steps: int = CHOOSING) -> list[int]:
    """How many weights are dropped at each choosing step: count * (1 - (1 - t / steps)³), t = 1, ..

    The last entry is count.
    """
    return [round(count * (1 - (1 - (t + 1) / steps) ** 3)) for t in range(steps)]


def admm(
    weight: Tensor,
    hessian: Tensor,
    count: int | None,
    pattern: tuple[int, int] | None = None,
    damp: float = 0.01,
    *,
    iterations: int = ITERATIONS,
    choosing: int = CHOOSING,
    name: str | None = None,
) -> Pruned:
    """Prune one linear layer by ADMM: the whole matrix is ranked at once.

    Args:
        weight: [out, in], any float dtype, only read.
        hessian: [in, in], Xᵀ X up to a factor, float32 or float64, only read.
        count: how many weights to drop; with a pattern None or the number it implies.
        pattern: (N, M) to keep N of every M consecutive inputs, or None.
        damp: added to the Hessian's unit diagonal.
        iterations: in all.
        choosing: the first so many iterations choose the mask, at growing sparsity.
        name: of the matrix, for messages.

    Returns:
        The pruned layer with exactly `count` dropped; equal scores drop the lower index first,
        weights on inputs that were never active go before all others and, if kept, stay.

    Raises:
        RequestError: M doesn't divide the width.
        RunError: a Hessian that isn't finite.
        ValueError: shapes or count out of range.

    Cost: in³ for the inverse, 2 * iterations * out * in² for the products.
    Source: Boža, arXiv:2401.02938. Departures: the schedule acts on unstructured masks too, N:M may
    be any (its weights go by the same schedule, the cheapest first), damping is 0.01, not 0.1 (on
    correlated inputs the error was an eighth lower), and ρ is the damped diagonal, 1 + damp, not 1:
    then a Hessian c I gives the magnitude mask and unchanged survivors.
    """
    count = check_layer(weight, hessian, count, pattern, name)
    scaled = scaled_hessian(hessian, damp)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    dense = weight.detach().to(dtype) * scaled.scale.to(dtype)
    pull = _pull(scaled.matrix, 1 + scaled.damp).to(dtype)
    counts = schedule(count, choosing)
    current, dual = dense, torch.zeros_like(dense)
    keep = torch.ones_like(dense, dtype=torch.bool)
    for step in range(iterations):
        total = current + dual
        if step < choosing:
            keep = choose(dead_first(total.abs(), weight, scaled.dead), counts[step], pattern)
        kept = total * keep
        dual = total - kept
        current = dense + (kept - dual - dense) @ pull
    change = current + dual - dense
    return Pruned(keep, scaled.changed(weight, change, keep, weight.dtype), scaled.note)


def _pull(matrix: Tensor, rho: float) -> Tensor:
    """ρ (H + ρ I)⁻¹."""
    shifted = matrix.clone()
    shifted.diagonal().add_(rho)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted)).mul_(rho)
