"""What makes an edited checkpoint fail where this package isn't imported.

transformers only warns about an unknown quantization method, makes up missing weights and goes on.
So the last norm's weight, [n], is stored as [1, n]: stock loading ends in a size mismatch. Ours has
a converter that takes the axis away at load and puts it back at save.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter

from compress.errors import RequestError


class DropAxis(ConversionOps):
    """[1, n] -> [n]; a weight without the axis stays as it is."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: object,
    ) -> dict[str, Any]:
        """Convert the one tensor of `input_dict`."""
        tensor = _only(input_dict)
        return {target_patterns[0]: tensor[0] if tensor.dim() == 2 else tensor}

    @property
    def reverse_op(self) -> ConversionOps:
        """The conversion at save."""
        return AddAxis()


class AddAxis(ConversionOps):
    """[n] -> [1, n]."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: object,
    ) -> dict[str, Any]:
        """Convert the one tensor of `input_dict`."""
        return {target_patterns[0]: _only(input_dict)[None]}

    @property
    def reverse_op(self) -> ConversionOps:
        """The conversion at load."""
        return DropAxis()


def _only(tensors: dict[str, Any]) -> Tensor:
    (value,) = tensors.values()
    return value[0] if isinstance(value, list) else value


def guarded(model: PreTrainedModel) -> list[str]:
    """Choose the parameters that carry the guard: the last norm's weight of each inner model.

    Only base models count, since another head may be put on the same checkpoint; each of several
    stacks (an encoder and a decoder, two towers) has its own, since each can be loaded alone.

    Raises:
        RequestError: the model has no one-dimensional weight at all.
    """
    names: dict[str, None] = {}
    where = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            base = module.base_model
            last = _last_norm(base)
            if last:
                names[f"{where[id(base)]}.{last}".lstrip(".")] = None
    if not names:
        raise RequestError(
            f"{type(model).__name__} has no norm, so an edited checkpoint of it can't be guarded",
            "save the model stock: edits are for models with norms",
        )
    return list(names)


def _last_norm(model: nn.Module) -> str | None:
    """Return the name of the last one-dimensional weight, of a norm if there is one."""
    flat = [
        (name, "norm" in type(module).__name__.lower())
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() == 1
    ]
    norms = [name for name, is_norm in flat if is_norm] or [name for name, _ in flat]
    return f"{norms[-1]}.weight" if norms else None


def load_conversions(model: PreTrainedModel, names: Iterable[str]) -> list[WeightConverter]:
    """Return the converters that read guarded weights into this model.

    Args:
        model: the model, of any class that holds the guarded modules.
        names: the guarded parameters, as this model calls them.
    """
    prefix = f"{model.base_model_prefix}."
    found = []
    for name in names:
        # the file may come from a class with a head (names longer by the prefix), or without
        for stored in dict.fromkeys((name, prefix + name, name.removeprefix(prefix))):
            found.append(WeightConverter(f"^{re.escape(stored)}$", f"^{name}", [DropAxis()]))
    return found


def save_conversions(names: Iterable[str]) -> list[WeightConverter]:
    """Return the converters whose reversal stores the weights guarded, under their own names."""
    return [WeightConverter(f"^{name}", f"^{name}", [DropAxis()]) for name in names]


def is_guard(conversion: object) -> bool:
    """Whether a weight conversion is one of ours."""
    operations = getattr(conversion, "operations", ())
    return any(isinstance(operation, (DropAxis, AddAxis)) for operation in operations)


def unguard(tensor: Tensor) -> Tensor:
    """Return [n] for a guarded weight [1, n]."""
    return torch.squeeze(tensor, 0)
