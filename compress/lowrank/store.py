"""Tensors by block on disk: statistics that many ratios are tried from, and finished factors.

One safetensors file a block, whole or not there; small facts lie in its metadata as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.checkpoints.durable import sync, write_json, writing
from compress.errors import RequestError
from compress.lowrank.statistics import Inputs

_NOTE = "compress"
_HEAD = "statistics.json"
SCHEMA = 1


class BlockFiles:
    """Tensors and a note for each block.

    Args:
        directory: made if absent; left-overs of a killed writer are removed.
        reads_only: nothing is made or removed.
    """

    def __init__(self, directory: Path, *, reads_only: bool = False) -> None:
        self.directory = directory
        if reads_only:
            return
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob("*.tmp"):
            left.unlink()

    def __contains__(self, block: str) -> bool:
        return self._path(block).is_file()

    def write(self, block: str, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Keep a block's tensors; when this returns, they survive a crash.

        Raises:
            RunError: the disk is full.
        """
        path = self._path(block)
        temporary = path.with_suffix(".tmp")
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with writing(path):
            save_file(stored, temporary, metadata={_NOTE: json.dumps(note, allow_nan=False)})
            sync(temporary)
            os.replace(temporary, path)
            sync(self.directory)

    def read(self, block: str) -> dict[str, Tensor]:
        """Return a block's tensors, memory-mapped."""
        return load_file(self._path(block))

    def note(self, block: str) -> dict[str, Any]:
        """Return what was kept with them."""
        with safe_open(str(self._path(block)), framework="pt") as handle:
            return json.loads((handle.metadata() or {}).get(_NOTE, "{}"))

    def _path(self, block: str) -> Path:
        return self.directory / f"{block}.safetensors"


class StatisticsStore(BlockFiles):
    """`Inputs` of the layers of each block; layers that read one tensor share an entry."""

    def keep(self, block: str, found: Mapping[str, Inputs], alias: Mapping[str, str]) -> None:
        """Keep a block's statistics.

        Args:
            block: its name.
            found: name of an entry -> its statistics.
            alias: layer -> its entry.
        """
        tensors: dict[str, Tensor] = {}
        for name, inputs in found.items():
            tensors |= {f"{name}|{key}": getattr(inputs, key) for key in _TENSORS}
        rows = {name: inputs.rows for name, inputs in found.items()}
        self.write(block, tensors, {"alias": dict(alias), "rows": rows})

    def alias(self, block: str) -> dict[str, str]:
        """Return which entry each layer has; layers that no token reached have none."""
        return dict(self.note(block)["alias"]) if block in self else {}

    def inputs(self, block: str) -> dict[str, Inputs]:
        """Return the statistics of a block's layers, by layer."""
        if block not in self:
            return {}
        note, tensors = self.note(block), self.read(block)
        entries = {
            name: Inputs(**{k: tensors[f"{name}|{k}"] for k in _TENSORS}, rows=rows)
            for name, rows in note["rows"].items()
        }
        return {layer: entries[entry] for layer, entry in note["alias"].items()}

    def head(self, **content: Any) -> None:
        """Say what the statistics are of; written last, so that without it they aren't whole."""
        write_json(self.directory / _HEAD, {"schema": SCHEMA, **content})

    @property
    def whole(self) -> bool:
        """Whether all blocks have been measured."""
        return (self.directory / _HEAD).is_file()

    def copy_to(self, place: Path) -> None:
        """Copy the statistics to a new directory, which appears whole.

        Raises:
            RunError: the disk is full.
        """
        beside = place.with_name(place.name + ".partial")
        with writing(place):
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(self.directory, beside)
            os.replace(beside, place)

    def check(self, model_digest: str) -> dict[str, Any]:
        """Return the head of statistics that are to be used.

        Raises:
            RequestError: there are none, or they are of another model.
        """
        head = self.directory / _HEAD
        try:
            found = json.loads(head.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(
                f"`{self.directory}` holds no statistics: there is no {_HEAD}",
                "make them with `--save-stats DIR`",
            ) from error
        except ValueError as error:
            raise RequestError(f"`{head}` isn't JSON: {error}") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise RequestError(f"`{head}` isn't of a form that this version reads")
        if found.get("model") != model_digest:
            raise RequestError(
                f"`{self.directory}` holds statistics of another model: digest "
                f"{found.get('model')}, MODEL has {model_digest}",
                "make them for this model with `--save-stats DIR`",
            )
        return found


_TENSORS = ("gram", "total", "mean_abs")
