"""Which channels of a vision network live and die together.

A channel's index lies in every tensor that the same dimension of an activation touches: removing
output channel j of a convolution removes its row, its bias, its entry in the batch norm behind it,
the depthwise filters that read it and column j of each consumer; a residual sum couples all writers
of that stream. A `Group` is one such set. Its members say where unit j of the group lies in each
module, so that the same description serves masks, costs and the cut itself.

The graph comes from torch-pruning's DependencyGraph (DepGraph, Fang et al., arXiv:2301.12900; see
`graph.py`), attention by structure (`attention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import RequestError

KINDS = ("channels", "mlp", "heads", "head-dims", "streams")
"""What may be removed: free channels of convolutions, hidden units of MLPs, whole attention heads,
dimensions within heads, and residual streams under a layer norm (never exact)."""


@dataclass(frozen=True)
class Member:
    """Where a group's units lie in one module.

    Attributes:
        module: its name in the model.
        axis: "out" or "in": which dimension of the module. Norms and depthwise convolutions have
            only "out".
        kind: conv, grouped, depthwise, linear, norm, response-norm, bias-table, or parameter.
        positions: int64 [width, span]; row j holds the places of unit j along the axis.
        mask: where a mask stands for the removal: on the module's "input", its "output", or None
            where nothing needs to be done.
        parameter: the parameter's own name, of kinds bias-table and parameter.
    """

    module: str
    axis: str
    kind: str
    positions: Tensor = field(repr=False)
    mask: str | None = None
    parameter: str | None = None

    @property
    def span(self) -> int:
        """Places that one unit takes."""
        return int(self.positions.shape[1])


@dataclass(frozen=True)
class Group:
    """Coupled channels, which can only be removed together.

    Attributes:
        name: of the first module that writes them, and what the units are where that isn't plain.
        kind: one of KINDS.
        width: how many units there are.
        members: every place of them, writers first.
        scope: equal for groups of one structure (the same kinds of modules, read and written in the
            same order): those are ranked together by isomorphic ranking (arXiv:2407.04616).
        exact: removal computes just what masking the consumers' inputs computes.
        why: where not, what changes.
    """

    name: str
    kind: str
    width: int
    members: tuple[Member, ...]
    scope: str
    exact: bool = True
    why: str = ""

    @property
    def writers(self) -> tuple[Member, ...]:
        """Convolutions and linears whose outputs the units are (depthwise ones don't count)."""
        return tuple(m for m in self.members if m.axis == "out" and m.kind in _WEIGHTED)

    @property
    def consumers(self) -> tuple[Member, ...]:
        """Convolutions and linears that read the units."""
        return tuple(m for m in self.members if m.axis == "in")

    @property
    def norms(self) -> tuple[Member, ...]:
        """Norms over the units."""
        return tuple(m for m in self.members if m.kind == "norm")

    def step(self, round_to: int) -> int:
        """Units by which the width goes down so that channel counts are multiples of `round_to`.

        Heads aren't rounded; a whole group of a grouped convolution counts as its channels; a head
        dimension counts as one, since it is the length of the dot product that wants alignment.
        """
        if self.kind == "heads":
            return 1
        span = 1 if self.kind == "head-dims" else self.writers[0].span if self.writers else 1
        step = round_to
        while span > 1 and step > 1 and span % 2 == 0 and step % 2 == 0:
            span, step = span // 2, step // 2
        return step


_WEIGHTED = ("conv", "grouped", "linear")


def find_groups(
    model: nn.Module,
    example: Tensor,
    *,
    prune: Sequence[str] = ("channels", "mlp", "heads", "head-dims"),
) -> list[Group]:
    """Find the coupled groups of a vision network, in the order in which they are first written.

    Args:
        model: an image classifier of transformers, in memory; it is left as it was.
        example: pixel values [1 or more, 3, H, W] on the model's device.
        prune: which of KINDS are wanted.

    Returns:
        The groups. Never the classifier's outputs nor the image's channels.

    Raises:
        RequestError: nothing in the model can be removed; the module in the way is named.
    """
    from compress.channels.attention import attention_groups, inside_attention
    from compress.channels.graph import traced_groups
    from compress.channels.trials import sift

    inside = inside_attention(model)
    traced, refused = traced_groups(model, example, inside)
    found = [*traced, *attention_groups(model, traced)]
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    found.sort(key=lambda group: (order[group.members[0].module], group.kind))
    kept = [group for group in found if group.kind in prune]
    kept, failed = sift(model, example, kept)
    refused.update(failed)
    if not kept:
        other = sorted({group.kind for group in found} - set(prune))
        if other and not any(group.kind in prune for group in found):
            raise RequestError(
                f"nothing of the kinds {', '.join(prune)} can be removed from "
                f"{type(model).__name__}",
                f"it has: {', '.join(other)} (`--prune`)",
            )
        where = "; ".join(f"`{name}`: {why}" for name, why in list(refused.items())[:2])
        raise RequestError(
            f"{type(model).__name__} has no channels that can be removed"
            + (f": {where}" if where else ", for it has no coupled convolutions or MLPs"),
            "ResNet, RegNet, MobileNetV1 and V2, ConvNeXt and V2, ViT, DeiT, BEiT; MLP widths of "
            "Swin and DINOv2",
        )
    return kept


def unit_rows(model: nn.Module, member: Member, what: str = "weight") -> Tensor:
    """Return a member's weights by unit: [width, everything that belongs to one unit].

    Args:
        model: the model.
        member: of a group.
        what: "weight", "bias", or another tensor of the module.
    """
    module: Any = model.get_submodule(member.module)
    tensor: Tensor = getattr(module, member.parameter or what)
    if member.kind == "linear" and type(module).__name__ == "Conv1D":
        tensor = tensor.T
    if member.kind == "parameter" or member.kind in ("response-norm", "bias-table"):
        tensor = tensor.movedim(-1, 0)
    elif member.axis == "in" and member.kind != "grouped":
        tensor = tensor.movedim(1, 0)
    elif member.axis == "in":  # inputs of whole groups: the rows that read them
        tensor = tensor.reshape(module.groups, -1)
        return tensor.reshape(member.positions.shape[0], -1)
    rows = tensor[member.positions.to(tensor.device)]  # [width, span, …]
    return rows.reshape(member.positions.shape[0], -1)


def covered(groups: Sequence[Group]) -> Mapping[tuple[str, str], list[tuple[int, Member]]]:
    """Return (module, axis) -> the groups (by index) with units there."""
    places: dict[tuple[str, str], list[tuple[int, Member]]] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            place = (
                member.module,
                f"{member.axis}{'.' + member.parameter if member.parameter else ''}",
            )
            places.setdefault(place, []).append((index, member))
    return places


def reordered(group: Group, positions: Mapping[int, Tensor]) -> Group:
    """Return the group with other positions of some members, by their number."""
    members = tuple(
        replace(member, positions=positions[number]) if number in positions else member
        for number, member in enumerate(group.members)
    )
    return replace(group, members=members)


def identity(width: int) -> Tensor:
    """Positions [width, 1] of units that lie in order."""
    return torch.arange(width)[:, None]
