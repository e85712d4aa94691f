"""How many weights a checkpoint stores, and how many of them aren't zero."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compress.checkpoints.packing import whole_counts
from compress.checkpoints.source import Source
from compress.progress import Progress, silent

_CHUNK = 1 << 24  # elements counted at a time


class Census(NamedTuple):
    """Counts over the stored weights; a tied weight is stored, and counted, once."""

    parameters: int
    nonzero: int
    bytes: int
    """Size of the weight files."""


def census(source: Source, progress: Progress = silent) -> Census:
    """Count a checkpoint's weights, reading one tensor at a time.

    Integer tensors (position ids that old checkpoints carry, masks) are no weights.

    Args:
        source: an opened checkpoint, edited or not.
        progress: told each tensor.
    """
    weights = [name for name, t in source.tensors.items() if t.dtype.is_floating_point]
    nonzero = 0
    for done, name in enumerate(weights):
        progress("count weights", done, len(weights), name)
        tensor = source.read([name])[name]
        nonzero += sum(int(torch.count_nonzero(p)) for p in tensor.reshape(-1).split(_CHUNK))
    progress("count weights", len(weights), len(weights))
    counts = whole_counts(source.tensors)
    parameters = sum(counts[name] for name in weights)
    return Census(parameters, nonzero, source.bytes_on_disk())
