"""Weight decay of factors: none, of each factor (l2), or of their product (frobenius).

Decay of the factors, lambda/2 (|U|² + |V|²), is a nuclear-norm penalty on the product: it lowers
the rank further. Frobenius decay, lambda/2 |U V|², is what decay is to a dense layer
(arXiv:2105.01029); its gradients are lambda U (V V^T) and lambda (U^T U) V. Like AdamW's, it acts
beside the gradient: U loses lr * lambda * U (V V^T) before a step, outside clipping and moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.edits.lowrank import LowRank

DECAYS = ("none", "l2", "frobenius")


def frobenius_gradients(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of |up · down|² / 2 by up [out, rank] and by down [rank, in]."""
    return up @ (down @ down.T), (up.T @ up) @ down


def set_factor_decay(
    optimizer: torch.optim.Optimizer, layers: Mapping[str, LowRank], kind: str, decay: float
) -> None:
    """Give the factors their own decay; call it before the first step.

    Args:
        optimizer: whose groups hold the factors, with or without decay.
        layers: the layers of two factors.
        kind: of DECAYS; `l2` leaves the groups as they are.
        decay: lambda of `frobenius`.
    """
    if kind == "l2" or not layers:
        return
    factors = {id(w) for layer in layers.values() for w in _weights(layer)}
    for group in list(optimizer.param_groups):
        own = [p for p in group["params"] if id(p) in factors]
        if not own or not group.get("weight_decay"):
            continue
        group["params"] = [p for p in group["params"] if id(p) not in factors]
        options = {key: value for key, value in group.items() if key != "params"}
        optimizer.add_param_group({**options, "params": own, "weight_decay": 0.0})
    optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"]]
    if kind == "frobenius" and decay > 0:
        _Shrink(layers, decay).attach(optimizer)


class _Shrink:
    """Takes the decay off before each step, at the rate of the group that a factor is in."""

    def __init__(self, layers: Mapping[str, LowRank], decay: float) -> None:
        self.pairs = [_weights(layer) for layer in layers.values()]
        self.decay = decay

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Register with an optimizer; a step that is left out decays nothing."""
        optimizer.register_step_pre_hook(self)

    @torch.no_grad()
    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for up, down in self.pairs:
            by_up, by_down = frobenius_gradients(up.flatten(1), down.flatten(1))
            up.sub_(by_up.view_as(up), alpha=rates[id(up)] * self.decay)
            down.sub_(by_down.view_as(down), alpha=rates[id(down)] * self.decay)


def _weights(layer: LowRank) -> tuple[Tensor, Tensor]:
    up: Any = layer.up.weight
    down: Any = layer.down.weight
    return up, down
