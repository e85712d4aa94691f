"""One layer as a product of two thin ones: the best one for given inputs, and what it loses.

Letters: W [m, n] a layer's weight (m outputs, n inputs), X [n, T] its inputs, one column a token,
G = X Xᵀ their Gram matrix, r the rank, U [m, r] "up", V [r, n] "down".

    minimise |(W − U V) X|_F:   U = Û_r,  V = Û_rᵀ W,   loss² = Σ_{i>r} σ_i²

with Û_r the first r left singular vectors of W X and σ its singular values (DRONE; SVD-LLM's
whitening gives the same product). No inverse occurs, so a singular G (fewer tokens than features,
dead features) does no harm. They come from the smaller of two eigenproblems: W G Wᵀ [m, m], or
Sᵀ Wᵀ W S [n, n] with S Sᵀ = G. Everything is decomposed in float64: in float32 a few loud features
cost a factor of 8 in the loss.

Where X leaves directions open (it spans less than all features), the one that keeps most of W
itself is taken: G gets 1e-12 of its mean diagonal on top, which moves the loss by as little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_TIE = 1e-12  # of the mean diagonal: decides between directions that the inputs don't tell apart
_DEAD = 1e-8  # of the mean scale: what a feature that is always zero counts as where scales divide


class Spectrum(NamedTuple):
    """How well a layer is approximated at every rank.

    Attributes:
        energy: float64 [k], k = min(m, n), descending: the squared singular values of W X.
        basis: float64 [m, k], the left singular vectors, orthonormal; None where not asked for.
    """

    energy: Tensor
    basis: Tensor | None

    @property
    def total(self) -> float:
        """|W X|²."""
        return float(self.energy.sum())

    def lost(self, rank: int) -> float:
        """The least |(W − W') X|² / |W X|² at a rank; 0 where W X is zero."""
        total = self.total
        return float(self.energy[rank:].sum()) / total if total > 0 else 0.0


def truncate(weight: Tensor, gram: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Return the product of two thin matrices that is nearest to a layer on its inputs.

    Args:
        weight: W [out, in], any float dtype, only read.
        gram: G [in, in] of the inputs, symmetric, or None for plain truncated SVD (G = I).
        rank: r, 1 <= r <= min(out, in).

    Returns:
        up [out, r] and down [r, in], float64: U V minimises |(W − U V) X|, and the norms of U's
        columns equal those of V's rows (each factor then takes half of the range).

    Raises:
        ValueError: shapes or rank that don't fit, or a value that isn't finite.

    Cost: one eigendecomposition of size min(out, in) in float64 (two where out > in).
    Source: Chen et al., DRONE (NeurIPS 2021); Wang et al., SVD-LLM, arXiv:2403.07378.
    """
    _check(weight, gram, rank)
    basis = spectrum(weight, gram).basis
    assert basis is not None
    return projected(weight, basis, rank)


def spectrum(weight: Tensor, gram: Tensor | None = None, *, values_only: bool = False) -> Spectrum:
    """Decompose a layer's outputs on its inputs; arguments as in `truncate`.

    Args:
        weight, gram: W and G.
        values_only: leave the vectors out; a third of the time.
    """
    w = weight.detach().double()
    g = None if gram is None else _unambiguous(gram.double())
    if w.shape[0] <= w.shape[1]:
        matrix = w @ w.T if g is None else w @ g @ w.T
        return _eigen(matrix, values_only)
    right = w if g is None else w @ root(g)
    found = _eigen(right.T @ right, values_only)
    if found.basis is None:
        return found
    # The columns are orthogonal up to rounding; small ones are not quite: QR in descending order.
    basis = torch.linalg.qr(right @ found.basis).Q
    return Spectrum(found.energy, basis)


def projected(weight: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (up, down), balanced, of the projection of W [m, n] on a basis's first `rank`."""
    up = basis[:, :rank]
    return balanced(up, up.T @ weight.detach().double())


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Scale columns of U and rows of V so that their norms agree; the product stays.

    All range in one factor overflows float16 and quantises badly.
    """
    ups, downs = up.norm(dim=0), down.norm(dim=1)
    scale = torch.where((ups > 0) & (downs > 0), (downs / ups.clamp(min=1e-300)).sqrt(), 1.0)
    scale = torch.where(scale > 0, scale, 1.0)
    return up * scale, down / scale[:, None]


def root(gram: Tensor) -> Tensor:
    """Return S [n, n] float64 with S Sᵀ = G; eigenvalues at the level of rounding count as zero."""
    values, vectors = torch.linalg.eigh(gram.double())
    floor = len(values) * torch.finfo(torch.float64).eps * values[-1].clamp(min=0)
    return vectors * values.where(values > floor, 0.0).sqrt()


def centred(gram: Tensor, total: Tensor, rows: int) -> Tensor:
    """Return the Gram matrix of inputs less their mean: G − s sᵀ / T, s [n] their sum, float64."""
    s = total.double()
    return gram.double() - torch.outer(s, s) / max(rows, 1)


def crossed(cross: Tensor, left: Tensor, right: Tensor, rows: int) -> Tensor:
    """Return X X̃ᵀ of centred inputs, from sums of X (left) and X̃ (right), float64."""
    return cross.double() - torch.outer(left.double(), right.double()) / max(rows, 1)


def shrunk(gram: Tensor, share: float) -> Tensor:
    """(1 − λ) G + λ mean(diag G) I: for statistics of few tokens."""
    if share == 0:
        return gram
    out = (1 - share) * gram
    out.diagonal().add_(share * gram.diagonal().mean())
    return out


def scaled_gram(mean_abs: Tensor, power: float) -> Tensor:
    """The diagonal Gram matrix diag(s²), s = mean|x|^power, by which ASVD weighs columns.

    A feature that is always zero gets a tiny scale, so that its columns are kept where they cost
    nothing. Source: Yuan et al., ASVD, arXiv:2312.05821; means, not sums, so that the number of
    tokens has no say.
    """
    s = mean_abs.double()
    s = s.clamp(min=_DEAD * max(float(s.mean()), 1e-300))
    return torch.diag(s.pow(2 * power))


def curved(
    weight: Tensor, gram: Tensor, output_gram: Tensor, rank: int
) -> tuple[Tensor, Tensor, Spectrum]:
    """Truncate under the curvature of the loss: minimise |R (W − U V) S|, RᵀR = Γ, S Sᵀ = G.

    Args:
        weight: W [m, n].
        gram: G [n, n].
        output_gram: Γ [m, m], the Gram matrix of the loss's gradients by the outputs; definite.
        rank: r.

    Returns:
        up, down, and the spectrum of R W S.

    Source: K-FAC as a metric for truncation (LEMS, ICML 2026): W' = R⁻¹ [R W S]_r S⁻¹, here in the
    form that inverts R alone.
    """
    values, vectors = torch.linalg.eigh(output_gram.double())
    floor = len(values) * torch.finfo(torch.float64).eps * values[-1].clamp(min=1e-300)
    scales = values.clamp(min=float(floor)).sqrt()
    turned = (vectors * scales).T @ weight.detach().double()  # R W, R = √Λ Qᵀ
    found = spectrum(turned, gram)
    assert found.basis is not None
    first = found.basis[:, :rank]
    up = (vectors / scales) @ first
    return (*balanced(up, first.T @ turned), found)


def loss(weight: Tensor, up: Tensor, down: Tensor, gram: Tensor | None) -> float:
    """|(W − U V) X|², in float64, from G; the factors may have been rounded."""
    rest = weight.detach().double() - up.double() @ down.double()
    seen = rest if gram is None else rest @ gram.double()
    return max(float((seen * rest).sum()), 0.0)


def size_of_output(weight: Tensor, gram: Tensor | None) -> float:
    """|W X|², from G."""
    w = weight.detach().double()
    return max(float(((w if gram is None else w @ gram.double()) * w).sum()), 0.0)


def break_even(out: int, into: int) -> int:
    """The largest rank whose two factors hold fewer weights than the layer, at least 0."""
    return max((out * into - 1) // (out + into), 0)


def _eigen(matrix: Tensor, values_only: bool) -> Spectrum:
    """Eigenvalues, descending and >= 0, and vectors of a symmetric matrix."""
    if values_only:
        values = torch.linalg.eigvalsh(matrix)
        return Spectrum(values.flip(0).clamp(min=0), None)
    values, vectors = torch.linalg.eigh(matrix)
    return Spectrum(values.flip(0).clamp(min=0), vectors.flip(1))


def _unambiguous(gram: Tensor) -> Tensor:
    """G with a trace of the identity, which decides where the inputs don't."""
    out = gram.clone()
    out.diagonal().add_(_TIE * gram.diagonal().mean())
    return out


def _check(weight: Tensor, gram: Tensor | None, rank: int) -> None:
    if weight.dim() != 2:
        raise ValueError(f"weight must be [out, in], not {list(weight.shape)}")
    out, into = weight.shape
    if gram is not None and tuple(gram.shape) != (into, into):
        raise ValueError(f"gram must be [{into}, {into}], not {list(gram.shape)}")
    if not 1 <= rank <= min(out, into):
        raise ValueError(f"rank {rank} is outside 1 to {min(out, into)}")
    for name, value in (("weight", weight), ("gram", gram)):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds a value that isn't finite")
