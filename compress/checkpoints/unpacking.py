"""The converters between packed weights on disk and the parameters of a model in memory.

One converter per parameter of a `bitmask` module. A weight that the file holds as such is expanded;
stacked experts are expanded one by one, then merged by the family's own converter.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
)

from compress.checkpoints.edits.bitmask import weights
from compress.checkpoints.packing import MASK, VALUES, can_pack, expand, pack
from compress.errors import RequestError


class Expand(ConversionOps):
    """[values, mask] -> a weight of the given shape."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: object,
    ) -> dict[str, Any]:
        """Convert the two tensors of `input_dict`."""
        values, mask = (_tensors(input_dict, pattern)[0] for pattern in source_patterns)
        return {target_patterns[0]: expand(values, mask, self.shape)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The conversion at save."""
        return Pack(self.shape)


class Pack(ConversionOps):
    """A weight -> [values, mask]."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: object,
    ) -> dict[str, Any]:
        """Convert the one tensor of `input_dict`."""
        (weight,) = _tensors(input_dict, source_patterns[0])
        return _stored(dict(zip(target_patterns, pack(weight))), kwargs)

    @property
    def reverse_op(self) -> ConversionOps:
        """The conversion at load."""
        return Expand(self.shape)


class ExpandExperts(ConversionOps):
    """[values, mask] of every expert's matrices -> the stack that the family makes of them.

    Args:
        family: the converter that merges the experts' dense matrices.
        prefix: what precedes its patterns in the full names.
    """

    def __init__(self, family: WeightConverter, prefix: str) -> None:
        self.family, self.prefix = family, prefix

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: object,
    ) -> dict[str, Any]:
        """Convert the lists of tensors of `input_dict`, in the order of the experts."""
        tensors: dict[str, Any] = {}
        for i, name in enumerate(self.family.source_patterns):
            pair = [_tensors(input_dict, p) for p in source_patterns[2 * i : 2 * i + 2]]
            if len(pair[0]) != len(pair[1]):
                raise ValueError(f"{len(pair[0])} experts have values, {len(pair[1])} a mask")
            tensors[name] = [expand(values, mask) for values, mask in zip(*pair)]
        (stack,) = _run(self.family, tensors, kwargs).values()
        return {target_patterns[0]: stack}

    @property
    def reverse_op(self) -> ConversionOps:
        """The conversion at save."""
        return PackExperts(self.family, self.prefix)


class PackExperts(ConversionOps):
    """A stack of experts -> [values, mask] of every expert's matrices, by full name."""

    def __init__(self, family: WeightConverter, prefix: str) -> None:
        self.family, self.prefix = family, prefix

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: object,
    ) -> dict[str, Any]:
        """Convert the one tensor of `input_dict`."""
        (stack,) = _tensors(input_dict, source_patterns[0])
        split: Any = self.family.reverse_transform()
        tensors = _run(split, {split.source_patterns[0]: stack}, kwargs)
        packed: dict[str, Tensor] = {}
        for name, weight in tensors.items():
            values, mask = pack(weight)
            packed[self.prefix + name + VALUES], packed[self.prefix + name + MASK] = values, mask
        return _stored(packed, kwargs)

    @property
    def reverse_op(self) -> ConversionOps:
        """The conversion at load."""
        return ExpandExperts(self.family, self.prefix)


def family_converters(model: PreTrainedModel) -> list[WeightConverter]:
    """Return the converters that a stock checkpoint of the model's family needs."""
    found = get_model_conversion_mapping(model, add_legacy=False)
    return [entry for entry in found if isinstance(entry, WeightConverter)]


def stored_as(name: str, family: Iterable[WeightConverter]) -> tuple[str, WeightConverter] | None:
    """Return how stock files hold a parameter that isn't stored as it is.

    Args:
        name: its run-time name.
        family: see `family_converters`.

    Returns:
        (what precedes the converter's patterns in the full names, the converter that merges the
        experts); None for a parameter that is stored as it is.

    Raises:
        RequestError: the parameter is made from stored tensors in another way.
    """
    for converter in family:
        if converter.reverse_transform().rename_source_key(name)[1] is None:
            continue
        target = converter.target_patterns[0]
        plain = all("*." in p and "(" not in p and "\\" not in p for p in converter.source_patterns)
        merges = any(isinstance(op, MergeModulelist) for op in converter.operations)
        if not (plain and merges and len(converter.target_patterns) == 1 and name.endswith(target)):
            raise RequestError(
                f"edit of `{name.rpartition('.')[0]}`: kind `bitmask` can't pack `{name}`, which "
                "stock files hold in another form",
                "leave it out: it stays dense",
            )
        return name.removesuffix(target), converter
    return None


