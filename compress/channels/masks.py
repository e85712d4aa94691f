"""Masks on what reads a group's channels: M(i-1) ⊗ W ⊗ M(i) without touching a weight.

A consumer's input channel multiplied by m is the consumer's column multiplied by m, so for hard
masks this is what the network computes once the channels are gone (wherever `Group.exact`), and for
soft ones gradients reach every mask value, those at 0 included. Masks come after normalisation and
activation; a mask before a batch norm would leave its shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from compress.channels.groups import Group, Member


class Masks:
    """Masks of a model's groups, by hooks; as a context manager it takes them off at the end.

        with Masks(model, groups) as masks:
            masks.set([torch.ones(group.width) for group in groups])
            model(pixel_values=…)

    All ones, and groups without a mask, leave the model's output as it is to the bit.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self._values: dict[int, Tensor] = {}
        self._hooks: list[Any] = []
        for name, side, parts in _places(self.groups):
            module = model.get_submodule(name)
            self._hooks.append(self._hook(module, side, parts))

    def set(self, values: Sequence[Tensor | None]) -> None:
        """Use these masks from now on.

        Args:
            values: for each group [width], bool or floating, with or without a gradient; None for
                no mask. Also [B, width], a mask for each image of the batch.
        """
        self._values = {i: value for i, value in enumerate(values) if value is not None}

    def clear(self) -> None:
        """Use no masks."""
        self._values = {}

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> Masks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hook(self, module: nn.Module, side: str, parts: list[tuple[int, Member]]) -> Any:
        total = _axis_length(module, side)
        units = {index: _inverse(member.positions, total) for index, member in parts}
        channels_last = not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))

        def masked(features: Tensor) -> Tensor:
            factor: Tensor | None = None
            for index, inverse in units.items():
                value = self._values.get(index)
                if value is None:
                    continue
                one = _spread(value.to(features.device, features.dtype), inverse)
                factor = one if factor is None else factor * one
            if factor is None:
                return features
            return features * _placed(factor, features, channels_last)

        if side == "output":
            return module.register_forward_hook(lambda _, inputs, output: masked(output))
        return module.register_forward_pre_hook(lambda _, inputs: (masked(inputs[0]), *inputs[1:]))


def _places(groups: Sequence[Group]) -> list[tuple[str, str, list[tuple[int, Member]]]]:
    """Return (module, side, groups masked there)."""
    found: dict[tuple[str, str], list[tuple[int, Member]]] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            if member.mask is not None:
                found.setdefault((member.module, member.mask), []).append((index, member))
    return [(name, side, parts) for (name, side), parts in found.items()]


def _axis_length(module: Any, side: str) -> int:
    """Return how many channels a module takes in or gives out."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return int(module.in_channels if side == "input" else module.out_channels)
    if isinstance(module, nn.Linear):
        return int(module.in_features if side == "input" else module.out_features)
    return int(next(module.parameters()).shape[-1])


def _inverse(positions: Tensor, total: int) -> Tensor:
    """Return [total]: the unit at each place of the axis, width where there is none."""
    width, span = positions.shape
    inverse = torch.full((total,), width)
    inverse[positions.reshape(-1)] = torch.arange(width).repeat_interleave(span)
    return inverse


def _spread(value: Tensor, inverse: Tensor) -> Tensor:
    """Return a mask over the axis: 1 where no unit lies."""
    padded = torch.cat([value, value.new_ones(*value.shape[:-1], 1)], dim=-1)
    return padded[..., inverse.to(value.device)]


def _placed(factor: Tensor, features: Tensor, channels_last: bool) -> Tensor:
    """Shape a factor [C] or [B, C] so that it multiplies features; windows count to their image."""
    if factor.dim() == 2 and len(features) != len(factor):
        factor = factor.repeat_interleave(len(features) // len(factor), dim=0)
    between = [1] * (features.dim() - 2)
    first = [len(factor)] if factor.dim() == 2 else []
    if channels_last:
        return factor.reshape(*first, *between, -1) if first else factor
    return factor.reshape(*first, -1, *between)
