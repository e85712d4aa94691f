"""`{"kind": "expert_list"}`: stacked experts, each apart, so that their layers can be edited.

transformers keeps the experts of a layer as two tensors [experts, out, in]. As a list they are
linear layers of their own, `NAME.3.gate_linear`, `NAME.3.up_linear`, `NAME.3.down_linear`, which
take edits such as `lowrank` with a rank for each. What is computed is the same.

On disk: `NAME.E.up_linear.weight [out, in]` and so on, `bias [out]` where the experts have biases.
The names aren't `up_proj`: a family's own conversion would stack those again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _default_apply_gate

from compress.checkpoints.edits.base import Fields, Kind, placement, refuse

LEAVES = {"gate_proj": "gate_linear", "up_proj": "up_linear", "down_proj": "down_linear"}
_STACKED = {leaf: name for name, leaf in LEAVES.items()}
_STACKS = {True: ("gate_up_proj", "down_proj"), False: ("up_proj", "down_proj")}


class ExpertList(nn.ModuleList):
    """Experts one by one, in the place of a module that stacks them.

    What the old module was told (its activation, its limits, how many experts there are) is kept:
    its own gating function is run with this module in its place.

    Args:
        old: the module that stacks experts.
        act_fn: its activation.
    """

    act_fn: Any
    _gate: Any

    def __init__(self, old: nn.Module, act_fn: Any) -> None:
        super().__init__()
        cls: Any = type(old)
        kept = {k: v for k, v in vars(old).items() if k not in vars(nn.Module()) and k != "act_fn"}
        self.__dict__.update(kept)
        self.__dict__["act_fn"] = act_fn  # no part of the list: its parts are the experts
        self.__dict__["_gate"] = cls._apply_gate if kept["has_gate"] else None

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Run each expert on the tokens that are sent to it.

        Args:
            hidden_states: [N, hidden].
            top_k_index: int64 [N, K], the experts of each token.
            top_k_weights: [N, K], their weights.

        Returns:
            [N, hidden].
        """
        chosen = top_k_index.shape[-1]
        experts, order = torch.sort(top_k_index.reshape(-1))
        rows = hidden_states[order // chosen]
        # The sizes of the pieces must be known on the host: one sync a call.
        counts = torch.bincount(experts, minlength=len(self)).tolist()
        found = [
            expert.down_linear(self._activated(expert, piece))  # type: ignore[operator]
            for expert, piece in zip(self, rows.split(counts), strict=True)
            if len(piece)
        ]
        if not found:  # no tokens at all
            return torch.zeros_like(hidden_states)
        out = torch.cat(found) * top_k_weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        # Not index_add_, whose order of sums isn't fixed on a GPU.
        summed = out[back].view(-1, chosen, out.shape[-1]).sum(1)
        return summed.to(hidden_states.dtype)

    def _activated(self, expert: Any, rows: Tensor) -> Tensor:
        up = expert.up_linear(rows)
        if self._gate is None:
            return self.act_fn(up)
        gate = expert.gate_linear(rows)
        if self._gate is _default_apply_gate:
            return self.act_fn(gate) * up
        whole = self.is_concatenated
        pair = torch.cat((gate, up), -1) if whole else torch.stack((gate, up), -1).flatten(-2)
        return self._gate(self, pair)


def stacked_name(name: str) -> str:
    """Return what a list's layer is called where experts are stacked: `….3.up_proj`."""
    head, _, leaf = name.rpartition(".")
    return f"{head}.{_STACKED[leaf]}" if leaf in _STACKED else name


def can_list(experts: nn.Module) -> bool:
    """Whether a module stacks experts in a way that is known here."""
    cls: Any = type(experts)
    stacks = _STACKS[bool(getattr(experts, "has_gate", False))]
    own: dict[str, Any] = dict(experts.named_parameters())
    known = {*stacks, *(f"{name}_bias" for name in stacks)}
    return (
        hasattr(experts, "has_gate")
        and not getattr(experts, "has_post_expert_norm", False)
        and set(stacks) <= set(own) <= known
        and all(own[name].ndim == 3 for name in stacks)
        and (hasattr(experts, "act_fn") or cls._apply_gate is not _default_apply_gate)
    )


def listed(tensors: Mapping[str, Tensor], experts: Any) -> dict[str, Tensor]:
    """Return stacked tensors as views for each layer of each expert.

    Args:
        tensors: by name within the module, "gate_up_proj" [E, …, …] and so on.
        experts: the module that stacks them, which knows their layout.

    Returns:
        "0.gate_linear.weight" [out, in], and "….bias" [out] where there are biases.
    """
    found: dict[str, Tensor] = {}
    for name in _STACKS[experts.has_gate]:
        weight, bias = tensors[name], tensors.get(f"{name}_bias")
        weight = weight.mT if experts.is_transposed else weight
        for leaf, rows in _parts(name, weight.shape[1], experts):
            for expert in range(weight.shape[0]):
                found[f"{expert}.{leaf}.weight"] = weight[expert, rows]
                if bias is not None:
                    found[f"{expert}.{leaf}.bias"] = bias[expert, rows]
    return found


def stack(experts: ExpertList, into: nn.Module) -> None:
    """Put the weights of a list back into a module that stacks them.

    Args:
        experts: the list; layers of two factors are multiplied out, in float64.
        into: the module, whose parameters get memory here.
    """
    place = placement(experts)
    for name, parameter in list(into.named_parameters()):
        new = torch.empty(parameter.shape, **place)
        setattr(into, name, nn.Parameter(new, requires_grad=parameter.requires_grad))
    views = listed({k: v.detach() for k, v in into.named_parameters()}, into)
    for key, view in views.items():
        expert, leaf, kind = key.split(".")
        layer: Any = getattr(experts[int(expert)], leaf)
        product = getattr(layer, "product", None) if kind == "weight" else None
        view.copy_(product() if product else getattr(layer, kind).detach())


def _parts(name: str, out: int, experts: Any) -> list[tuple[str, slice]]:
    if name != "gate_up_proj":
        return [(LEAVES[name], slice(None))]
    if not experts.is_concatenated:
        return [("gate_linear", slice(0, None, 2)), ("up_linear", slice(1, None, 2))]
    return [("gate_linear", slice(0, out // 2)), ("up_linear", slice(out // 2, None))]


def make(old: nn.Module, fields: Fields, where: str) -> ExpertList:
    """Build the list, with the experts' own weights.

    Raises:
        RequestError: `old` doesn't stack experts, or not in a way that is known here.
    """
    if not can_list(old):
        refuse("expert_list", old, where, "modules that stack experts and leave running to the "
               "library")  # fmt: skip
    new = ExpertList(old, getattr(old, "act_fn", None))
    tensors = listed({k: v.detach() for k, v in old.named_parameters()}, old)
    for number in range(next(old.parameters()).shape[0]):
        expert = nn.Module()
        for leaf in LEAVES.values():
            weight = tensors.get(f"{number}.{leaf}.weight")
            if weight is None:
                continue
            bias = tensors.get(f"{number}.{leaf}.bias")
            out, into = weight.shape
            layer = nn.Linear(into, out, bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight.contiguous().clone())
            if bias is not None:
                layer.bias = nn.Parameter(bias.contiguous().clone())
            expert.add_module(leaf, layer)
        new.append(expert)
    return new


KIND = Kind("expert_list", make)
