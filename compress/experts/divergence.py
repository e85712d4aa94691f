"""The published objective: how far a layer's output drifts, as a divergence over its features.

Condense-MoE compares softmax(h) over the hidden dimension of a decoder layer's output with and
without the change, in float32: JS = KL(p|m)/2 + KL(q|m)/2, m = (p + q)/2, in nats (at most ln 2),
mean over tokens (arXiv:2412.00069, from the authors' code: 1e-10 inside the logarithms).

Letters: T tokens, H hidden size, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.experts.capture import LayerData
from compress.experts.layers import ExpertLayer
from compress.experts.merge import GatedMLP
from compress.experts.statistics import SHARED, input_scales, outputs_of, tile_size, tiles

_EPSILON = 1e-10


def js_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of softmax over the last axis, in nats: [..., H] -> [...].

    Between 0 and ln 2, symmetric, 0 for equal inputs.
    """
    p, q = first.float().softmax(-1), second.float().softmax(-1)
    middle = ((p + q) / 2 + _EPSILON).log()
    left = (p * ((p + _EPSILON).log() - middle)).sum(-1)
    right = (q * ((q + _EPSILON).log() - middle)).sum(-1)
    return ((left + right) / 2).clamp(min=0.0)


def greedy_divergence(
    layer: ExpertLayer,
    experts: list[GatedMLP],
    shared: GatedMLP | None,
    data: LayerData,
    act: Callable[[Tensor], Tensor],
    constants: Tensor,
    count: int,
    after: Callable[[Tensor], Tensor] = lambda h: h,
) -> list[int]:
    """Choose experts one by one, each the one with which the layer's output drifts least.

    Args:
        layer, experts, shared, data, act: the layer, as in `measure_experts`; the data with its
            residual stream; texts count alike where it has their weights, however long they are.
        constants: [E + 1] of every MLP, the shared one first; an expert whose constant is 0 was
            never routed to and isn't tried.
        count: how many experts to keep.
        after: what the output goes through before it is compared: the final norm behind the last
            layer, as published.

    Cost: count passes of all experts over the tokens.
    """
    assert data.stream is not None
    scales, size = input_scales(layer, data), tile_size(layer)
    buffer = torch.empty(layer.count + 1, size, layer.hidden, device=data.inputs.device)
    factors = constants.to(buffer)[:, None, None]
    kept: list[int] = [SHARED]
    for _ in range(count):
        drift = torch.zeros(layer.count, dtype=torch.float64, device=buffer.device)
        for rows in tiles(len(data.inputs), size):
            out = buffer[:, : rows.stop - rows.start]
            outputs_of(experts, shared, data.inputs[rows], act, scales, out)
            out *= factors
            whole = data.stream[rows].float()
            base = whole + out[kept].sum(0)
            wanted = after(whole + data.outputs[rows].float())
            share = 1.0 if data.weight is None else data.weight[rows].to(drift)
            for expert in range(layer.count):
                each = js_divergence(wanted, after(base + out[expert + 1])).double()
                drift[expert] += (each * share).sum()
        idle = (constants[1:] == 0).to(drift.device)
        drift[idle] = torch.inf
        drift[[e - 1 for e in kept if e != SHARED]] = torch.inf
        kept.append(int(drift.argmin()) + 1)
    return [e - 1 for e in kept[1:]]
