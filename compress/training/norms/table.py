"""The placements by name: what each edits in layer l of L."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.checkpoints.anatomy import Block
from compress.checkpoints.edits import Fields
from compress.training.norms.finding import branch_norms, output_projections

Edits = Iterator[tuple[str, Fields]]
Maker = Callable[[nn.Module, Block, int], Edits]


@dataclass(frozen=True)
class Norm:
    """A placement of norms.

    Attributes:
        formula: what a layer computes, N a norm, F attention and then the MLP.
        edits: (model, block, depth of its stack) -> edits by module name, for a changed layer.
        post: whether layers are post-norm, which need a long warm-up and no great depth.
        gain: L -> gain of the Xavier start of value, output and MLP matrices; None keeps the
            usual start.
    """

    formula: str
    edits: Maker
    post: bool = False
    gain: Callable[[int], float] | None = None


def _layer(kind: str, **fields: int) -> Maker:
    def edits(model: nn.Module, block: Block, depth: int) -> Edits:
        yield block.name, {"kind": kind, **fields}

    return edits


def _none(model: nn.Module, block: Block, depth: int) -> Edits:
    yield from ()


def _scaled(model: nn.Module, block: Block, depth: int) -> Edits:
    for name in branch_norms(model, block):
        yield name, {"kind": "scaled_norm", "depth": block.index + 1}


def _deep(model: nn.Module, block: Block, depth: int) -> Edits:
    yield block.name, {"kind": "deep_norm", "layers": depth}


def _peri(model: nn.Module, block: Block, depth: int) -> Edits:
    entry: dict[str, Any] = {} if block.index else {"entry": 1}
    yield block.name, {"kind": "sandwich_norm", **entry}


def _sub(model: nn.Module, block: Block, depth: int) -> Edits:
    for name in output_projections(block):
        yield name, {"kind": "normed_input"}


def _deep_gain(layers: int) -> float:
    return (8.0 * layers) ** -0.25  # DeepNet, arXiv:2203.00555, table 2, decoder-only


def _sub_gain(layers: int) -> float:
    return math.sqrt(math.log(2.0 * layers))  # Foundation Transformers, arXiv:2210.06423


NORMS: dict[str, Norm] = {
    "pre": Norm("x + F(N x)", _none),
    "post": Norm("N(x + F(x))", _layer("post_norm"), post=True),
    "mix": Norm("post in the first layers, pre in the others", _layer("post_norm"), post=True),
    "lns": Norm("x + F(N(x) / sqrt(l))", _scaled),
    "sandwich": Norm("x + N'(F(N x))", _layer("sandwich_norm")),
    "peri": Norm("x + N'(F(N x)), and the embedding normed", _peri),
    "branch-post": Norm("x + N(F(x)), as OLMo 2", _layer("branch_norm")),
    "deepnorm": Norm("N((2 L)^(1/4) x + F(x))", _deep, post=True, gain=_deep_gain),
    "sub-ln": Norm("x + W N'(f(N x)), N' before output projections", _sub, gain=_sub_gain),
    "layerscale": Norm("x + s F(N x), s learned", _layer("layer_scale")),
}
