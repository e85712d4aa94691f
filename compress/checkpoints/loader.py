"""A model without weights, and the one way in which tensors on disk enter it, part by part.

Everything rests on the library's own loader, `convert_and_load_state_dict_in_model`, which accepts
a subset of a checkpoint: renamed, split, fused and cast tensors come out as `from_pretrained`
makes them, but only those of one block are in memory. A part is a block's name, or REST for what
lies outside the blocks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig

from compress.checkpoints.exceptions import keep_weights_still
from compress.checkpoints.quiet import without_bars
from compress.checkpoints.source import Source
from compress.errors import RequestError
from compress.numerics.heap import return_free_memory

REST = ""
"""The part that holds what lies outside the blocks: embeddings, last norms, heads."""

_ALIGNMENT = 64  # bytes; what torch's own CPU allocator gives


def skeleton(source: Source, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return `source`'s model in eval mode with its parameters on meta and its buffers real.

    The edits of an edited checkpoint are applied, so that its modules have the shapes on disk.

    Args:
        source: an opened checkpoint; its config is not changed.
        dtype: the dtype of the parameters; None is the one on disk.

    Raises:
        RequestError: the config describes no model that transformers can build.
    """
    config = copy.deepcopy(source.config)
    keep_weights_still(config)
    described = getattr(config, "quantization_config", None)
    kind: Any = source.model_class()
    try:
        with no_init_weights(), init_empty_weights(include_buffers=False):
            model = kind._from_config(config, dtype=dtype or source.dtype)
            if described is not None:
                _apply_edits(model, described)
            for name, origin in model.all_tied_weights_keys.items():
                _share(model, name, origin)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise RequestError(
            f"`{source.directory}` doesn't describe a `{kind.__name__}`: "
            f"{reason[0] if reason else type(error).__name__}",
            "config.json may be of another model or another version of transformers",
        ) from error
    return model.eval()


