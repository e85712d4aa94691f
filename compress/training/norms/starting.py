"""The random start that DeepNorm and sub-LN want, and what start a model has."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoints.anatomy import Anatomy, Matrix, matrix_view
from compress.errors import RequestError
from compress.numerics.counter import generator

_BRANCH = ("v", "o", "gate", "up", "gate_up", "down", "fc1", "fc2")
_SCALED = 0.8  # a residual matrix of less than this times the others' spread was scaled by depth


Spreads = dict[Matrix, float | Tensor]


def plan_start(model: PreTrainedModel, anatomy: Anatomy, gain: Callable[[int], float]) -> Spreads:
    """Return the standard deviation of every matrix of the layers, by Xavier's normal rule.

    std = g sqrt(2 / (in + out)); g = gain(L) for values, output projections and MLPs, 1 for queries
    and keys (DeepNet, arXiv:2203.00555, figure 2; Foundation Transformers, arXiv:2210.06423).

    Args:
        model: before its edits.
        anatomy: of the model.
        gain: layers of the stack -> g.

    Returns:
        matrix -> std, [out, 1] where queries, keys and values share the matrix.

    Raises:
        RequestError: a matrix whose part in attention can't be told.
    """
    depth = {block.name: len(stack) for stack in anatomy.stacks for block in stack}
    return {m: _spread(model, m, gain(depth[m.block])) for m in anatomy.matrices}


@torch.no_grad()
def start_weights(model: PreTrainedModel, spreads: Spreads, seed: int) -> None:
    """Draw matrices from N(0, std), in place, each from its own stream of the seed.

    Args:
        model: edited or not.
        spreads: what plan_start returned.
        seed: of all streams.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for number, (matrix, spread) in enumerate(spreads.items()):
        head, _, leaf = matrix.parameter.rpartition(".")
        # A projection that got a norm before it lies one level deeper now.
        name = matrix.parameter if matrix.parameter in parameters else f"{head}.linear.{leaf}"
        weight = matrix_view(parameters[name], matrix)
        weight.copy_(torch.randn(weight.shape, generator=generator(seed, number)) * spread)


def _spread(model: PreTrainedModel, matrix: Matrix, gain: float) -> float | Tensor:
    out, wide = matrix.shape
    if matrix.role == "qkv":
        is_value = _value_rows(model, matrix)
        third = math.sqrt(2.0 / (wide + out / 3))
        return torch.where(is_value, gain * third, third)[:, None]
    if matrix.role in ("q", "k", *_BRANCH):
        return (gain if matrix.role in _BRANCH else 1.0) * math.sqrt(2.0 / (wide + out))
    raise RequestError(
        f"`{matrix.name}` (role {matrix.role}) has no part in the start of DeepNorm and sub-LN",
        "choose another placement, such as mix or lns",
    )


def _value_rows(model: PreTrainedModel, matrix: Matrix) -> Tensor:
    """Tell the rows of values, bool [out], in a fused projection of queries, keys and values.

    GPT-2's Conv1D holds the three one after the other, GPT-NeoX's Linear head by head.
    """
    out = matrix.shape[0]
    rows = torch.arange(out)
    if matrix.transposed:
        return rows >= 2 * out // 3
    heads = int(model.config.get_text_config().num_attention_heads)
    return rows % (out // heads) >= 2 * out // heads // 3


def is_depth_scaled(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Whether the matrices that write into the residual stream start smaller than the others."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    block = anatomy.blocks[0]
    spreads: dict[bool, list[float]] = {True: [], False: []}
    for matrix in block.matrices:
        if matrix.role != "router":
            weight = parameters[matrix.parameter].detach()
            spread = float(matrix_view(weight, matrix).float().std())
            spreads[matrix.role in ("o", "down", "fc2")].append(spread)
    return bool(spreads[True] and spreads[False]) and max(spreads[True]) < _SCALED * max(
        spreads[False]
    )
