"""Which layers can be made of two factors, which of them are chosen, and which share a factor."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.anatomy import Anatomy, Block, Matrix
from compress.checkpoints.edits.expert_list import LEAVES, can_list
from compress.checkpoints.edits.lowrank import LowRank
from compress.checkpoints.matrices import is_pointwise
from compress.errors import RequestError, near_names
from compress.lowrank.truncate import break_even

PRESETS = ("attention", "ffn", "conv", "all")
_ATTENTION = {"q", "k", "v", "o", "qkv", "kv"}
_FFN = {"gate", "up", "down", "gate_up", "fc1", "fc2"}
_GROUPS = {"qkv": {"q", "k", "v"}, "gate-up": {"gate", "up"}}


@dataclass(frozen=True)
class Unit:
    """What gets a rank: a layer, or several of one input that share their down factor."""

    matrices: tuple[Matrix, ...]

    @property
    def name(self) -> str:
        """That of its first layer, which holds the down factor."""
        return self.matrices[0].name

    @property
    def block(self) -> str:
        """The block's name."""
        return self.matrices[0].block

    @cached_property
    def out(self) -> int:
        """Outputs of all its layers."""
        return sum(m.shape[0] for m in self.matrices)

    @property
    def into(self) -> int:
        """Inputs."""
        return self.matrices[0].shape[1]

    @property
    def dense(self) -> int:
        """Weights as they are."""
        return self.out * self.into

    @property
    def cost(self) -> int:
        """Weights of the factors for each unit of rank."""
        return self.out + self.into

    @property
    def most(self) -> int:
        """The largest rank whose factors hold fewer weights than the layers."""
        return min(break_even(self.out, self.into), self.out, self.into)


class Chosen(NamedTuple):
    """The layers that take part.

    Attributes:
        matrices: in order.
        skipped: (layer, reason) of those that would have, but can't.
    """

    matrices: tuple[Matrix, ...]
    skipped: tuple[tuple[str, str], ...]


def choose(
    model: nn.Module, anatomy: Anatomy, include: Sequence[str], exclude: Sequence[str]
) -> Chosen:
    """Choose the layers.

    Args:
        model: the model or its skeleton.
        anatomy: of it.
        include, exclude: globs of names, or PRESETS.

    Raises:
        RequestError: a pattern matches nothing (near names are listed) or only what can't be
            factored (the reason is named); nothing is left.
    """
    everything = [m for block in anatomy.blocks for m in block.editable]
    if not everything:
        others = sorted({why for block in anatomy.blocks for _, why in block.skipped})
        raise RequestError(
            f"the model's {len(anatomy.blocks)} blocks hold no layer to make two factors of, only: "
            f"{', '.join(others) or 'other parameters'}",
            "linear layers and pointwise 1-D convolutions can be",
        )
    barred = dict(_barred(model, anatomy, everything))
    apart = {name.removesuffix(".weight"): why for b in anatomy.blocks for name, why in b.skipped}
    apart = {name: why for name, why in apart.items() if name not in {m.name for m in everything}}
    apart |= dict.fromkeys(anatomy.heads, "outside the blocks")
    apart |= dict.fromkeys(anatomy.embeddings, "outside the blocks")
    wanted: set[str] = set()
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            found = _matching(pattern, everything, anatomy)
            if not found:
                raise _no_match(option, pattern, everything, apart)
            if option == "exclude":
                wanted -= found
                continue
            if pattern not in PRESETS and found <= set(barred):
                name = sorted(found)[0]
                raise RequestError(
                    f"`--include {pattern}`: `{name}` can't be made of two factors: {barred[name]}",
                    "leave it out",
                )
            wanted |= found
    kept = tuple(m for m in everything if m.name in wanted and m.name not in barred)
    if not kept:
        reasons = "; ".join(sorted({barred[n] for n in wanted if n in barred})[:3])
        raise RequestError(
            f"no layer is left to be factored{f': {reasons}' if reasons else ''}",
            "`compress inspect MODEL` lists the matrices",
        )
    return Chosen(kept, tuple((m.name, barred[m.name]) for m in everything if m.name in barred))


def units_of(
    matrices: Iterable[Matrix], share: Sequence[str], inputs: Mapping[str, str] | None = None
) -> list[Unit]:
    """Put layers that share a down factor together.

    Args:
        matrices: in order.
        share: of `_GROUPS`.
        inputs: layer -> a name of what it reads, equal for equal inputs; None where that isn't
            known: layers under one module with one width then count as alike.
    """
    groups: dict[tuple[str, ...], list[Matrix]] = {}
    for matrix in matrices:
        kind = next((name for name in share if matrix.role in _GROUPS[name]), None)
        key: tuple[str, ...] = (matrix.name,)
        if kind is not None:
            read = "" if inputs is None else inputs.get(matrix.name, matrix.name)
            parent = matrix.name.rpartition(".")[0]
            key = (kind, parent, str(matrix.shape[1]), read)
        groups.setdefault(key, []).append(matrix)
    return [Unit(tuple(group)) for group in groups.values()]


