"""A condensed layer as an expert layer with one expert, for families that know no dense layer.

The MLP's neurons are shared out: what the layer's shared MLP has room for goes there, the others
into the one expert, and both are filled up with neurons of zeros. The sum is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compress.experts.condensing import Condensed
from compress.experts.fewer import PRUNE, fewer_tensors, routes
from compress.experts.merge import GatedMLP, widened

_PARTS = ("gate_proj", "up_proj", "down_proj")


def one_expert_tensors(
    tensors: Mapping[str, Tensor], made: Condensed, width: int, shared: int
) -> dict[str, Tensor]:
    """Return a block's tensors with one expert in place of all.

    Args:
        tensors: run-time name -> tensor, experts stacked.
        made: the condensed layer.
        width: of the expert.
        shared: of the shared MLP beside it; 0 without one.
    """
    layer = made.layer
    out = fewer_tensors(tensors, layer, {"kind": PRUNE, "experts": [0]})
    for name, value in out.items():
        if routes(name, layer) and not name.startswith(f"{layer.experts}."):
            out[name] = torch.zeros_like(value)
    expert, beside = shared_out(made, width, shared)
    first, second = f"{layer.experts}.gate_up_proj", f"{layer.experts}.down_proj"
    dtype = tensors[first].dtype
    out[first] = torch.cat([expert.gate, expert.up])[None].to(dtype)
    out[second] = expert.down[None].to(dtype)
    if beside is not None:
        for part, value in zip(_PARTS, beside, strict=True):
            out[f"{layer.shared}.{part}.weight"] = value.to(dtype)
    if layer.shared_gate is not None:
        name = f"{layer.shared_gate}.weight"
        out[name] = torch.zeros_like(out[name]) if made.gate is None else made.gate.to(dtype)
    return out


def shared_out(made: Condensed, width: int, shared: int) -> tuple[GatedMLP, GatedMLP | None]:
    """Return the expert [width] and the shared MLP [shared], None without one."""
    mlp = made.mlp
    if mlp is None:
        assert made.shared is not None
        mlp = _neurons(made.shared, slice(0, 0))
    if not shared:
        return widened(mlp, width), None
    if made.gate is not None:
        return widened(mlp, width), made.shared
    first = _neurons(mlp, slice(0, shared))
    if made.layer.shared_gate is not None:  # a gate whose weight is 0 halves what it returns
        first = first._replace(down=2 * first.down)
    return widened(_neurons(mlp, slice(shared, None)), width), widened(first, shared)


def _neurons(mlp: GatedMLP, some: slice) -> GatedMLP:
    return GatedMLP(mlp.gate[some], mlp.up[some], mlp.down[:, some])
