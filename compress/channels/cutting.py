"""Removing channels: new shapes by the edits of the checkpoint format, weights by slicing.

What is computed afterwards is what the masked network computed (`masks.py`) for every group that is
`exact`. The result saves and loads like every edited checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.channels.attention import attentions
from compress.channels.graph import CONVOLUTIONS
from compress.channels.groups import Group, Member
from compress.checkpoints import edits
from compress.checkpoints.record import config_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kept = dict[tuple[str, str], Tensor]
"""(module, axis) -> places kept, in order."""


def cut(
    model: PreTrainedModel, groups: Sequence[Group], masks: Sequence[Tensor]
) -> dict[str, dict[str, Any]]:
    """Remove the channels that masks leave out, in place.

    Args:
        model: the dense model, in memory.
        groups: as found in this model.
        masks: for each group bool [width], True = keep; at least one of each.

    Returns:
        module name -> the edit made. Empty where nothing goes.

    Raises:
        ValueError: a group would keep nothing.
    """
    for group, mask in zip(groups, masks, strict=True):
        if not bool(mask.any()):
            raise ValueError(f"group {group.name} would keep no unit")
    kept = kept_places(model, groups, masks)
    wanted = plan_edits(model, kept)
    if not wanted:
        return {}
    old = {name: _tensors(model.get_submodule(name)) for name in wanted}
    kinds = {name: model.get_submodule(name) for name in wanted}
    depthwise = {name for name, module in kinds.items() if getattr(module, "groups", 1) > 1}
    edits.apply(model, wanted)
    with torch.no_grad():
        for name in wanted:
            _fill(model.get_submodule(name), old[name], name, kept, name in depthwise)
    return wanted


def kept_places(model: nn.Module, groups: Sequence[Group], masks: Sequence[Tensor]) -> Kept:
    """Return which places of each axis stay; axes that lose nothing are left out."""
    gone: dict[tuple[str, str], list[Tensor]] = {}
    for group, mask in zip(groups, masks, strict=True):
        lost = (~mask.cpu()).nonzero()[:, 0]
        if not len(lost):
            continue
        for member in group.members:
            gone.setdefault((member.module, _axis(member)), []).append(
                member.positions[lost].reshape(-1)
            )
    kept: Kept = {}
    for (name, axis), parts in gone.items():
        stays = torch.ones(_length(model.get_submodule(name), axis), dtype=torch.bool)
        stays[torch.cat(parts)] = False
        kept[name, axis] = stays.nonzero()[:, 0]
    return kept


def plan_edits(model: PreTrainedModel, kept: Kept) -> dict[str, dict[str, Any]]:
    """Return the edit of every module that loses something, whole: edits may follow edits."""
    wanted: dict[str, dict[str, Any]] = {}
    for name, axis in kept:
        module: Any = model.get_submodule(name)
        size = {a: len(kept[name, a]) for a in ("in", "out") if (name, a) in kept}
        if isinstance(module, CONVOLUTIONS):
            wanted[name] = _conv_edit(module, size)
        elif isinstance(module, nn.Linear):
            whole = {"in": module.in_features, "out": module.out_features}
            wanted[name] = {"kind": "linear", **whole, **size}
        elif axis.startswith("out."):
            wanted[name] = {"kind": "columns", "width": len(kept[name, axis])}
        elif _is_response_norm(module):
            of = getattr(module, "of", module.weight.shape[-1])
            wanted[name] = {"kind": "response_norm", "width": size["out"], "of": int(of)}
        else:
            wanted[name] = {"kind": "norm", "width": size["out"]}
    for name, module in attentions(model):
        if (f"{name}.q_proj", "out") in kept:
            wanted[name] = {"kind": "attention", **_heads(module, kept[f"{name}.q_proj", "out"])}
    return {name: {**_earlier(model, name, edit), **edit} for name, edit in wanted.items()}


def _earlier(model: Any, name: str, edit: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a module's edit so far: what it says beside the sizes (a kernel, a stride) stays."""
    config = config_of(model)
    for other, fields in (config.modules if config else {}).items():
        if name in edits.spellings(model, other) and fields["kind"] == edit["kind"]:
            return fields
    return {}


def _conv_edit(module: Any, size: Mapping[str, int]) -> dict[str, Any]:
    whole = {"in": module.in_channels, "out": module.out_channels, "groups": module.groups}
    if module.groups > 1:  # whole groups go, all of them of one size
        per_out, per_in = module.out_channels // module.groups, module.in_channels // module.groups
        groups = size["out"] // per_out
        return {"kind": "conv", "in": groups * per_in, "out": size["out"], "groups": groups}
    return {"kind": "conv", **whole, **size}


def _heads(module: Any, places: Tensor) -> dict[str, int]:
    """Return the heads left and their length, from the places kept of the queries."""
    heads = len(torch.unique(places // module.head_dim))
    return {"heads": heads, "head_dim": len(places) // heads}


def _fill(module: Any, old: Mapping[str, Tensor], name: str, kept: Kept, grouped: bool) -> None:
    """Copy what stays of the old tensors into the new module."""
    for key, new in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        value = old[key]
        if (name, f"out.{key}") in kept:
            value = _pick(value, -1, kept[name, f"out.{key}"])
        elif _is_response_norm(module):
            value = _pick(value, -1, kept[name, "out"])
        elif value.dim():
            if (name, "out") in kept:
                value = _pick(value, 0, kept[name, "out"])
            if (name, "in") in kept and value.dim() > 1 and not grouped:
                value = _pick(value, 1, kept[name, "in"])
        new.copy_(value)


def _pick(value: Tensor, axis: int, places: Tensor) -> Tensor:
    return value.index_select(axis, places.to(value.device))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies by reference of a module's own tensors, which an edit may replace."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: tensor.detach() for name, tensor in own}


def _axis(member: Member) -> str:
    return f"{member.axis}.{member.parameter}" if member.parameter else member.axis


def _length(module: Any, axis: str) -> int:
    if axis.startswith("out."):
        return int(getattr(module, axis.removeprefix("out.")).shape[-1])
    if isinstance(module, CONVOLUTIONS):
        return int(module.out_channels if axis == "out" else module.in_channels)
    if isinstance(module, nn.Linear):
        return int(module.out_features if axis == "out" else module.in_features)
    return int(next(module.parameters()).shape[-1])


def _is_response_norm(module: nn.Module) -> bool:
    shapes = [p.shape for p in module.parameters(recurse=False)]
    return bool(shapes) and all(len(s) == 4 and s[:3] == (1, 1, 1) for s in shapes)
