"""The matrices of one block: which parameters are linear maps, in what layout, and which are not.

Every parameter with two or more dimensions ends up in one of two lists: a `Matrix` that a method
may edit, or skipped with the reason. Nothing is passed over in silence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.roles import role_of_name, roles_of_block

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [out, in] that a method may edit, a whole parameter or a part of one."""

    name: str
    """Its module's name; experts of a stacked parameter get a number and a part:
    `model.layers.0.mlp.experts.3.gate_proj`."""
    module: str
    """The module that owns the parameter."""
    parameter: str
    """The parameter's full run-time name."""
    role: str
    """One of `roles.ROLES`."""
    shape: tuple[int, int]
    """(out, in)."""
    transposed: bool
    """Stored [in, out], as in GPT-2's Conv1D and some stacked experts."""
    expert: int | None
    """The expert's number, else None."""
    rows: tuple[int, int] | None
    """(start, stop) of the outputs inside the parameter, None for all of them."""
    block: str
    """The block's name."""
    step: int = 1
    """Stride of `rows`: 2 where gate and up are interleaved."""

    @property
    def numel(self) -> int:
        """The number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def stacked(self) -> bool:
        """Whether it is an expert's part of a parameter [experts, …, …], no layer of its own."""
        return self.expert is not None and self.name != self.module


