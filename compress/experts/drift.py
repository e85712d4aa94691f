"""How far each decoder layer's output has drifted from the original's, from the two checkpoints.

Both are walked on the same few tokens, a block in memory at a time; what the original's blocks
return lies on the disk in between.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.checkpoints.durable import writing
from compress.checkpoints.replay import BlockRuns
from compress.checkpoints.source import Source
from compress.checkpoints.walk import walk
from compress.experts.divergence import js_divergence
from compress.experts.measuring import STREAM, Looks

TOKENS = 1024


class _Kept(Looks):
    """Keeps what every block returns, a file a block."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def replay(self, runs: BlockRuns) -> None:
        """Write the block's outputs on real tokens."""
        with writing(self.place):
            save_file({"output": _output(runs)}, self.place / f"{runs.block.name}.safetensors")


class _Compared(Looks):
    """Compares what every block returns with what was kept.

    Attributes:
        rows: a block each, in order.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.rows: list[dict[str, Any]] = []

    def replay(self, runs: BlockRuns) -> None:
        """Add the block's row."""
        own = _output(runs).float()
        old = load_file(self.place / f"{runs.block.name}.safetensors")["output"].float()
        moved = (own - old).double().square().sum() / old.double().square().sum().clamp(min=1e-300)
        self.rows.append(
            {
                "layer": runs.block.index,
                "js": float(js_divergence(old, own).double().mean()),
                "relative": float(moved),
            }
        )


def _output(runs: BlockRuns) -> Tensor:
    """Return [T, H]: the block's hidden states of all batches, padding left out."""
    parts = []
    for batch in runs.batches:
        hidden, kept = runs.output(batch, STREAM)[0], runs.tokens(batch)
        flat = hidden.reshape(-1, hidden.shape[-1])
        parts.append(flat if kept is None else flat[kept.flatten().to(flat.device)])
    return torch.cat(parts).cpu().contiguous()


def layer_drift(
    source: Source,
    result: Source,
    batch: Mapping[str, Tensor],
    place: Path,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return each decoder layer's divergence from the original.

    Args:
        source: the original.
        result: what became of it.
        batch: a calibration batch, of which at most TOKENS tokens are used.
        place: a directory for what the original returns; removed in the end.
        options: device and dtype of the walks.

    Returns:
        A row a layer: "js", mean over tokens of the divergence of Condense-MoE (softmax over the
        features of the layer's output, residual included, nats), and "relative", |h' - h|² / |h|².
        The last layer is taken before the final norm.
    """
    length = min(batch["input_ids"].shape[1], TOKENS)
    rows = max(TOKENS // length, 1)
    short = {name: value[:rows, :length] for name, value in batch.items()}
    place.mkdir(parents=True, exist_ok=True)
    try:
        walk(source, [short], _Kept(place), streams=(STREAM,), **options)
        compared = _Compared(place)
        walk(result, [short], compared, streams=(STREAM,), **options)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return compared.rows
