"""How the zeros of a checkpoint are stored: its weights dense, or packed where that is smaller.

Both ways go from files to files, one tensor in memory at a time (and what is about to be written).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoints import guard
from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.durable import writing
from compress.checkpoints.edits import resolve
from compress.checkpoints.edits.bitmask import weights
from compress.checkpoints.format import METHOD, VERSION
from compress.checkpoints.loader import Stored, skeleton, stored_names
from compress.checkpoints.packing import (
    MASK,
    VALUES,
    can_pack,
    expand,
    pack,
    packed_bytes,
    packed_names,
)
from compress.checkpoints.record import config_of, packed_here
from compress.checkpoints.shards import join_files
from compress.checkpoints.source import Source
from compress.checkpoints.tensorfiles import read_json
from compress.checkpoints.unpacking import family_converters, is_packing, stored_as
from compress.errors import RequestError
from compress.progress import Progress, silent

_HEADER = 128  # bytes that one more tensor takes in a file's header
_PIECE = 1 << 28  # bytes gathered before they are written


@dataclass(frozen=True)
class Stowed:
    """How the weights were written.

    Attributes:
        packed: the modules whose zeros aren't stored.
        dense: how many modules with matrices are stored dense.
    """

    packed: tuple[str, ...]
    dense: int


def has_packed(source: Source) -> bool:
    """Whether a checkpoint holds packed weights."""
    return next(packed_names(source.tensors), None) is not None


def write_zeros(
    source: Source,
    out: Path,
    scratch: Path,
    form: str,
    *,
    config: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Stowed:
    """Write a checkpoint's weights and config.json with its zeros in another form.

    Args:
        source: the checkpoint, edited or stock.
        out: where weights and config go.
        scratch: a directory to be made on the same disk; what it holds afterwards can go.
        form: "bitmask" packs the matrices of the blocks where that makes them smaller; "dense"
            packs none.
        config: what config.json is to hold apart from the edits; None is the source's.
        progress: told each tensor.

    Raises:
        RunError: the disk is full.
    """
    files = _Files(source)
    chosen, rest = files.choose(progress) if form == "bitmask" else ([], len(files.modules()))
    described = dict(config if config is not None else read_json(source.directory / "config.json"))
    edits = _edits(files, described, chosen)
    described.pop("quantization_config", None)
    if edits["modules"]:
        described["quantization_config"] = edits
    scratch.mkdir(parents=True, exist_ok=True)
    piece: dict[str, Tensor] = {}
    gathered = 0
    for number, (key, tensor) in enumerate(files.tensors(chosen, edits["guard"], progress)):
        piece[key] = tensor
        gathered += tensor.nbytes
        if gathered > _PIECE:
            _write_piece(scratch, number, piece)
            piece, gathered = {}, 0
    _write_piece(scratch, 2 * len(files.keys), piece)
    join_files(scratch, out, files.model.num_parameters())
    with writing(out):
        text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
        (out / "config.json").write_text(text, encoding="utf-8")
    return Stowed(tuple(chosen), rest)


class _Files:
    """A checkpoint's tensors, packed ones seen whole, and what they are in its model."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.model: PreTrainedModel = skeleton(source)
        self.packed = set(packed_names(source.tensors))
        used = {entry.key: entry for entry in stored_names(source, self.model)}
        self.used: dict[str, Stored] = {}  # by name on disk, without the suffix of a packed one
        self.keys: list[str] = []
        for key in source.tensors:
            base = key.removesuffix(VALUES)
            if key.removesuffix(MASK) in self.packed:
                continue
            name = base if base in self.packed else key
            self.keys.append(name)
            if key in used:
                self.used[name] = used[key]
        self.by_name: dict[str, list[str]] = {}
        for key, entry in self.used.items():
            self.by_name.setdefault(entry.name, []).append(key)

    def modules(self) -> list[str]:
        """Return the modules of the blocks that hold matrices and have no other edit."""
        config = config_of(self.model)
        edited = set(resolve(self.model, config.modules).values()) if config else set()
        edited -= set(packed_here(self.model, config)) if config else set()
        found: dict[str, None] = {}
        for block in read_anatomy(self.model).blocks:
            found.update({m.module: None for m in block.matrices if m.module not in edited})
        return list(found)

    def choose(self, progress: Progress) -> tuple[list[str], int]:
        """Return the modules that are smaller packed, and how many aren't."""
        family = family_converters(self.model)
        modules, chosen = self.modules(), []
        for done, module in enumerate(modules):
            progress("count zeros", done, len(modules), module)
            dense = packed = 0
            for leaf, parameter in weights(self.model.get_submodule(module)):
                keys = self._packable(f"{module}.{leaf}", family, parameter)
                if not keys:
                    break
                for key in keys:
                    weight = self.read(key)
                    count = int(torch.count_nonzero(weight))
                    dense += weight.nbytes
                    packed += packed_bytes(weight.shape, weight.dtype, count) + _HEADER
            else:
                if packed < dense:
                    chosen.append(module)
        progress("count zeros", len(modules), len(modules))
        return chosen, len(modules) - len(chosen)

    def _packable(self, name: str, family: list[Any], parameter: Tensor) -> list[str]:
        """Return the names on disk of a parameter's matrices, none if they have no packed form."""
        try:
            stored = stored_as(name, family)
        except RequestError:
            return []
        patterns = None if stored is None else tuple(stored[1].source_patterns)
        keys = self.by_name.get(name, [])
        for key in keys:
            converter = self.used[key].converter
            if converter is not None and not is_packing(converter):
                if tuple(converter.source_patterns) != patterns:
                    return []
            elif converter is None and stored is not None:
                return []
        if stored is None and len(keys) != 1:
            return []
        return keys if can_pack(parameter.shape, parameter.dtype, rows=stored is not None) else []

    def read(self, key: str) -> Tensor:
        """Return one weight, dense."""
        if key not in self.packed:
            return self.source.read([key])[key]
        pair = self.source.read([key + VALUES, key + MASK])
        mask = pair[key + MASK]
        shape = self.model.get_parameter(self.used[key].name).shape if mask.dim() == 1 else None
        return expand(pair[key + VALUES], mask, shape)

    def tensors(
        self, packed: list[str], guarded: list[str], progress: Progress
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield what is to be stored, by name on disk.

        Args:
            packed: modules whose weights are packed.
            guarded: parameters that carry the guard; none of the others does.
        """
        names = {
            f"{module}.{leaf}"
            for module in packed
            for leaf, _ in weights(self.model.get_submodule(module))
        }
        guards = set(resolve(self.model, guarded).values())
        before = config_of(self.model)
        unguarded = set(resolve(self.model, before.guard).values()) - guards if before else set()
        for done, key in enumerate(self.keys):
            progress("write", done, len(self.keys), key)
            name = self.used[key].name if key in self.used else ""
            tensor = self.read(key)
            if name in names:
                values, mask = pack(tensor)
                yield key + VALUES, values
                yield key + MASK, mask
                continue
            if name in guards and tensor.dim() == 1:
                tensor = tensor[None]
            elif name in unguarded:
                tensor = guard.unguard(tensor)
            shares = self.source.tensors.get(key)
            if shares is not None and shares.file.suffix == ".bin":
                tensor = tensor.clone()  # two names of a pickle may be one tensor
            yield key, tensor.contiguous()
        progress("write", len(self.keys), len(self.keys))


def _edits(files: _Files, config: Mapping[str, Any], packed: list[str]) -> dict[str, Any]:
    """Return the quantization_config: the edits of other kinds, and those packed."""
    edits = dict(config.get("quantization_config") or {"quant_method": METHOD, "version": VERSION})
    modules = {
        name: fields
        for name, fields in edits.get("modules", {}).items()
        if fields["kind"] != "bitmask"
    }
    modules.update({name: {"kind": "bitmask"} for name in packed})
    guarded = edits.get("guard") or (guard.guarded(files.model) if modules else [])
    return {**edits, "modules": modules, "guard": guarded if modules else []}


def _write_piece(scratch: Path, number: int, piece: dict[str, Tensor]) -> None:
    path = scratch / f"{number:08d}.safetensors"
    with writing(path):
        save_file(piece, path, metadata={"format": "pt"})
