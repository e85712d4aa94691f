"""`{"kind": "bitmask"}`: the same module, its weights stored without their zeros.

On disk: `NAME.weight_values` and `NAME.weight_mask` (`packing.py`) in place of `NAME.weight`; for
stacked experts the same of every expert's own matrix, or of the whole stack where the model's file
holds it as one tensor. In memory nothing changes: the weights are expanded while they are read and
packed again at save, by converters (`unpacking.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from compress.checkpoints.edits.base import Fields, Kind, refuse
from compress.checkpoints.packing import can_pack


def weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of each of a module's own parameters that the edit packs."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() >= 2 and "bias" not in name:
            yield name, parameter


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Return the module itself.

    Raises:
        RequestError: it has no weight with a packed form.
    """
    found = [parameter for _, parameter in weights(old)]
    if not found or not all(can_pack(parameter.shape, parameter.dtype) for parameter in found):
        refuse(
            "bitmask",
            old,
            where,
            "modules whose weights are floating and have a number of elements divisible by 8",
        )
    return old


KIND = Kind("bitmask", make)
