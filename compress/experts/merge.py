"""Several gated MLPs with constant weights as one gated MLP, exactly.

A gated MLP is D (act(G x) * U x). Activation and product act neuron by neuron, so a weighted sum
of such MLPs is one whose rows of G and U are all of theirs, and whose columns of D are all of
theirs times the weights (cd-moe: G = [G_1; G_2; …], D = [w_1 D_1, w_2 D_2, …]).

Letters: H hidden size, I width of one MLP, W width of all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GatedMLP(NamedTuple):
    """The weights of D (act(G x) * U x)."""

    gate: Tensor
    """[W, H]"""
    up: Tensor
    """[W, H]"""
    down: Tensor
    """[H, W]"""

    @property
    def width(self) -> int:
        """W."""
        return self.gate.shape[0]


def merge_experts(
    gates: Sequence[Tensor] | Tensor,
    ups: Sequence[Tensor] | Tensor,
    downs: Sequence[Tensor] | Tensor,
    weights: Sequence[float] | Tensor,
) -> GatedMLP:
    """Put MLPs, each times a constant, into one MLP: sum_e w_e D_e (act(G_e x) * U_e x).

    Args:
        gates, ups: one [I, H] per MLP; widths may differ.
        downs: one [H, I] per MLP.
        weights: one number per MLP. It goes into the down projection, multiplied in float32 or
            better and rounded once.

    Returns:
        gate [W, H], up [W, H], down [H, W] in the MLPs' dtype, W the sum of their widths.

    Raises:
        ValueError: no MLP, lists of different lengths, or shapes that don't belong together.
    """
    factors = torch.as_tensor(weights, dtype=torch.float64).reshape(-1).tolist()
    if not len(gates) == len(ups) == len(downs) == len(factors) > 0:
        raise ValueError(
            f"{len(gates)} gates, {len(ups)} ups, {len(downs)} downs and {len(factors)} weights: "
            "each MLP needs one of each"
        )
    for gate, up, down in zip(gates, ups, downs, strict=True):
        if gate.shape != up.shape or down.shape != gate.shape[::-1]:
            raise ValueError(
                f"gate {tuple(gate.shape)}, up {tuple(up.shape)} and down {tuple(down.shape)} "
                "aren't [I, H], [I, H] and [H, I]"
            )
    scaled = [_scaled(down, factor) for down, factor in zip(downs, factors, strict=True)]
    return GatedMLP(torch.cat(list(gates)), torch.cat(list(ups)), torch.cat(scaled, dim=1))


def widened(mlp: GatedMLP, width: int) -> GatedMLP:
    """Return the MLP with zero rows and columns up to a width; it computes the same.

    Raises:
        ValueError: it is wider already.
    """
    more = width - mlp.width
    if more < 0:
        raise ValueError(f"an MLP of width {mlp.width} can't be made {width} wide")
    rows = (0, 0, 0, more)
    return GatedMLP(
        torch.nn.functional.pad(mlp.gate, rows),
        torch.nn.functional.pad(mlp.up, rows),
        torch.nn.functional.pad(mlp.down, (0, more)),
    )


def _scaled(down: Tensor, factor: float) -> Tensor:
    wide = torch.promote_types(down.dtype, torch.float32)
    return (down.to(wide) * factor).to(down.dtype)