def load_tensors(
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    *,
    mapping: Sequence[Any] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> set[str]:
    """Put tensors with stock names into `model`, converted as `from_pretrained` converts them.

    Args:
        model: the model; parameters that `tensors` names are replaced, others stay.
        tensors: name on disk -> tensor. A fused parameter needs all its pieces in one call.
        mapping: the model's conversions; None asks the library.
        dtype: what floating tensors are cast to; None is the model's.
        device: where they go.

    Returns:
        The run-time names that got a value.

    Raises:
        RequestError: a tensor has another shape than the model's, belongs to no parameter, or can't
            be converted (a fused parameter's piece is missing).
    """
    dtype = dtype or model.dtype
    if mapping is None:
        mapping = _conversions(model)
    with without_bars():
        info, _ = convert_and_load_state_dict_in_model(
            model,
            dict(tensors),
            LoadStateDictConfig(
                weight_mapping=list(mapping),
                dtype=dtype,
                dtype_plan=model._get_dtype_plan(dtype),
                device_map={"": device},
            ),
        )
    if info.mismatched_keys:
        name, found, needed = sorted(info.mismatched_keys)[0]
        raise RequestError(
            f"`{name}` is {tuple(found)} on disk, but the config asks for {tuple(needed)}",
            "config.json and the weights may be of different models, or pieces are missing",
        )
    if info.conversion_errors:
        name, reason = next(iter(info.conversion_errors.items()))
        raise RequestError(
            f"`{name}` can't be made from the stored tensors: {str(reason).splitlines()[0]}",
            "the checkpoint may lack some of its pieces",
        )
    if info.unexpected_keys:
        raise RequestError(
            f"`{sorted(info.unexpected_keys)[0]}` belongs to no parameter of "
            f"`{type(model).__name__}`",
            "config.json and the weights may be of different models",
        )
    return set(model.state_dict()) - info.missing_keys


class Stored(NamedTuple):
    """A tensor on disk, and the run-time name that it goes to."""

    key: str
    name: str
    converter: WeightConverter | None
    """What makes the parameter from this and perhaps other tensors; None if it is stored as is."""


def stored_names(
    source: Source, model: PreTrainedModel, mapping: Sequence[Any] | None = None
) -> Iterator[Stored]:
    """Yield the checkpoint's tensors that the model uses, in order of name.

    Args:
        source: the checkpoint.
        model: its skeleton.
        mapping: the model's conversions; None asks the library.
    """
    if mapping is None:
        mapping = _conversions(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {p: entry for entry in converters for p in entry.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()
    for key in sorted(source.tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state:  # else the class doesn't use it, as in from_pretrained
            yield Stored(key, name, by_pattern[pattern] if pattern is not None else None)


class BlockLoader:
    """Loads and unloads the parts of a skeleton from a checkpoint.

    Args:
        source: the checkpoint.
        model: its skeleton.
        blocks: the blocks' names; what lies in none of them is the part REST.
        dtype: the parameters' dtype; None is the one on disk.
        device: where loaded tensors go.

    Attributes:
        conversions: the conversions that the checkpoint needed, for writing the same names.

    Raises:
        RequestError: the checkpoint lacks a parameter.
    """

    def __init__(
        self,
        source: Source,
        model: PreTrainedModel,
        *,
        blocks: Sequence[str],
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.source = source
        self.model = model
        self.dtype = dtype or source.dtype
        self.device = torch.device(device)
        self._blocks = set(blocks)
        self._mapping = _conversions(model)
        self._names: dict[str, list[str]] = {part: [] for part in [*blocks, REST]}
        state = model.state_dict()
        for name in state:
            self._names[self.part_of(name)].append(name)
        self._keys: dict[str, list[str]] = {part: [] for part in [*blocks, REST]}
        self._absent = self._place(state)
        self.conversions = [entry for entry in self._mapping if entry.was_used()]
        self._meta = {
            name: parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter.is_meta
        }
        self._check_absent()

    def part_of(self, name: str) -> str:
        """Return the block in which a run-time name lies, or REST."""
        end = name.rfind(".")
        while end > 0:
            if name[:end] in self._blocks:
                return name[:end]
            end = name.rfind(".", 0, end)
        return REST

    def names(self, part: str) -> list[str]:
        """Return the run-time names of a part's parameters and persistent buffers."""
        return list(self._names[part])

    def lenders(self, part: str) -> dict[str, dict[str, str]]:
        """Return the blocks whose weights the part uses -> {its own name: their name}."""
        found: dict[str, dict[str, str]] = {}
        for name, origin in self.model.all_tied_weights_keys.items():
            lender = self.part_of(origin)
            if self.part_of(name) == part and lender not in (part, REST):
                found.setdefault(lender, {})[name] = origin
        return found

    def load(
        self,
        part: str,
        tensors: Mapping[str, Tensor] | None = None,
        lent: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Give the part its weights.

        On CPU a weight that the file's mapping leaves misaligned is copied: kernels may choose by
        address, and a resumed run must get the same bits from another file.

        Args:
            part: a block's name, or REST.
            tensors: stock name -> tensor, as a writer gives them back; None reads the checkpoint.
            lent: run-time name -> tensor of what it shares with other blocks; None reads that from
                the checkpoint too.

        Raises:
            RequestError: see `load_tensors`.
        """
        stored = self.source.read(self._keys[part]) if tensors is None else tensors
        if stored:
            load_tensors(
                self.model,
                stored,
                mapping=self._mapping,
                dtype=self.dtype,
                device=self.device,
            )
        self._tie(part)  # a weight may be stored under either of its names
        self._fill_absent(part)
        self._tie(part)
        for name, value in (self._lent(part) if lent is None else lent).items():
            owner, leaf = _owner(self.model, name)
            owner._parameters[leaf] = nn.Parameter(value, value.is_floating_point())
        for name in self._names[part]:
            owner, leaf = _owner(self.model, name)
            parameter = owner._parameters.get(leaf)
            if parameter is None:
                continue
            # As in a model just loaded: torch's matmul asks, and folds or not.
            parameter.requires_grad_(parameter.is_floating_point())
            if parameter.device.type == "cpu" and parameter.data_ptr() % _ALIGNMENT:
                with torch.no_grad():
                    parameter.data = parameter.data.clone()

    def _lent(self, part: str) -> dict[str, Tensor]:
        """Return what the part shares with other blocks, as the checkpoint has it."""
        found: dict[str, Tensor] = {}
        for lender, names in self.lenders(part).items():
            self.load(lender)
            theirs = self.tensors(lender)
            found.update({name: theirs[origin] for name, origin in names.items()})
            self.unload(lender)
        return found

    def load_rest(self) -> None:
        """Give all that lies outside the blocks its weights, and put buffers on the device."""
        self.load(REST)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(self.device)

    def unload(self, part: str) -> None:
        """Put the part's parameters back on meta, and their memory back; buffers stay."""
        for name in self._names[part]:
            if name in self._meta:
                owner, leaf = _owner(self.model, name)
                owner._parameters[leaf] = self._meta[name]
        return_free_memory()

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Return the part's parameters and persistent buffers by run-time name, as loaded."""
        found = {}
        for name in self._names[part]:
            owner, leaf = _owner(self.model, name)
            value = getattr(owner, leaf)
            found[name] = value.detach()
        return found

    def _place(self, state: dict[str, Tensor]) -> set[str]:
        """Sort the names on disk into parts; return the run-time names that none of them fills."""
        absent = set(state)
        for stored in stored_names(self.source, self.model, self._mapping):
            self._keys[self.part_of(stored.name)].append(stored.key)
            targets = [stored.name]
            if stored.converter is not None:  # the name is only the first of its targets
                first, *others = stored.converter.target_patterns
                targets += [stored.name.replace(first, other) for other in others]
            absent.difference_update(targets)
        return absent

    def _all_names(self) -> list[str]:
        return [name for names in self._names.values() for name in names]

    def _check_absent(self) -> None:
        tied = self.model.all_tied_weights_keys
        unsaved = self.model._keys_to_ignore_on_save or ()
        ignored = self.model._keys_to_ignore_on_load_missing or ()
        stored = {tied.get(name, name) for name in self._all_names() if name not in self._absent}
        lacking = sorted(
            name
            for name in self._absent
            if name not in tied
            and name not in stored
            and name not in unsaved
            and not any(re.search(pattern, name) for pattern in ignored)
        )
        if lacking:
            raise RequestError(
                f"`{self.source.directory}` lacks {len(lacking)} tensors that "
                f"`{type(self.model).__name__}` needs, such as `{lacking[0]}`",
                "config.json and the weights may be of different models",
            )

    def _fill_absent(self, part: str) -> None:
        """Compute the weights that are never stored (sinusoids) by the model's own code."""
        owners: dict[str, nn.Module] = {}
        for name in self._names[part]:
            if name not in self._absent or name in self.model.all_tied_weights_keys:
                continue
            owner, leaf = _owner(self.model, name)
            parameter = owner._parameters.get(leaf)
            if parameter is not None and parameter.is_meta:
                empty = torch.empty_like(parameter, device=self.device)
                owner._parameters[leaf] = nn.Parameter(empty, parameter.is_floating_point())
                owners[name.rpartition(".")[0]] = owner
        for owner in owners.values():
            with torch.no_grad():
                self.model._init_weights(owner)

    def _tie(self, part: str) -> None:
        for name, origin in self.model.all_tied_weights_keys.items():
            if self.part_of(name) == part:
                _share(self.model, name, origin)


def _share(model: nn.Module, name: str, origin: str) -> None:
    """Make two names one parameter: the one that has a value, else the second."""
    owner, leaf = _owner(model, name)
    source, source_leaf = _owner(model, origin)
    own, shared = owner._parameters.get(leaf), source._parameters.get(source_leaf)
    if own is None or shared is None:
        return
    if shared.is_meta and not own.is_meta:  # stored under the other of its names
        source._parameters[source_leaf] = own
    else:
        owner._parameters[leaf] = shared


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter or buffer, and the name it has there."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _conversions(model: PreTrainedModel) -> list[Any]:
    """Return the conversions that an edited skeleton brings, else the library's for its class."""
    own = getattr(model, "_weight_conversions", None)
    return list(own) if own is not None else get_model_conversion_mapping(model)


def _apply_edits(model: PreTrainedModel, described: Any) -> None:
    """Apply the edits of a checkpoint of the method `compress`."""
    from compress.checkpoints.edits import apply

    if not isinstance(described, dict):
        described = described.to_dict()
    apply(model, described.get("modules", {}))
