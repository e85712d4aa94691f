"""Condensed layers on disk: what a killed run has finished, and what a search runs with.

One file a layer, whole or not there: the tensors in float32, and the layer's row as metadata.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.checkpoints.durable import sync, writing
from compress.experts.condensing import Condensed
from compress.experts.layers import ExpertLayer
from compress.experts.merge import GatedMLP


class LayerJournal:
    """Condensed layers in a directory, by the name of the layer.

    Args:
        directory: made if absent; left-overs of a killed writer are removed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob("*.tmp"):
            left.unlink()

    def __contains__(self, layer: ExpertLayer) -> bool:
        return self._path(layer).is_file()

    def write(self, made: Condensed) -> None:
        """Keep a layer; when this returns, it survives a crash."""
        tensors: dict[str, Tensor] = {}
        for prefix, mlp in (("mlp", made.mlp), ("shared", made.shared)):
            if mlp is not None:
                tensors.update({f"{prefix}.{k}": v for k, v in mlp._asdict().items()})
        if made.gate is not None:
            tensors["gate"] = made.gate
        stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        path = self._path(made.layer)
        temporary = path.with_suffix(".tmp")
        with writing(path):
            save_file(stored, temporary, metadata={"row": json.dumps(made.row, allow_nan=False)})
            sync(temporary)
            os.replace(temporary, path)
            sync(self.directory)

    def read(self, layer: ExpertLayer) -> Condensed:
        """Return a layer that was kept, its tensors memory-mapped."""
        path = self._path(layer)
        tensors = load_file(path)
        parts: dict[str, GatedMLP | None] = {}
        for prefix in ("mlp", "shared"):
            names = [f"{prefix}.{part}" for part in GatedMLP._fields]
            there = names[0] in tensors
            parts[prefix] = GatedMLP(*(tensors[name] for name in names)) if there else None
        return Condensed(layer, parts["mlp"], parts["shared"], tensors.get("gate"), self.row(layer))

    def row(self, layer: ExpertLayer) -> dict:
        """Return a kept layer's row alone."""
        with safe_open(str(self._path(layer)), framework="pt") as handle:
            return json.loads((handle.metadata() or {})["row"])

    def _path(self, layer: ExpertLayer) -> Path:
        return self.directory / f"{layer.name}.safetensors"