def matrix_view(parameter: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Return `matrix` as a 2-D view [out, in] of its parameter; writes go through.

    Args:
        parameter: the tensor called `matrix.parameter`, as the model holds it ([out, in],
            [in, out], stacked [experts, …, …], or a pointwise kernel [out, in, 1]).
        matrix: which part of it.
    """
    weight = parameter
    if parameter.ndim == 3:
        weight = parameter[:, :, 0] if matrix.expert is None else parameter[matrix.expert]
    weight = weight.T if matrix.transposed else weight
    if matrix.rows is not None:
        weight = weight[matrix.rows[0] : matrix.rows[1] : matrix.step]
    if tuple(weight.shape) != matrix.shape:
        raise ValueError(
            f"{matrix.name}: the tensor gives {tuple(weight.shape)}, {matrix.shape} was expected"
        )
    return weight


class BlockParts(NamedTuple):
    """What a block consists of."""

    matrices: tuple[Matrix, ...]
    norms: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    pointwise: tuple[Matrix, ...]


class _Weight(NamedTuple):
    """A parameter of a block with two or more dimensions."""

    path: str  # the owner's name relative to the block
    leaf: str
    owner: nn.Module
    tensor: torch.Tensor

    @property
    def name(self) -> str:
        return f"{self.path}.{self.leaf}" if self.path else self.leaf


def read_block(name: str, block: nn.Module, tied: Mapping[str, str]) -> BlockParts:
    """Return the matrices, norms, skipped parameters and pointwise convolutions of `block`.

    Args:
        name: the block's name in the model.
        block: the module; its parameters may be on the meta device.
        tied: full parameter name -> the other name of the same tensor.
    """
    weights, hidden = list(_weights(block)), _hidden_size(block)
    experts = _expert_holders(block, weights)
    matrices: list[Matrix] = []
    pointwise: list[Matrix] = []
    skipped: list[tuple[str, str]] = []
    for weight in weights:
        full = f"{name}.{weight.name}"
        if full in tied:
            skipped.append((full, f"tied to `{tied[full]}`"))
        elif _is_stack(weight):
            found = _stacked(name, weight, weights, hidden)
            matrices += found
            if not found:
                skipped.append((full, "stacked experts whose layout can't be told"))
        elif (reason := _not_a_matrix(weight, experts)) is not None:
            skipped.append((full, reason))
            if is_pointwise(weight.owner) and weight.leaf == "weight":
                pointwise.append(_plain(name, weight, experts))
        else:
            matrices.append(_plain(name, weight, experts))
    norms = tuple(f"{name}.{path}" for path, module in block.named_modules() if is_norm(module))
    return BlockParts(_with_roles(name, matrices), norms, tuple(skipped), tuple(pointwise))


def is_norm(module: nn.Module) -> bool:
    """Return whether `module` is a normalisation layer."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def is_linear(module: nn.Module) -> bool:
    """Return whether `module` multiplies its input by one weight [out, in]."""
    if isinstance(module, nn.Linear):
        return True
    weight = module._parameters.get("weight")
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return weight is not None and tuple(weight.shape) == sizes


def is_pointwise(module: nn.Module) -> bool:
    """Return whether `module` is a 1-D convolution that maps each position by one matrix."""
    plain = isinstance(module, nn.Conv1d) and module.groups == 1 and module.kernel_size == (1,)
    return plain and module.stride == (1,) and module.padding in ((0,), 0, "valid", "same")


def _weights(block: nn.Module) -> Iterator[_Weight]:
    for path, module in block.named_modules():
        for leaf, tensor in module._parameters.items():
            if tensor is not None and tensor.ndim >= 2:
                yield _Weight(path, leaf, module, tensor)


def _is_stack(weight: _Weight) -> bool:
    """Return whether the weight stacks one matrix per expert, [experts, …, …].

    Its owner then counts experts in an attribute.
    """
    if weight.tensor.ndim != 3 or "bias" in weight.leaf:
        return False
    counts = {value for key, value in vars(weight.owner).items() if "expert" in key}
    return any(type(c) is int and c == weight.tensor.shape[0] for c in counts)


def _expert_holders(block: nn.Module, weights: list[_Weight]) -> dict[str, int]:
    """Return the modules that hold experts -> how many: stacked weights or a list of modules."""
    holders = {w.path: int(w.tensor.shape[0]) for w in weights if _is_stack(w)}
    for path, module in block.named_modules():
        listed = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if listed and "expert" in path.rpartition(".")[2]:
            holders[path] = sum(1 for _ in module.children())
    return holders


def _not_a_matrix(weight: _Weight, experts: Mapping[str, int]) -> str | None:
    """Return why the weight is left alone, or None if it is a linear map."""
    owner, shape = weight.owner, tuple(weight.tensor.shape)
    if "bias" in weight.leaf:
        return "a bias"
    if isinstance(owner, nn.Embedding):
        return "an embedding table"
    if _is_router(weight, experts):
        return "a router"
    if isinstance(owner, _CONVOLUTIONS):
        depthwise = owner.groups == owner.in_channels > 1
        return "a depthwise convolution" if depthwise else "a convolution kernel"
    if isinstance(owner, nn.RNNBase):
        return f"a recurrent matrix {list(shape)} of {type(owner).__name__}, run step by step"
    if isinstance(owner, nn.MultiheadAttention | NonDynamicallyQuantizableLinear):
        return "used by torch's own attention, not by a layer of its own"
    if not (is_linear(owner) or isinstance(owner, Conv1D)) or weight.leaf != "weight":
        return f"a parameter {list(shape)} of {type(owner).__name__}, no linear layer's weight"
    if min(shape) == 1:
        return "a one-row gate" if is_linear(owner) and shape[0] == 1 else "a single column"
    return None


def _is_router(weight: _Weight, experts: Mapping[str, int]) -> bool:
    """Return whether the weight scores experts or paths.

    It is called a router, or stands beside experts and is called a gate or has a row for each.
    """
    if "router" in weight.path:
        return True
    for holder, count in experts.items():
        parent = holder.rpartition(".")[0]
        inside = weight.path.removeprefix(f"{parent}." if parent else "")
        if (parent and inside == weight.path) or f"{weight.path}.".startswith(f"{holder}."):
            continue
        first, _, deeper = inside.partition(".")
        rows = int(weight.tensor.shape[0])
        if rows > 1 and (first == "gate" or (not deeper and rows == count)):
            return True
    return False


def _plain(block: str, weight: _Weight, experts: Mapping[str, int]) -> Matrix:
    """Return the whole parameter as a Matrix, its role left open."""
    transposed = isinstance(weight.owner, Conv1D)
    out, into = weight.tensor.shape[:2][::-1] if transposed else weight.tensor.shape[:2]
    within = [h for h in experts if weight.path.startswith(f"{h}.")]
    key = weight.path[len(within[0]) + 1 :].partition(".")[0] if within else ""  # 3, expert_3
    number = re.search(r"\d+$", key)
    return Matrix(
        name=f"{block}.{weight.path}",
        module=f"{block}.{weight.path}",
        parameter=f"{block}.{weight.name}",
        role="other",
        shape=(int(out), int(into)),
        transposed=transposed,
        expert=int(number.group()) if number else None,
        rows=None,
        block=block,
    )


def _stacked(
    block: str, weight: _Weight, weights: list[_Weight], hidden: int | None
) -> list[Matrix]:
    """Return one Matrix per expert and logical part of a stacked parameter; none if unclear."""
    transposed = _is_transposed(weight, weights, hidden)
    if transposed is None:
        return []
    count, first, second = (int(size) for size in weight.tensor.shape)
    out, into = (second, first) if transposed else (first, second)
    module = f"{block}.{weight.path}"
    plain_name = weight.leaf if weight.leaf != "weight" else ""
    if _holds_two(weight, weights, out, into):
        half, interleaved = out // 2, getattr(weight.owner, "is_concatenated", True) is False
        parts: list[tuple[str, str, tuple[int, int] | None]] = [
            ("gate_proj", "gate", (0, out) if interleaved else (0, half)),
            ("up_proj", "up", (1, out) if interleaved else (half, out)),
        ]
        shape, step = (half, into), 2 if interleaved else 1
    else:
        leaf = weight.leaf if plain_name else weight.path.rpartition(".")[2]
        parts = [(plain_name, role_of_name(leaf), None)]
        shape, step = (out, into), 1
    return [
        Matrix(
            name=".".join(filter(None, (module, str(expert), part))),
            module=module,
            parameter=f"{block}.{weight.name}",
            role=role,
            shape=shape,
            transposed=transposed,
            expert=expert,
            rows=rows,
            block=block,
            step=step,
        )
        for expert in range(count)
        for part, role, rows in parts
    ]


def _partners(weight: _Weight, weights: list[_Weight]) -> list[_Weight]:
    """Return the other stacked weights of the same experts: same owner, or beside the owner."""
    parent = weight.path.rpartition(".")[0]
    return [
        other
        for other in weights
        if other is not weight
        and _is_stack(other)
        and (other.path == weight.path or other.path.rpartition(".")[0] == parent)
    ]


def _hidden_size(block: nn.Module) -> int | None:
    """Return the width of the block's residual stream: that of most of its norms."""
    widths = Counter(
        parameter.numel()
        for module in block.modules()
        if is_norm(module)
        for parameter in module.parameters()
    )
    return widths.most_common(1)[0][0] if widths else None


def _is_transposed(weight: _Weight, weights: list[_Weight], hidden: int | None) -> bool | None:
    """Return whether a stacked weight is [experts, in, out]; None if nothing tells.

    The owner says so by a flag or by its sizes. Else a gate-and-up weight and its down projection
    tell: [E, 2I, H] goes with [E, H, I], and [E, H, 2I] with [E, I, H]; no sizes fit both. Last,
    gate and up read the residual stream and down writes to it, if their sizes differ.
    """
    owner, shape = weight.owner, tuple(weight.tensor.shape[1:])
    flag = getattr(owner, "is_transposed", None)
    if isinstance(flag, bool):
        return flag
    sizes = getattr(owner, "output_size", None), getattr(owner, "input_size", None)
    if shape == sizes:
        return False
    for other in _partners(weight, weights):
        (a, b), (c, d) = shape, tuple(other.tensor.shape[1:])
        if (a == 2 * d and b == c) or (c == 2 * b and d == a):
            return False
        if (b == 2 * c and a == d) or (d == 2 * a and c == b):
            return True
    role = role_of_name(weight.leaf)
    if hidden in shape and shape[0] != shape[1] and role in {"gate", "up", "down"}:
        return (shape[0] if role == "down" else shape[1]) != hidden
    return None


def _holds_two(weight: _Weight, weights: list[_Weight], out: int, into: int) -> bool:
    """Return whether a stacked weight holds gate and up: its partner takes half of its outputs."""
    if "gate_up" in weight.leaf:
        return True
    wanted = sorted((into, out // 2))
    pair = [tuple(o.tensor.shape[1:]) for o in _partners(weight, weights)]
    return out % 2 == 0 and any(sorted(p) == wanted for p in pair) and out != into


def _with_roles(block: str, matrices: list[Matrix]) -> tuple[Matrix, ...]:
    """Return the matrices with the roles that need neighbours filled in."""
    prefix = f"{block}."
    layers = {m.name.removeprefix(prefix): m for m in matrices if m.name == m.module}
    roles = roles_of_block({path: m.shape for path, m in layers.items()})
    return tuple(
        replace(m, role=roles[m.name.removeprefix(prefix)]) if m.name == m.module else m
        for m in matrices
    )
