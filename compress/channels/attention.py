"""Heads and head dimensions of attention, found by structure.

An attention module of the ViT kind has `q_proj`, `k_proj`, `v_proj`, `o_proj`, splits their
features into heads of `head_dim` and views with -1 heads. Whole heads may go without a trace.
Dimensions within heads: q and k lose the same ones, v and o_proj's inputs likewise, `head_dim` goes
down and `scaling` stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from compress.channels.groups import Group, Member

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def attentions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, module) of the attention modules of the ViT kind."""
    for name, module in model.named_modules():
        parts = [getattr(module, part, None) for part in PROJECTIONS]
        if all(isinstance(part, nn.Linear) for part in parts) and hasattr(module, "head_dim"):
            yield name, module


def inside_attention(model: nn.Module) -> frozenset[str]:
    """Return the names of the projections whose outputs are split into heads."""
    return frozenset(f"{name}.{part}" for name, _ in attentions(model) for part in PROJECTIONS[:3])


def attention_groups(model: nn.Module, traced: Sequence[Group] = ()) -> list[Group]:
    """Return the groups of heads and of head dimensions, two for each attention module.

    Left out where windows shift or heads carry tables that this package can't cut (Swin), and where
    the number of heads is fixed elsewhere.
    """
    found = []
    for name, module in attentions(model):
        heads = module.q_proj.out_features // module.head_dim
        shape = (heads, module.head_dim)
        if module.q_proj.out_features != module.v_proj.out_features or not _known(module):
            continue
        places = torch.arange(heads * module.head_dim).reshape(shape)
        tables = _tables(model, name, heads)
        if tables is not None and heads > 1:
            found.append(_group(name, "heads", places, tables))
        if module.head_dim > 1:
            found.append(_group(name, "head-dims", places.T.contiguous(), []))
    return found


def _known(module: Any) -> bool:
    """Whether the module holds nothing but the projections (and norms), so that all is seen."""
    own = {name for name, child in module.named_children() if list(child.parameters())}
    return own <= set(PROJECTIONS)


def _tables(model: nn.Module, name: str, heads: int) -> list[Member] | None:
    """Return the tables with a column for each head beside an attention; None if all share one."""
    parent = name.rpartition(".")[0]
    members = []
    for other, module in model.named_modules():
        table = getattr(module, "relative_position_bias_table", None)
        if not isinstance(table, nn.Parameter) or table.shape[-1] != heads:
            continue
        if other.rpartition(".")[0] == parent:
            columns = torch.arange(heads)[:, None]
            members.append(
                Member(other, "out", "bias-table", columns, None, "relative_position_bias_table")
            )
        elif name.startswith(f"{other.rpartition('.')[0]}.".lstrip(".")):
            return None  # it lies above several attentions
    return members


def _group(name: str, kind: str, places: torch.Tensor, tables: list[Member]) -> Group:
    """Make the group of one attention; `places` [width, span]."""
    masked = {"q_proj": "output" if kind == "head-dims" else None}
    members = [
        *(Member(f"{name}.{part}", "out", "linear", places, masked.get(part))
          for part in PROJECTIONS[:3]),
        *tables,
        Member(f"{name}.o_proj", "in", "linear", places, "input"),
    ]  # fmt: skip
    return Group(f"{name} {kind}", kind, len(places), tuple(members), f"{kind}:attention")
