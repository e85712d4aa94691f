"""Everything that choosing experts needs, from one pass over them.

With B = [S, f_1 … f_E] the outputs of the shared MLP and of every expert on every token, and Y
what the layer returned, the matrices G_ab = sum_t <B_a, B_b>, b_a = sum_t <B_a, Y> and y = sum_t
|Y|^2 give, for any subset and any constants w, the exact error |Y - sum_a w_a B_a|^2 =
w^T G w - 2 w^T b + y, and so the best constants, without another pass.

Letters: T tokens, H hidden size, E experts, N = E + 1 columns (0 is the shared MLP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.experts.capture import LayerData
from compress.experts.layers import ExpertLayer, apply_mlp
from compress.experts.merge import GatedMLP

TILE_BYTES = 1 << 27  # of all experts' outputs on a tile of tokens
SHARED = 0


@dataclass
class Fit:
    """Sums of products of outputs over some tokens."""

    gram: Tensor
    """[N, N] float64"""
    right: Tensor
    """[N] float64"""
    energy: float
    """sum of |Y|^2"""
    tokens: int

    def error(self, constants: Tensor) -> float:
        """Return |Y - sum_a w_a B_a|^2 / |Y|^2 for constants [N], 0 for what isn't kept."""
        w = constants.to(self.gram)
        value = w @ self.gram @ w - 2 * (w @ self.right) + self.energy
        return float(value) / max(self.energy, 1e-300)


@dataclass
class ExpertStatistics:
    """What one pass over a layer's experts found.

    Attributes:
        fit: products over the tokens that choices are made by.
        held: the same over held-out tokens.
        count: [E] tokens routed to each expert.
        mass: [E] sum of routing weights.
        norm: [E] sum over routed tokens of |f_e|.
        weighted_norm: [E] sum over routed tokens of g_e |f_e|.
        power: [E] sum over all tokens of |f_e|^2.
        gate: mean of the shared MLP's sigmoid gate; 1 without one.
        center: [E, H] mean of f_e over all tokens.
    """

    fit: Fit
    held: Fit
    count: Tensor
    mass: Tensor
    norm: Tensor
    weighted_norm: Tensor
    power: Tensor
    gate: float
    center: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of both parts."""
        return self.fit.tokens + self.held.tokens

    def conditional_mean(self) -> Tensor:
        """Mean routing weight of each expert over the tokens routed to it, [E]; 0 if none is.

        Source: Condense-MoE, step 1; it isn't renormalised over the experts kept.
        """
        return self.mass / self.count.clamp(min=1)


def tiles(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover a length."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def tile_size(layer: ExpertLayer) -> int:
    """Return how many tokens' outputs of all experts may be in memory at a time."""
    return max(1, TILE_BYTES // (4 * (layer.count + 1) * layer.hidden))


def input_scales(layer: ExpertLayer, data: LayerData) -> Tensor | None:
    """Return what each expert's input is multiplied by, [E], where routing weights scale inputs.

    It is the mean routing weight over the tokens routed to the expert, 1 where there are none.
    """
    if not layer.scales_input:
        return None
    count = data.chosen.sum(0)
    mean = data.routing.sum(0) / count.clamp(min=1)
    return torch.where(count > 0, mean, 1.0)


def outputs_of(
    experts: list[GatedMLP],
    shared: GatedMLP | None,
    rows: Tensor,
    act: Callable[[Tensor], Tensor],
    scales: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Write every MLP's outputs on rows [t, H] into `out` [N, t, H] float32, and return it."""
    if shared is None:
        out[SHARED].zero_()
    else:
        out[SHARED] = apply_mlp(shared, rows, act)
    for number, expert in enumerate(experts):
        own = rows if scales is None else rows * scales[number].to(rows.dtype)
        out[number + 1] = apply_mlp(expert, own, act)
    return out


def measure_experts(
    layer: ExpertLayer,
    experts: list[GatedMLP],
    shared: GatedMLP | None,
    data: LayerData,
    act: Callable[[Tensor], Tensor],
    *,
    held_share: float = 0.1,
    gated: bool = False,
) -> ExpertStatistics:
    """Run every expert once on every token and sum up what selections need.

    Args:
        layer: the layer.
        experts: its E experts.
        shared: its shared MLP, if it has one.
        data: its calibration tokens.
        act: the experts' activation.
        held_share: share of the tokens, the last ones, that are held out.
        gated: column 0 is the shared MLP's output times its sigmoid gate, not the bare output.

    Cost: E + 1 MLPs on T tokens, and 2 T H N^2 operations for the products.
    Source: orthogonal matching pursuit on outputs; the scores' sums are those of REAP
    (arXiv:2510.13999) and of Condense-MoE (arXiv:2412.00069).
    """
    scales = input_scales(layer, data)
    device, count = data.inputs.device, layer.count
    total = len(data.inputs)
    cut = total - max(1, round(held_share * total))
    size = tile_size(layer)
    buffer = torch.empty(count + 1, size, layer.hidden, dtype=torch.float32, device=device)
    fits = [_empty_fit(count + 1, device), _empty_fit(count + 1, device)]
    sums = torch.zeros(3, count, dtype=torch.float64, device=device)
    center = torch.zeros(count, layer.hidden, dtype=torch.float64, device=device)
    for part, (first, last) in enumerate(((0, cut), (cut, total))):
        for tile in tiles(last - first, size):
            rows = slice(first + tile.start, first + tile.stop)
            out = outputs_of(
                experts, shared, data.inputs[rows], act, scales, buffer[:, : tile.stop - tile.start]
            )
            if gated and data.gate is not None:
                out[SHARED] *= data.gate[rows, None]
            _add(fits[part], out, data.outputs[rows].float())
            norms = out[1:].norm(dim=2).T.double()  # [t, E]
            chosen = data.chosen[rows]
            sums[0] += (norms * chosen).sum(0)
            sums[1] += (norms * data.routing[rows]).sum(0)
            sums[2] += norms.square().sum(0)
            center += out[1:].sum(1).double()
    for fit, tokens in zip(fits, (cut, total - cut), strict=True):
        fit.energy, fit.tokens = float(fit.energy), tokens
    return ExpertStatistics(
        fit=fits[0],
        held=fits[1],
        count=data.chosen.sum(0).double().cpu(),
        mass=data.routing.double().sum(0).cpu(),
        norm=sums[0].cpu(),
        weighted_norm=sums[1].cpu(),
        power=sums[2].cpu(),
        gate=1.0 if data.gate is None else float(data.gate.double().mean()),
        center=(center / total).cpu(),
    )


def _empty_fit(size: int, device: torch.device) -> Fit:
    zeros = torch.zeros(size, size, dtype=torch.float64, device=device)
    return Fit(zeros, zeros[0].clone(), torch.zeros((), dtype=torch.float64, device=device), 0)  # type: ignore[arg-type]


def _add(fit: Fit, out: Tensor, target: Tensor) -> None:
    """Add a tile's products; products in float32, sums over tiles in float64."""
    flat, wanted = out.reshape(len(out), -1), target.reshape(-1)
    fit.gram += (flat @ flat.T).double()
    fit.right += (flat @ wanted).double()
    fit.energy += (wanted @ wanted).double()  # type: ignore[assignment]
