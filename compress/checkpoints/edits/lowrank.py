"""`{"kind": "lowrank", "rank": r}`: a matrix as the product of two thin ones, W = up · down.

On disk: `NAME.down.weight [rank, in]`, `NAME.up.weight [out, rank]`, `NAME.up.bias [out]` where the
replaced module had a bias. A convolution keeps its kernel, stride and padding in `down`, and `up`
is a convolution of width 1. "in" and "out" are given where the module was narrowed as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.edits.base import Fields, Kind, placement, refuse
from compress.errors import RequestError


class _Kept(NamedTuple):
    """What `down` made of a tensor, for so many more that will ask for it."""

    inputs: Tensor
    version: int
    inner: Tensor
    left: int


class LowRank(nn.Module):
    """`up(down(x))`.

    `weight` and `bias` are those of `up`: models read a replaced module's `weight.dtype`, and
    GPT-2's own initialisation touches `c_proj.weight` even when everything was read from disk.
    """

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.borrowers = 0  # modules beside it that run `down` too
        self._kept: _Kept | None = None

    @property
    def weight(self) -> Tensor:
        """The weight of `up`, [out, rank, …]."""
        return self.up.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], if there is one."""
        return self.up.bias  # type: ignore[return-value]

    @property
    def rank(self) -> int:
        """The inner width."""
        return int(self.weight.shape[1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]; [B, in, T] to [B, out, T'] for a convolution."""
        return self.up(self.inner(inputs) if self.borrowers else self.down(inputs))

    def inner(self, inputs: Tensor) -> Tensor:
        """Return `down(inputs)`; where several modules ask for it in turn it is computed once.

        Not while gradients are recorded: what is kept would hold their graph.
        """
        kept, self._kept = self._kept, None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.down(inputs)
        version = 0 if inputs.is_inference() else inputs._version
        if kept is not None and kept.inputs is inputs and kept.version == version:
            if kept.left > 1:
                self._kept = kept._replace(left=kept.left - 1)
            return kept.inner
        found = self.down(inputs)
        self._kept = _Kept(inputs, version, found, self.borrowers)
        return found

    @property
    def product_shape(self) -> tuple[int, ...]:
        """[out, in], or [out, in, kernel] for a convolution."""
        down: Any = self.down.weight
        return (int(self.weight.shape[0]), *(int(size) for size in down.shape[1:]))

    def product(self) -> Tensor:
        """Return up · down in float64: [out, in], or [out, in, kernel] for a convolution."""
        down, up = self.down.weight.detach().double(), self.weight.detach().double()  # type: ignore[operator]
        return torch.tensordot(up.flatten(1), down, dims=1)


def make(old: nn.Module, fields: Fields, where: str) -> LowRank:
    """Build the two thin modules that stand for `old`.

    Raises:
        RequestError: `old` is no linear module, or the rank exceeds its smaller side.
    """
    rank = int(fields["rank"])
    if isinstance(old, (nn.Conv1d, LowRank)) and isinstance(getattr(old, "down", old), nn.Conv1d):
        return _convolution(old, fields, where, rank)
    wide, tall = linear_size(old, "lowrank", where)
    wide, tall = int(fields.get("in", wide)), int(fields.get("out", tall))
    check_rank(rank, wide, tall, where)
    place = placement(old)
    down = nn.Linear(wide, rank, bias=False, **place)
    return LowRank(down, nn.Linear(rank, tall, bias=old.bias is not None, **place))


def linear_size(old: nn.Module, kind: str, where: str) -> tuple[int, int]:
    """Return (in, out) of a Linear, a Conv1D (weight [in, out]) or a pair that stands for one.

    Raises:
        RequestError: it is something else.
    """
    if isinstance(old, Conv1D):
        return int(old.weight.shape[0]), int(old.weight.shape[1])
    if isinstance(old, LowRank) and isinstance(old.down, nn.Linear):
        return old.down.in_features, int(old.weight.shape[0])
    if isinstance(old, nn.Linear):
        return old.in_features, old.out_features
    return refuse(kind, old, where, "linear modules: nn.Linear and the Conv1D of GPT-2")


def _convolution(old: nn.Module, fields: Fields, where: str, rank: int) -> LowRank:
    first: Any = old.down if isinstance(old, LowRank) else old
    last: Any = old.up if isinstance(old, LowRank) else old
    if first.groups != 1:
        raise RequestError(
            f"edit of `{where}`: a convolution of {first.groups} groups has no low-rank form",
            "leave it out: it is thin already",
        )
    wide = int(fields.get("in", first.in_channels))
    tall = int(fields.get("out", last.out_channels))
    check_rank(rank, wide * first.kernel_size[0], tall, where)
    place = placement(old)
    down = nn.Conv1d(
        wide,
        rank,
        first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        dilation=first.dilation,
        padding_mode=first.padding_mode,
        bias=False,
        **place,
    )
    return LowRank(down, nn.Conv1d(rank, tall, 1, bias=last.bias is not None, **place))


def check_rank(rank: int, wide: int, tall: int, where: str) -> None:
    """Raise RequestError where a rank exceeds a matrix's smaller side."""
    if rank > min(wide, tall):
        raise RequestError(
            f"edit of `{where}`: rank {rank} exceeds its smaller side, {min(wide, tall)}",
            f"give a rank from 1 to {min(wide, tall)}",
        )


KIND = Kind("lowrank", make, required=("rank",), optional=("in", "out"))
