"""`{"kind": "gated_dense_mlp", "shared": m, "width": n}`: an MoE layer that keeps its shared gate.

`sigmoid(shared_expert_gate(x)) * shared_expert(x) + down(act(gate(x)) * up(x))`, for layers whose
shared MLP has a sigmoid gate that depends on the input, so that it can't be folded into constants.

On disk: `NAME.shared_expert.{gate,up,down}_proj.weight` of width m, `NAME.shared_expert_gate.weight
[1, hidden]`, and, where n is given, `NAME.{gate,up,down}_proj.weight` of width n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, placement, refuse
from compress.checkpoints.edits.dense_mlp import DenseMLP


class GatedDenseMLP(DenseMLP):
    """A gated MLP beside a shared one whose output a sigmoid scales.

    Args:
        hidden: features in and out.
        width: inner features of the MLP beside; None has none.
        shared: inner features of the shared MLP.
        act_fn: the activation of both.
        place: device and dtype.
    """

    def __init__(
        self, hidden: int, width: int | None, shared: int, act_fn: Any, place: dict[str, Any]
    ) -> None:
        super().__init__(hidden, width or 1, act_fn, place=place)
        self.alone = width is None
        if self.alone:
            del self.gate_proj, self.up_proj, self.down_proj
        self.shared_expert = DenseMLP(hidden, shared, act_fn, place=place)
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False, **place)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [..., hidden] to [..., hidden]."""
        scale = torch.sigmoid(self.shared_expert_gate(hidden_states))
        out = scale * self.shared_expert(hidden_states)
        return out if self.alone else out + super().forward(hidden_states)


def make(old: nn.Module, fields: Fields, where: str) -> GatedDenseMLP:
    """Build the layer for an MoE block with a gated shared expert.

    Raises:
        RequestError: `old` is none.
    """
    experts: Any = getattr(old, "experts", None)
    gate: Any = getattr(old, "shared_expert_gate", None)
    if not isinstance(gate, nn.Linear) or not hasattr(experts or old, "act_fn"):
        refuse("gated_dense_mlp", old, where, "MoE blocks whose shared expert has a sigmoid gate")
    act = (experts if experts is not None else old).act_fn
    return GatedDenseMLP(
        gate.in_features, fields.get("width"), int(fields["shared"]), act, placement(old)
    )


KIND = Kind("gated_dense_mlp", make, required=("shared",), optional=("width",))