def edits_of(units: Iterable[tuple[Unit, int]]) -> dict[str, dict[str, Any]]:
    """The edits that units with their ranks stand for, by module."""
    found: dict[str, dict[str, Any]] = {}
    for unit, rank in units:
        first, *others = unit.matrices
        if first.stacked:
            found[first.module] = {"kind": "expert_list"}
        found[place_of(first)] = {"kind": "lowrank", "rank": rank}
        leaf = place_of(first).rpartition(".")[2]
        for other in others:
            found[place_of(other)] = {"kind": "lowrank_up", "rank": rank, "down": leaf}
    return found


def place_of(matrix: Matrix) -> str:
    """The module that stands for a layer once its edit is made; stacked experts are a list then."""
    if not matrix.stacked:
        return matrix.module
    head, _, leaf = matrix.name.rpartition(".")
    return f"{head}.{LEAVES[leaf]}"


def _matching(pattern: str, matrices: Sequence[Matrix], anatomy: Anatomy) -> set[str]:
    if pattern == "all":
        return {m.name for m in matrices}
    if pattern == "attention":
        return {m.name for block in anatomy.blocks for m in _attention(block)}
    if pattern == "ffn":
        return {m.name for m in matrices if m.role in _FFN}
    if pattern == "conv":
        return {m.name for block in anatomy.blocks for m in block.pointwise}
    return set(fnmatch.filter([m.name for m in matrices], pattern))


def _attention(block: Block) -> list[Matrix]:
    """The layers of attention: by role, or beside queries (projections of positions)."""
    inside = {m.name.rpartition(".")[0] for m in block.matrices if m.role in {"q", "k", "qkv"}}
    return [
        m
        for m in block.matrices
        if m.role in _ATTENTION or (m.name.rpartition(".")[0] in inside and m.role == "other")
    ]


def _no_match(
    option: str, pattern: str, matrices: Sequence[Matrix], apart: Mapping[str, str]
) -> RequestError:
    known = [m.name for m in matrices]
    others = fnmatch.filter(apart, pattern)
    if others and option == "include":
        return RequestError(
            f"`--include {pattern}`: `{others[0]}` can't be made of two factors: "
            f"{apart[others[0]]}",
            "layers inside the blocks can; `compress inspect MODEL` lists them",
        )
    if pattern in PRESETS:
        return RequestError(
            f"`--{option} {pattern}` matches no layer of this model", f"such as `{known[0]}`"
        )
    return RequestError(
        f"`--{option} {pattern}` matches no layer of this model",
        near_names(pattern, known, listed=4),
    )


def _barred(
    model: nn.Module, anatomy: Anatomy, matrices: Sequence[Matrix]
) -> Iterable[tuple[str, str]]:
    """Yield the layers that can't be factored, with the reason."""
    readers = {
        block.name: _read_by_code(model.get_submodule(block.name)) for block in anatomy.blocks
    }
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    shared = {*tied, *tied.values()}
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    for matrix in matrices:
        reason = _reason(model, matrix, readers[matrix.block])
        if matrix.parameter in shared or places[id(model.get_submodule(matrix.module))] > 1:
            reason = "its weight is shared with another layer"
        if reason is not None:
            yield matrix.name, reason


def _reason(model: nn.Module, matrix: Matrix, read: set[str]) -> str | None:
    if matrix.stacked:
        return _reason_of_stack(model, matrix)
    parent, _, leaf = matrix.module.rpartition(".")
    if isinstance(model.get_submodule(parent), LowRank):
        return "it is a factor already"
    module = model.get_submodule(matrix.module)
    kind: Any = type(module)
    if not (_is_product(kind) or isinstance(module, Conv1D) or is_pointwise(module)):
        return f"a {type(module).__name__} computes more than a product"
    if leaf in read:
        return "its model's code reads the weight itself, past the layer"
    if break_even(*matrix.shape) < 1:
        return "too small for a rank"
    return None


def _reason_of_stack(model: nn.Module, matrix: Matrix) -> str | None:
    if not can_list(model.get_submodule(matrix.module)):
        return "experts that their own code runs stacked can't be taken apart"
    return "too small for a rank" if break_even(*matrix.shape) < 1 else None


@cache
def _is_product(kind: Any) -> bool:
    """Whether a kind of linear layer computes the product and no more; its own code is tried."""
    if not issubclass(kind, nn.Linear):
        return False
    if kind.forward is nn.Linear.forward:
        return True
    inputs = torch.linspace(-1, 1, 12).reshape(1, 4, 3)
    try:
        layer: Any = kind(3, 2)
        with torch.no_grad():
            return torch.allclose(layer(inputs), linear(inputs, layer.weight, layer.bias))
    except Exception:  # it wants to be made or called otherwise
        return False


_USE = re.compile(
    r"(?<!isinstance\(self\.)\b(\w+)(?:\[\w+\])?\.weight\b(?!\s*\.\s*(?:dtype|device|shape|size|is_))"
)


def _read_by_code(block: nn.Module) -> set[str]:
    """Return the names of layers whose weights some forward inside the block takes by itself.

    Mamba's `dt_proj` is one: a layer of two factors has no such weight to give.
    """
    found: set[str] = set()
    for kind in {type(module) for module in block.modules()}:
        if kind.__module__.startswith("torch."):
            continue
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):
            continue
        found |= {name for name in _USE.findall(source) if name != "self"}
    return found