def load_conversions(model: PreTrainedModel, modules: Iterable[str]) -> list[WeightConverter]:
    """Return the converters that read packed modules into this model.

    Args:
        model: the model, of any class that holds the modules.
        modules: the modules of kind `bitmask`, as this model calls them.
    """
    return list(_conversions(model, modules, any_prefix=True))


def save_conversions(model: PreTrainedModel, modules: Iterable[str]) -> list[WeightConverter]:
    """Return the converters whose reversal stores the modules packed, under their own names."""
    return list(_conversions(model, modules, any_prefix=False))


def is_packing(conversion: object) -> bool:
    """Whether a weight conversion is one of ours."""
    ours = (Expand, Pack, ExpandExperts, PackExperts)
    return any(isinstance(op, ours) for op in getattr(conversion, "operations", ()))


def without_packing(conversions: Iterable[Any]) -> list[Any]:
    """Return conversions without ours, with the family's in the place of those that hold them."""
    conversions = list(conversions)
    kept = [entry for entry in conversions if not is_packing(entry)]
    known = {tuple(entry.source_patterns) for entry in kept}
    for entry in conversions:
        for op in getattr(entry, "operations", ()):
            family = getattr(op, "family", None) if is_packing(entry) else None
            if family is not None and tuple(family.source_patterns) not in known:
                known.add(tuple(family.source_patterns))
                kept.append(family)
    return kept


def _conversions(
    model: PreTrainedModel, modules: Iterable[str], *, any_prefix: bool
) -> Iterator[WeightConverter]:
    family = family_converters(model)
    for module in modules:
        for leaf, parameter in weights(model.get_submodule(module)):
            name = f"{module}.{leaf}"
            found = stored_as(name, family)
            operation: ConversionOps
            if found is None:
                sources, operation = [name], Expand(parameter.shape)
            else:
                prefix, converter = found
                if not can_pack(parameter.shape, parameter.dtype, rows=True):
                    raise RequestError(
                        f"edit of `{module}`: kind `bitmask` can't pack `{name}`: its experts have "
                        f"rows of {parameter.shape[-1]}, which isn't a multiple of 8",
                        "leave it out: it stays dense",
                    )
                sources = [prefix + pattern for pattern in converter.source_patterns]
                operation = ExpandExperts(converter, prefix)
            pairs = [
                _anchored(source + suffix, model, any_prefix)
                for source in sources
                for suffix in (VALUES, MASK)
            ]
            yield WeightConverter(pairs, _anchored(name, model, False), [operation])


def _anchored(name: str, model: PreTrainedModel, any_prefix: bool) -> str:
    """Return the pattern of a full name; the file may be of a class with or without a head.

    It ends where the name ends: `down_proj` doesn't take `down_proj_bias`.
    """
    start = "^"
    if any_prefix and model.base_model_prefix:
        prefix = f"{model.base_model_prefix}."
        start, name = f"^(?:{prefix})?", name.removeprefix(prefix)
    head, star, tail = name.partition("*.")
    return start + head.replace(".", r"\.") + star + tail.replace(".", r"\.") + r"(?!\w)"


def _stored(packed: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """Give packed tensors the names of the family's files.

    Newer transformers does so itself; 5.17 renames only what no converter takes.
    """
    if hasattr(core_model_loading, "apply_renamings"):
        return packed
    conversions = getattr(options["model"], "_weight_conversions", None) or []
    renamings = [
        entry.reverse_transform()
        for entry in reversed(conversions)
        if isinstance(entry, WeightRenaming)
    ]
    return {
        functools.reduce(
            lambda key, entry: entry.rename_source_key(key)[0], renamings, name
        ): tensor
        for name, tensor in packed.items()
    }


def _tensors(tensors: dict[str, Any], pattern: str) -> list[Tensor]:
    """Return what was collected for a pattern.

    Raises:
        ValueError: nothing was.
    """
    if pattern not in tensors:
        raise ValueError(f"no tensor `{pattern}` is stored beside its partner")
    value = tensors[pattern]
    return value if isinstance(value, list) else [value]


def _run(converter: Any, tensors: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Run a converter's operations on tensors by its own patterns."""
    for operation in converter.operations:
        tensors = operation.convert(
            tensors,
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            **options,
        )
    return tensors
