"""Drawn expert layers with their tokens, for tests of pure functions."""

import itertools
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from compress.experts.capture import LayerData
from compress.experts.layers import ExpertLayer
from compress.experts.merge import GatedMLP


def make_layer(
    count=6, width=5, hidden=8, tokens=400, routed=2, shared=True, gated=False, seed=0, **other
):
    """Return a drawn layer, its MLPs, and what it does to drawn tokens, in float64."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)
    mlp = lambda w: GatedMLP(draw(w, hidden), draw(w, hidden), draw(hidden, w) / w)
    experts = [mlp(width) for _ in range(count)]
    beside = mlp(width + 2) if shared else None
    x = draw(tokens, hidden)
    scores = (x @ draw(hidden, count)).softmax(1)
    top = scores.topk(routed, dim=1)
    chosen = torch.zeros(tokens, count, dtype=torch.bool).scatter_(1, top.indices, True)
    routing = torch.where(chosen, scores, 0.0)
    gate = (x @ draw(hidden)).sigmoid() if gated else None
    outputs = [run(e, x) for e in experts]
    y = sum(routing[:, e, None] * outputs[e] for e in range(count))
    if beside is not None:
        y = y + (run(beside, x) if gate is None else gate[:, None] * run(beside, x))
    layer = ExpertLayer(
        "block", 0, "block.mlp", "block.mlp.experts", count, width, hidden,
        "block.mlp.shared" if shared else None, width + 2 if shared else 0,
        "block.mlp.gate" if gated else None, other.get("scales_input", False), 1.0,
    )  # fmt: skip
    data = LayerData(x, y, routing.float(), chosen, gate, draw(tokens, hidden))
    return SimpleNamespace(
        layer=layer, experts=experts, shared=beside, data=data, outputs=outputs, act=F.silu,
        gate_row=draw(1, hidden) if gated else None,
    )  # fmt: skip


def run(mlp, x):
    """The MLP by its definition."""
    return (F.silu(x @ mlp.gate.T) * (x @ mlp.up.T)) @ mlp.down.T


def subsets(count, size):
    """All subsets of a size."""
    return itertools.combinations(range(count), size)
