"""A condensed layer's down projection, refitted to what the whole layer returned.

With A = act(G x) * U x [T, W] the neurons of the condensed layer, Y [T, H] the outputs of the layer
that it replaces and D_0 the down projection that constant weights give,

    D' = argmin |A D'^T - Y|^2 + l |D' - D_0|^2,   l = ridge * mean(diag(A^T A)),

so that a ridge of infinity returns D_0. The ridge is chosen on held-out tokens among a few and
infinity: too few tokens for the width cost tokens or strength, never a worse layer.

Letters: T tokens, W width, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.experts.capture import LayerData
from compress.experts.layers import neurons
from compress.experts.merge import GatedMLP
from compress.experts.statistics import tiles

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_TILE = 4096  # tokens at a time


@dataclass
class Normal:
    """The normal equations of one part of the tokens."""

    gram: Tensor
    """A^T A, [W, W] float64."""
    right: Tensor
    """A^T Y, [W, H] float64."""
    energy: float
    """|Y|^2"""
    tokens: int

    def error(self, down: Tensor) -> float:
        """Return |A D^T - Y|^2 / |Y|^2 for a down projection [H, W]."""
        d = down.to(self.gram).T
        value = (d * (self.gram @ d)).sum() - 2 * (d * self.right).sum() + self.energy
        return float(value) / max(self.energy, 1e-300)

    def __add__(self, other: Normal) -> Normal:
        return Normal(
            self.gram + other.gram,
            self.right + other.right,
            self.energy + other.energy,
            self.tokens + other.tokens,
        )


@dataclass(frozen=True)
class Refitted:
    """A refitted down projection and how it did on held-out tokens.

    Attributes:
        down: [H, W] float32.
        ridge: the strength chosen; infinity keeps the anchor.
        held_error: relative error on held-out tokens, of the fit to the others.
        anchor_error: that of the anchor.
        tried: ridge -> held-out error.
        note: what a user should know, "" if nothing.
    """

    down: Tensor
    ridge: float
    held_error: float
    anchor_error: float
    tried: dict[float, float] = field(default_factory=dict)
    note: str = ""


def normal_equations(
    mlp: GatedMLP, data: LayerData, act: Callable[[Tensor], Tensor], target: Tensor | None = None
) -> Normal:
    """Sum up a condensed layer's normal equations over tokens.

    Args:
        mlp: the condensed layer.
        data: the layer's tokens.
        act: the activation.
        target: [T, H] instead of what the layer returned.
    """
    wanted = data.outputs if target is None else target
    width, hidden = mlp.width, mlp.down.shape[0]
    device = data.inputs.device
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    right = torch.zeros(width, hidden, dtype=torch.float64, device=device)
    energy = torch.zeros((), dtype=torch.float64, device=device)
    for rows in tiles(len(data.inputs), _TILE):
        a, y = neurons(mlp, data.inputs[rows], act).float(), wanted[rows].float()
        gram += (a.T @ a).double()
        right += (a.T @ y).double()
        energy += y.double().square().sum()
    return Normal(gram, right, float(energy), len(data.inputs))


def ridge_refit(
    fit: Normal, held: Normal, anchor: Tensor, ridges: Sequence[float] = RIDGES
) -> Refitted:
    """Choose the ridge on held-out tokens, then fit to all of them.

    Args:
        fit: normal equations to solve.
        held: those of held-out tokens.
        anchor: [H, W], the down projection of constant weights.
        ridges: strengths to try; infinity, the anchor itself, is always among them.

    Cost: a Cholesky decomposition of [W, W] in float64 for each ridge.
    """
    tried = {math.inf: held.error(anchor)}
    for ridge in ridges:
        solved = _solve(fit, anchor, ridge)
        if solved is not None:
            tried[ridge] = held.error(solved)
    best = min(tried, key=lambda ridge: (tried[ridge], -ridge))
    down = None if math.isinf(best) else _solve(fit + held, anchor, best)
    width = anchor.shape[1]
    note = ""
    if fit.tokens + held.tokens < 8 * width:
        note = f"{fit.tokens + held.tokens} tokens for a width of {width}: 8 a column are better"
    if down is None:
        best, down = math.inf, anchor.double()
    return Refitted(down.float(), best, tried[best], tried[math.inf], tried, note)


def _solve(normal: Normal, anchor: Tensor, ridge: float) -> Tensor | None:
    """Return D' [H, W] float64, or None where the system isn't definite."""
    strength = ridge * normal.gram.diagonal().mean()
    system = normal.gram.clone()
    system.diagonal().add_(strength)
    right = normal.right + strength * anchor.to(normal.right).T
    lower, info = torch.linalg.cholesky_ex(system)
    if int(info):
        return None
    found = torch.cholesky_solve(right, lower)
    return found.T if bool(found.isfinite().all()) else None
