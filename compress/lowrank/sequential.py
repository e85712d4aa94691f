"""Factors for a layer whose inputs are those of the compressed model, fitted to the dense outputs.

Letters: X the dense model's inputs of a layer, X̃ the compressed model's, C = X X̃ᵀ, G̃ = X̃ X̃ᵀ.

    minimise |W X − U V X̃|_F:   W* = W C G̃⁻¹,   U = Û_r,   V = Û_rᵀ W*

with Û_r the first r eigenvectors of W* G̃ W*ᵀ: the global optimum, since |W X − W' X̃|² is
|W X − W* X̃|² + |(W* − W') X̃|². With X̃ = X it is `truncate`.

W* is a least-squares fit, and fits noise where tokens are few. Two things hold it: both C and G̃
get a little of G̃'s own diagonal (which pulls W* to W, however features are scaled, and makes dead
features keep W), and C ← β C + (1 − β) G̃, with β chosen on tokens held out: β = 0 aims at W X̃,
1 at W X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compress.lowrank.truncate import projected, spectrum

# Of the diagonal: above the noise of sums in float32 (1e-7 of it), which an inverse would blow up
# where tokens are fewer than features; far below the eigenvalues that matter.
RIDGE = 1e-5
_FLOOR = 1e-14  # of the mean diagonal: what a dead feature gets
BETAS = (0.0, 0.5, 1.0)


class Pair(NamedTuple):
    """Sums over the tokens of one part of the calibration set, centred where a bias takes the mean.

    Attributes:
        dense: G = X Xᵀ, [n, n].
        cross: C = X X̃ᵀ.
        gram: G̃ = X̃ X̃ᵀ.
    """

    dense: Tensor
    cross: Tensor
    gram: Tensor

    def __add__(self, other: Pair) -> Pair:  # type: ignore[override]
        return Pair(*(a + b for a, b in zip(self, other, strict=True)))


def least_squares(weight: Tensor, pair: Pair, beta: float, ridge: float = RIDGE) -> Tensor:
    """W* [m, n] float64 for a given β.

    Args:
        weight: W.
        pair: the sums.
        beta: how much of the dense stream's inputs the target has.
        ridge: pull to W, a share of G̃'s diagonal.
    """
    gram = pair.gram.double()
    diagonal = gram.diagonal()
    strength = max(ridge, RIDGE) * diagonal + (_FLOOR * diagonal.mean()).clamp(min=1e-300)
    system = gram.clone()
    system.diagonal().add_(strength)
    mixed = beta * pair.cross.double() + (1 - beta) * gram
    mixed.diagonal().add_(strength)
    target = weight.detach().double() @ mixed  # W* system = target, system symmetric
    lower, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        values, vectors = torch.linalg.eigh(system)
        values = values.clamp(min=float(values[-1]) * 1e-14)
        return ((target @ vectors) / values) @ vectors.T
    return torch.cholesky_solve(target.T, lower).T


def sequential(
    weight: Tensor, pair: Pair, rank: int, beta: float, ridge: float = RIDGE
) -> tuple[Tensor, Tensor]:
    """Return (up, down), float64, balanced; see the head of this file."""
    target = least_squares(weight, pair, beta, ridge)
    basis = spectrum(target, pair.gram).basis
    assert basis is not None
    return projected(target, basis, rank)


def pair_loss(weight: Tensor, up: Tensor, down: Tensor, pair: Pair) -> float:
    """|W X − U V X̃|² from the sums of a part of the tokens."""
    w, product = weight.detach().double(), up.double() @ down.double()
    dense, cross, gram = (part.double() for part in pair)
    first = float(((w @ dense) * w).sum())
    mixed = float(((w @ cross) * product).sum())
    second = float(((product @ gram) * product).sum())
    return max(first - 2 * mixed + second, 0.0)


def choose_beta(
    weight: Tensor,
    fit: Pair,
    held: Pair,
    rank: int,
    betas: Sequence[float] = BETAS,
    ridge: float = RIDGE,
) -> tuple[float, dict[float, float]]:
    """Return the β whose factors, made from `fit`, lose least on `held`, and all losses."""
    found = {}
    for beta in betas:
        up, down = sequential(weight, fit, rank, beta, ridge)
        found[beta] = pair_loss(weight, up, down, held)
    return min(found, key=lambda beta: (found[beta], abs(beta - 0.5))), found
