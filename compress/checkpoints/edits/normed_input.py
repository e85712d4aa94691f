"""`{"kind": "normed_input"}`: a linear module with an RMS norm of its own before it.

    y = W norm(x) + b

Sub-LN (Wang et al., "Foundation Transformers", arXiv:2210.06423) has one before the output
projections of attention and MLP. On disk: `NAME.norm.weight [in]`, `NAME.linear.weight`,
`NAME.linear.bias`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, placement
from compress.checkpoints.edits.lowrank import linear_size

EPS = 1e-6


class NormedInput(nn.Module):
    """`linear(norm(x))`.

    `weight` and `bias` are those of `linear`: models read a replaced module's `weight.dtype`.
    """

    def __init__(self, norm: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        """The weight of `linear`."""
        return self.linear.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias of `linear`, if there is one."""
        return self.linear.bias  # type: ignore[return-value]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self.linear(self.norm(inputs))


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Put a norm of weight 1 before a linear module, which is kept.

    Raises:
        RequestError: `old` is no linear module.
    """
    if isinstance(old, NormedInput):
        return old
    wide, _ = linear_size(old, KIND.name, where)
    place: Any = placement(old)
    return NormedInput(nn.RMSNorm(wide, eps=EPS, **place), old)


KIND = Kind("normed_input", make, in_place=True)
