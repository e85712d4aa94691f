"""`{"kind": "dense_mlp", "width": n}`: one gated MLP in the place of a mixture of experts.

On disk: `NAME.gate_proj.weight [width, hidden]`, `NAME.up_proj.weight [width, hidden]`,
`NAME.down_proj.weight [hidden, width]`, and the three biases where the experts had them. The
activation is the experts' own. A plain gated MLP can be given another width too.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, placement, refuse


class DenseMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`, or the clamped form of GPT-OSS where `limit` is given.

    Args:
        hidden: features in and out.
        width: inner features.
        act_fn: the activation of the gate; unused with `limit`.
        bias: whether the three maps have one.
        pair: return (y, None), for layers that expect router scores beside the output.
        alpha, limit: GPT-OSS: gate capped at limit, up clamped to ±limit,
            (up + 1) * gate * sigmoid(alpha * gate).
        place: device and dtype.
    """

    def __init__(
        self,
        hidden: int,
        width: int,
        act_fn: Any,
        *,
        bias: bool = False,
        pair: bool = False,
        alpha: float | None = None,
        limit: float | None = None,
        place: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        place = place or {}
        self.gate_proj = nn.Linear(hidden, width, bias=bias, **place)
        self.up_proj = nn.Linear(hidden, width, bias=bias, **place)
        self.down_proj = nn.Linear(width, hidden, bias=bias, **place)
        self.act_fn = act_fn
        self.pair, self.alpha, self.limit = pair, alpha, limit

    def forward(self, hidden_states: Tensor) -> Any:
        """Map [..., hidden] to [..., hidden], as a pair with None if the layer expects one."""
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        if self.limit is None:
            inner = self.act_fn(gate) * up
        else:
            gate = gate.clamp(max=self.limit)
            up = up.clamp(-self.limit, self.limit)
            inner = (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
        out = self.down_proj(inner)
        return (out, None) if self.pair else out


def make(old: nn.Module, fields: Fields, where: str) -> DenseMLP:
    """Build the dense MLP for an MoE block or a gated MLP.

    Raises:
        RequestError: `old` is neither, or its experts are of an unknown form.
    """
    width = int(fields["width"])
    experts: Any = getattr(old, "experts", None)
    place = placement(old)
    if isinstance(getattr(old, "gate_proj", None), nn.Linear) and hasattr(old, "act_fn"):
        gate: Any = old.gate_proj
        extra = {name: getattr(old, name, None) for name in ("alpha", "limit")}
        pair = bool(getattr(old, "pair", False))
        bias = gate.bias is not None
        return DenseMLP(
            gate.in_features, width, old.act_fn, bias=bias, pair=pair, place=place, **extra
        )
    if getattr(experts, "gate_up_proj", None) is None or experts.gate_up_proj.dim() != 3:
        refuse("dense_mlp", old, where, "MoE blocks with gated, fused experts, and gated MLPs")
    _, first, second = experts.gate_up_proj.shape
    if hasattr(experts, "alpha") and hasattr(experts, "limit"):  # GPT-OSS: [experts, hidden, 2 I]
        return DenseMLP(
            first,
            width,
            None,
            bias=hasattr(experts, "down_proj_bias"),
            pair=True,
            alpha=experts.alpha,
            limit=experts.limit,
            place=place,
        )
    if tuple(experts.down_proj.shape[1:]) == (second // 2, first) and hasattr(experts, "act_fn"):
        # llama4: [experts, hidden, 2 * width]; its decoder layer expects scores beside the output
        return DenseMLP(first, width, experts.act_fn, pair=True, place=place)
    if tuple(experts.down_proj.shape[1:]) != (second, first // 2) or not hasattr(experts, "act_fn"):
        refuse("dense_mlp", old, where, "experts stored as [experts, 2 * width, hidden]")
    returned = str(inspect.signature(type(old).forward).return_annotation)
    bias = any("bias" in name for name, _ in experts.named_parameters())
    return DenseMLP(
        second, width, experts.act_fn, bias=bias, pair="tuple" in returned.lower(), place=place
    )


KIND = Kind("dense_mlp", make, required=("width",))
