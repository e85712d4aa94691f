"""`{"kind": "scaled_norm", "depth": l}`: a norm whose output is multiplied by 1 / sqrt(l).

LayerNorm Scaling (Sun et al., "The Curse of Depth", arXiv:2502.05795): l is the layer's number from
1, in both norms of a pre-norm layer. On disk: the norm's own names and shapes. A norm is linear in
its weight and bias, so `fold` makes the same function of a stock norm; training must not do that,
since an optimizer's relative step would change by sqrt(l).
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, refuse


class ScaledNorm:
    """Marks norms that this kind made, and lets them be pickled and copied."""

    depth: int

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Normalise [..., hidden], then scale."""
        return super().forward(*args, **kwargs) * (1.0 / math.sqrt(self.depth))  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (_stock(type(self)),), self.__dict__


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Scale a norm's output, in place.

    Raises:
        RequestError: `old` is no norm.
    """
    norm: Any = old
    if not isinstance(old, ScaledNorm):
        if "norm" not in type(old).__name__.lower() or any(old.children()):
            refuse(KIND.name, old, where, "layer and RMS norms")
        cls: Any = type(old)
        norm.__class__ = _scaled_class(cls)
    norm.depth = int(fields["depth"])
    return norm


def fold(norm: nn.Module, *, back: bool = False) -> bool:
    """Take a norm's factor into its weight and bias, in place; the norm is then its stock class.

    Computed in float32 (float64 for float64 weights), rounded once to the weights' dtype. Exact up
    to that rounding, bit for bit where sqrt(l) is a power of two. Norms that multiply by 1 + weight
    (Gemma) are found by trying.

    Args:
        norm: a scaled norm, off the meta device.
        back: the other way: put the factor that was folded back into a norm that is scaled again;
            its class stays.

    Returns:
        Whether it could be done: a norm without a weight can't hold the factor; it is then as it
        was.
    """
    scaled: Any = norm
    offset = _offset(scaled)
    if offset is None:
        return False
    factor = math.sqrt(scaled.depth) if back else 1.0 / math.sqrt(scaled.depth)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters(recurse=False):
            wide = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
            shift = offset if name == "weight" else 0.0
            parameter.copy_((wide + shift) * factor - shift)
    if not back:
        scaled.__class__ = _stock(type(norm))
        del scaled.depth
    return True


def can_fold(norm: nn.Module) -> bool:
    """Whether `fold` could take a scaled norm's factor into its weight."""
    return _offset(norm) is not None


def _offset(norm: Any) -> float | None:
    """Return o of a norm that multiplies by o + weight: 0, or 1 for Gemma's; None for others.

    Tried on a twin with random weights, so that sharded and meta weights do as well.
    """
    own = dict(norm.named_parameters(recurse=False))
    if "weight" not in own or not set(own) <= {"weight", "bias"}:
        return None
    generator = torch.Generator().manual_seed(0)
    draws = {
        name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in own.items()
    }
    probe = torch.randn(4, *own["weight"].shape, generator=generator, dtype=torch.float64)
    plain = _run(norm, draws, probe)
    for offset in (0.0, 1.0):
        halved = {k: v / 2 - (offset / 2 if k == "weight" else 0.0) for k, v in draws.items()}
        if torch.allclose(_run(norm, halved, probe), plain / 2, rtol=1e-4, atol=1e-5):
            return offset
    return None


def _run(norm: Any, parameters: dict[str, Tensor], probe: Tensor) -> Tensor:
    """Run the stock norm on other parameters."""
    twin = copy.copy(norm)
    drawn = {name: nn.Parameter(value) for name, value in parameters.items()}
    twin._parameters = {**norm._parameters, **drawn}  # a bias of None stays
    twin.__class__ = _stock(type(norm))
    with torch.no_grad():
        return twin.forward(probe).double()


def is_scaled(module: nn.Module) -> bool:
    """Whether a norm's output is scaled by an edit."""
    return isinstance(module, ScaledNorm)


def _stock(cls: Any) -> Any:
    """Return the class that was scaled."""
    return cls.__mro__[cls.__mro__.index(ScaledNorm) + 1]


def _rebuild(base: Any) -> nn.Module:
    cls = _scaled_class(base)
    return cls.__new__(cls)


@functools.cache
def _scaled_class(base: Any) -> type[nn.Module]:
    body = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    if hasattr(base, "kernel_layer_name"):  # a faster kernel for the stock norm wouldn't scale
        body["kernel_layer_name"] = "CompressScaledNorm"
    return type(base.__name__, (ScaledNorm, base), body)


KIND = Kind("scaled_norm", make, required=("depth",), in_place=True)
