"""Training with 4-bit weights: rounded in the forward pass, updated in full precision.

The weights of a block's linear layers are rounded to 16 levels each time they are used, and the
gradient passes straight through the rounding to the full-precision weight that the optimizer moves
(arXiv:2502.17055, section 4: queries, keys, values, outputs and the MLP's matrices; embeddings,
norms and head stay as they are). Parameters keep their names, so that checkpoints stay stock.

Two formats, as published:

- int4: asymmetric, groups of 256 weights. With lo = min(w, 0) and hi = max(w, 0) of a group,
  s = (hi - lo) / 15 and z = round(-lo / s): w becomes s (clamp(round(w / s) + z, 0, 15) - z).
  Zero stays zero. Activations: groups of 64, the two largest of each exact, the rest in 16 steps
  between their least and greatest, rounded at random so that the mean is right.
- fp4: E1M2, whose values are evenly spaced: -7 to 7 times s = max|w| / 7, groups of 256, the two
  largest of each exact; activations likewise.

A weight's groups run along its rows, [out, in] read row by row, over row ends where a row isn't a
multiple of the group, as in the published code; those of an activation never leave a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.anatomy import read_anatomy
from compress.errors import RequestError

FORMATS = ("int4", "fp4")
GROUP = 256
_ACTIVATION_GROUPS = {"int4": 64, "fp4": 256}
_KEPT = 2  # largest magnitudes of a group that stay exact
_LEVELS = 15
_ROLES = ("q", "k", "v", "qkv", "kv", "o", "gate", "up", "gate_up", "down", "fc1", "fc2")


class Scheme(NamedTuple):
    """How weights, and maybe activations, are rounded.

    Attributes:
        format: one of FORMATS.
        group: weights that share a scale.
        activations: whether inputs of the layers are rounded too.
    """

    format: str = "int4"
    group: int = GROUP
    activations: bool = False


DEFAULT = Scheme()


def format_of(text: str) -> str:
    """The format that `--quantise` names; `4` is int4."""
    return "int4" if text == "4" else text


# Tensors


def quantise_weight(weight: Tensor, scheme: Scheme = DEFAULT) -> Tensor:
    """Round a weight [out, in] to 4 bits; the result has its shape and dtype."""
    rounding = _int4 if scheme.format == "int4" else _fp4
    flat = weight.reshape(1, -1).to(torch.promote_types(weight.dtype, torch.float32))
    return _by_groups(flat, scheme.group, rounding).view(weight.shape).to(weight.dtype)


def quantise_activation(x: Tensor, scheme: Scheme = DEFAULT, *, random: bool = True) -> Tensor:
    """Round activations [..., features] to 4 bits, group by group of each token.

    Args:
        x: any float dtype.
        scheme: of the model.
        random: int4 rounds up or down at random, right in the mean; else to the nearest.
    """
    int4 = _int4_activation if random else _int4_activation_nearest
    rounding = int4 if scheme.format == "int4" else _fp4
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _by_groups(wide, _ACTIVATION_GROUPS[scheme.format], rounding).to(x.dtype)


def _by_groups(x: Tensor, size: int, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `rounding` to groups [..., groups, size] of the last dimension, and to what is left."""
    whole = x.shape[-1] // size * size
    parts = []
    if whole:
        parts.append(rounding(x[..., :whole].unflatten(-1, (-1, size))).flatten(-2))
    if whole < x.shape[-1]:
        parts.append(rounding(x[..., whole:].unsqueeze(-2)).squeeze(-2))
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _int4(groups: Tensor) -> Tensor:
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    scale = (groups.amax(-1, keepdim=True).clamp(min=0) - low) / _LEVELS
    scale = torch.where(scale > 0, scale, 1.0)
    zero = torch.round(-low / scale)
    return ((torch.round(groups / scale) + zero).clamp(0, _LEVELS) - zero) * scale


def _fp4(groups: Tensor) -> Tensor:
    kept = _largest(groups)
    scale = groups.masked_fill(kept, 0).abs().amax(-1, keepdim=True) / (_LEVELS // 2)
    scale = torch.where(scale > 0, scale, 1.0)
    return torch.where(kept, groups, torch.round(groups / scale) * scale)


def _nearest_activation(x: Tensor, scheme: Scheme) -> Tensor:
    """As quantise_activation, for what isn't training: looking must not draw numbers."""
    return quantise_activation(x, scheme, random=False)


def _int4_activation_nearest(groups: Tensor) -> Tensor:
    return _int4_activation(groups, random=False)


def _int4_activation(groups: Tensor, random: bool = True) -> Tensor:
    kept = _largest(groups)
    low = groups.masked_fill(kept, torch.inf).amin(-1, keepdim=True)
    high = groups.masked_fill(kept, -torch.inf).amax(-1, keepdim=True)
    low = torch.where(low <= high, low, 0.0)  # of a group of two or fewer nothing is left
    scale = torch.where(high > low, (high - low) / _LEVELS, 1.0)
    steps = ((groups - low) / scale).clamp(0, _LEVELS)
    steps = torch.floor(steps + torch.rand_like(steps)) if random else steps.round()
    steps = steps.clamp(max=_LEVELS)
    return torch.where(kept, groups, low + steps * scale)


def _largest(groups: Tensor) -> Tensor:
    """Which entries of each group have the largest magnitudes, bool."""
    places = groups.abs().topk(min(_KEPT, groups.shape[-1]), -1).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, places, True)


