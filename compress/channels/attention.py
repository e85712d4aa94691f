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
from torch import Tensor, nn

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
            found.append(_group(name, "heads", places, places, tables))
        if module.head_dim > 1:
            query, key, value, output = (getattr(module, part).weight for part in PROJECTIONS)
            pairs = _strongest_first(places, query, key)
            values = _strongest_first(places, value, output.T)
            found.append(_group(name, "head-dims", pairs, values, []))
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


@torch.no_grad()
def _strongest_first(places: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Line up the dimensions of all heads by what they weigh, strongest first: [head_dim, heads].

    Heads must lose as many dimensions each, but not the same ones: unit r of the group holds the
    r-th strongest of each. A dimension's weight is the product of the norms of its rows in the
    two matrices [features, …] that it joins: queries and keys, or values and the output.
    """
    strength = (one.float().norm(dim=1) * other.float().norm(dim=1)).cpu()[places]
    order = torch.argsort(strength, dim=1, descending=True, stable=True)
    return places.gather(1, order).T.contiguous()


def _group(name: str, kind: str, pairs: Tensor, values: Tensor, tables: list[Member]) -> Group:
    """Make the group of one attention.

    Args:
        name: of the attention.
        kind: heads or head-dims.
        pairs: [width, span], units among the features of queries and keys.
        values: the same among those of values and the output projection's inputs.
        tables: position biases with a column for each head.
    """
    masked = "output" if kind == "head-dims" else None
    members = [
        Member(f"{name}.q_proj", "out", "linear", pairs, masked),
        Member(f"{name}.k_proj", "out", "linear", pairs),
        Member(f"{name}.v_proj", "out", "linear", values),
        *tables,
        Member(f"{name}.o_proj", "in", "linear", values, "input"),
    ]
    return Group(f"{name} {kind}", kind, len(pairs), tuple(members), f"{kind}:attention")
