"""ALPS: ADMM whose penalty grows as the mask settles, then conjugate gradients on the mask.

Letters: W₀ the dense weight, H = Xᵀ X scaled to a unit diagonal and damped, D the sparse weight, V
the dual. Alternates between W = (W₀ H - V + ρ D) (H + ρ I)⁻¹, D = the best of W + V / ρ, and
V ← V + ρ (W - D). H is decomposed into eigenvalues once, so that any ρ costs one product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.sparsity.layer import Pruned, check_layer, choose, dead_first, scaled_hessian
from compress.sparsity.refit import conjugate_gradient

RHO = 0.1
LEAST_RHO = 1e-4
SLOW = 0.005  # share of the mask: fewer changes than this at first, and the penalty is too large
CHECK = 3  # iterations between two looks at the mask
SETTLED = 30  # from here on a mask that hardly changes is good enough


def alps(
    weight: Tensor,
    hessian: Tensor,
    count: int | None,
    pattern: tuple[int, int] | None = None,
    damp: float = 0.01,
    *,
    iterations: int = 300,
    refinements: int = 10,
    name: str | None = None,
) -> Pruned:
    """Prune one linear layer by ALPS: the whole matrix is ranked at once.

    Args:
        weight: [out, in], any float dtype, only read.
        hessian: [in, in], Xᵀ X up to a factor, float32 or float64, only read.
        count: how many weights to drop; with a pattern None or the number it implies.
        pattern: (N, M) to keep N of every M consecutive inputs, or None.
        damp: added to the Hessian's unit diagonal.
        iterations: of ADMM, at most.
        refinements: steps of conjugate gradients on the mask found, at most.
        name: of the matrix, for messages.

    Returns:
        The pruned layer with exactly `count` dropped; equal scores drop the lower index first,
        weights on inputs that were never active go before all others and, if kept, stay.

    Raises:
        RequestError: M doesn't divide the width.
        RunError: a Hessian that isn't finite.
        ValueError: shapes or count out of range.

    Cost: about 10 in³ in float64 for the eigenvalues, 2 * out * in² an iteration.
    Source: Meng et al., arXiv:2406.07831. Departures: the mask that ADMM starts from is refined as
    well, and the better of the two is taken. So the error is never above that of the largest scaled
    weights refined, and a Hessian c I gives the magnitude mask and unchanged survivors. A mask that
    doesn't change at first starts again with a smaller penalty, a few times, as one that hardly
    changes does.
    """
    count = check_layer(weight, hessian, count, pattern, name)
    scaled = scaled_hessian(hessian, damp)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    dense = weight.detach().to(dtype) * scaled.scale.to(dtype)
    matrix = scaled.matrix.to(dtype)

    def best(values: Tensor) -> Tensor:
        return choose(dead_first(values.abs(), weight, scaled.dead), count, pattern)

    first = best(dense)
    masks = [first]
    if 0 < count < weight.numel():
        masks.append(_search(dense, scaled.matrix, first, best, iterations))
    changes = [_refined(dense, keep, matrix, refinements) for keep in masks]
    errors = [float(((c @ matrix) * c).sum(dtype=torch.float64)) for c in changes]
    keep, change = min(zip(errors, masks, changes), key=lambda found: found[0])[1:]
    return Pruned(keep, scaled.changed(weight, change, keep, weight.dtype), scaled.note)


def _search(
    dense: Tensor,
    matrix: Tensor,
    first: Tensor,
    best: Callable[[Tensor], Tensor],
    iterations: int,
) -> Tensor:
    """The mask that ADMM settles on."""
    values, vectors = (part.to(dense.dtype) for part in torch.linalg.eigh(matrix.double()))
    kept = int(first.sum())
    rho, grown = RHO, False
    inverse = (vectors / (values + rho)) @ vectors.mT
    keep = before = first
    sparse, dual = dense * first, torch.zeros_like(dense)
    for step in range(1, iterations + 1):
        total = dense + (rho * (sparse - dense) - dual) @ inverse + dual / rho
        keep = best(total)
        sparse = total * keep
        dual = rho * (total - sparse)
        if step % CHECK:
            continue
        changed = int((keep != before).sum())
        before = keep
        grown |= changed > SLOW * kept
        if grown:
            if changed == 0 or (step > SETTLED and changed < 0.0003 * kept):
                break
            rho *= _growth(changed / kept)
        else:  # so large a penalty froze the mask at once: start again with a smaller one
            if rho < LEAST_RHO:
                break
            rho /= 5
            before, sparse, dual = first, dense * first, torch.zeros_like(dense)
        inverse = (vectors / (values + rho)) @ vectors.mT
    return keep


def _growth(changed: float) -> float:
    """By how much the penalty grows, given the share of the mask that changed."""
    if changed > 0.1:
        return 1.3
    return 1.2 if changed > SLOW else 1.1


def _refined(dense: Tensor, keep: Tensor, matrix: Tensor, iterations: int) -> Tensor:
    plain = -dense * ~keep
    return conjugate_gradient(plain, plain, keep, matrix, iterations, 1e-4)