class _Straight(torch.autograd.Function):
    """A function of a tensor whose gradient is the identity's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[..., Tensor], scheme: Scheme) -> Tensor:
        return function(x, scheme)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None


# Modules


class QuantisedLinear(nn.Linear):
    """A Linear that computes with rounded weights; made of a Linear by its class alone."""

    scheme: Scheme

    def forward(self, input: Tensor) -> Tensor:
        """Return input times the rounded weight."""
        if self.scheme.activations:
            rounding = quantise_activation if self.training else _nearest_activation
            input = _Straight.apply(input, rounding, self.scheme)
        weight = _Straight.apply(self.weight, quantise_weight, self.scheme)
        return functional.linear(input, weight, self.bias)


class QuantisedConv1D(Conv1D):
    """GPT-2's Conv1D, likewise: its weight is [in, out]."""

    scheme: Scheme

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the rounded weight."""
        if self.scheme.activations:
            rounding = quantise_activation if self.training else _nearest_activation
            x = _Straight.apply(x, rounding, self.scheme)
        weight = _Straight.apply(self.weight.t(), quantise_weight, self.scheme)
        return functional.linear(x, weight, self.bias)


_CLASSES: dict[type, type] = {nn.Linear: QuantisedLinear, Conv1D: QuantisedConv1D}


class Quantised(NamedTuple):
    """What `quantise_model` did.

    Attributes:
        scheme: the rounding.
        modules: names of the layers that compute with 4-bit weights.
        left: names of matrices of the blocks that stay as they are.
    """

    scheme: Scheme
    modules: tuple[str, ...]
    left: tuple[str, ...]

    def receipt(self, stored: str) -> dict[str, Any]:
        """The receipt's entry.

        Args:
            stored: "rounded" or "master".
        """
        entry = {**self.scheme._asdict(), "bits": 4, "modules": len(self.modules)}
        return {**entry, "left": list(self.left), "stored": stored}


def quantise_model(model: PreTrainedModel, scheme: Scheme) -> Quantised:
    """Let the linear layers of a model's blocks compute with 4-bit weights.

    Routers, low-rank and other edited layers, and stacked experts stay as they are, by name in the
    result.

    Raises:
        RequestError: there is no layer to quantise.
    """
    chosen, left = [], []
    for matrix in read_anatomy(model).matrices:
        module: Any = model.get_submodule(matrix.module)
        if matrix.role in _ROLES and type(module) in _CLASSES:
            module.__class__ = _CLASSES[type(module)]
            module.scheme = scheme
            chosen.append(matrix.module)
        elif matrix.module not in chosen:  # gate and up, in one, are two matrices
            left.append(matrix.name)
    if not chosen:
        raise RequestError(
            f"`--quantise` finds no linear layer in the blocks of this {type(model).__name__}",
            "leave it out",
        )
    return Quantised(scheme, tuple(chosen), tuple(dict.fromkeys(left)))


def rounded_weights(weights: dict[str, Tensor], done: Quantised) -> dict[str, Tensor]:
    """Round the quantised layers' weights in a state_dict of a whole model of Linear layers."""
    names = {f"{name}.weight" for name in done.modules}
    return {k: quantise_weight(w, done.scheme) if k in names else w for k, w in weights.items()}


@torch.no_grad()
def unquantise_model(model: nn.Module, *, rounded: bool) -> None:
    """Make the layers ordinary again.

    Args:
        model: as quantise_model left it; another is left alone.
        rounded: whether they keep the weights with which they computed, else those that the
            optimizer moved.
    """
    for module in model.modules():
        stock = next((k for k, v in _CLASSES.items() if type(module) is v), None)
        if stock is None:
            continue
        layer: Any = module
        if rounded:
            across = stock is Conv1D
            weight = layer.weight.t() if across else layer.weight
            weight = quantise_weight(weight, layer.scheme)
            layer.weight.copy_(weight.t() if across else weight)
        layer.__class__ = stock
        del layer.scheme
