"""A block's weights as they act, under names that two versions of a model share.

A matrix that an edit stores as two thin factors is multiplied out and stands under its module's
name, as the whole matrix does in the model that was edited; experts that an edit keeps one by one
have the names of stacked ones; packed weights are whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.checkpoints.anatomy import Block, matrix_view
from compress.checkpoints.edits.expert_list import ExpertList, stacked_name
from compress.checkpoints.edits.lowrank import LowRank
from compress.checkpoints.edits.lowrank_up import LowRankUp

_CHUNK = 1 << 22  # elements raised to float64 at a time


class Compared(NamedTuple):
    """One weight in two models.

    Attributes:
        name: a matrix, by its module; a parameter of another kind by its own name.
        shape: in the first model.
        squares: sums of squares of the difference and of the first weight, in float64; None where
            the two can't be subtracted.
        reason: why not; else empty.
    """

    name: str
    shape: tuple[int, ...]
    squares: tuple[float, float] | None
    reason: str = ""


class Weights(NamedTuple):
    """The weights of one block, or of what lies outside the blocks.

    Attributes:
        tensors: name -> tensor; views of the model's memory, but for products of factors.
        experts: names of matrices of numbered experts.
        numbered: how many experts there are.
    """

    tensors: dict[str, Tensor]
    experts: frozenset[str] = frozenset()
    numbered: int = 0


def block_weights(model: nn.Module, block: Block) -> Weights:
    """Return a loaded block's weights: every matrix [out, in], every other parameter as it is."""
    prefix = f"{block.name}."
    own = model.get_submodule(block.name)
    parameters = {prefix + name: value.detach() for name, value in own.named_parameters()}
    found: dict[str, Tensor] = {}
    experts: dict[str, int] = {}
    numbers = {matrix.module: matrix.expert for matrix in block.editable}
    for path, module in own.named_modules():
        if not isinstance(module, LowRank | LowRankUp):
            continue
        inside = f"{prefix}{path}."
        product = module.product()
        flat = product.ndim == 3 and product.shape[2] == 1  # a pointwise convolution
        found[prefix + path] = product[:, :, 0] if flat else product
        number = numbers.get(f"{inside}up")
        experts |= {} if number is None else {prefix + path: number}
        if module.bias is not None:
            found[f"{inside}bias"] = module.bias.detach()
        parameters = {k: v for k, v in parameters.items() if not k.startswith(inside)}
    for matrix in block.editable:
        if matrix.parameter in parameters:
            found[matrix.name] = matrix_view(parameters[matrix.parameter], matrix)
            experts |= {matrix.name: matrix.expert} if matrix.expert is not None else {}
    whole = {matrix.parameter for matrix in block.editable}
    for name, value in parameters.items():
        if name not in whole:
            found[name.removesuffix(".weight")] = value
    lists = tuple(f"{prefix}{p}." for p, m in own.named_modules() if isinstance(m, ExpertList))

    def named(name: str) -> str:
        return stacked_name(name) if name.startswith(lists) else name

    return Weights(
        {named(name): value for name, value in found.items()},
        frozenset(map(named, experts)),
        len(set(experts.values())),
    )


def compare_weights(first: Weights, second: Weights) -> Iterator[Compared]:
    """Compare two versions of a part of a model, weight by weight.

    Weights that one version lacks or has in another shape, and experts where their number differs
    (their numbers then name others), are yielded with the reason.
    """
    one, other = first.tensors, second.tensors
    renumbered = bool(first.numbered and second.numbered) and first.numbered != second.numbered
    for name, value in one.items():
        shape = tuple(value.shape)
        twin = other.get(name)
        reason = ""
        if renumbered and name in first.experts:
            reason = f"of {first.numbered} experts, {second.numbered} are left"
        elif twin is None:
            reason = "not in the other model"
        elif twin.shape != value.shape:
            reason = f"{_size(value)} and {_size(twin)}"
        if reason or twin is None:
            yield Compared(name, shape, None, reason)
        else:
            yield Compared(name, shape, squares(value, twin))
    for name, value in other.items():
        if name not in one:
            yield Compared(name, tuple(value.shape), None, "not in the model compared with")


def squares(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the sums of squares of second - first and of first, in float64, a chunk at a time."""
    rows = max(_CHUNK // max(first[:1].numel(), 1), 1) if first.ndim else 1
    pieces = zip(first.split(rows), second.split(rows)) if first.ndim else [(first, second)]
    total = torch.zeros(2, dtype=torch.float64, device=first.device)
    for one, other in pieces:
        own = one.double()
        total[0] += (other.double() - own).square().sum()
        total[1] += own.square().sum()
    difference, size = total.tolist()
    return difference, size


def named_weights(tensors: Mapping[str, Tensor]) -> Weights:
    """Return what lies outside blocks, by run-time name; one of several names of one tensor."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, value in tensors.items():
        seen.setdefault((value.data_ptr(), tuple(value.shape)), name)
    return Weights({name.removesuffix(".weight"): tensors[name] for name in seen.values()})


def _size(value: Tensor) -> str:
    return " × ".join(map(str, value.shape))
