"""How many weights a checkpoint stores, and how many of them aren't zero."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compress.checkpoints.source import Source
from compress.progress import Progress, silent

_CHUNK = 1 << 24  # elements counted at a time


class Census(NamedTuple):
    """Counts over the stored tensors; a tied weight is stored, and counted, once."""

    parameters: int
    nonzero: int
    bytes: int
    """Size of the weight files."""


def census(source: Source, progress: Progress = silent) -> Census:
    """Count a checkpoint's weights, reading one tensor at a time.

    Args:
        source: an opened checkpoint, edited or not.
        progress: told each tensor.
    """
    nonzero = 0
    for done, name in enumerate(source.tensors):
        progress("count weights", done, len(source.tensors), name)
        tensor = source.read([name])[name]
        nonzero += sum(int(torch.count_nonzero(p)) for p in tensor.reshape(-1).split(_CHUNK))
    progress("count weights", len(source.tensors), len(source.tensors))
    return Census(source.parameters_on_disk(), nonzero, source.bytes_on_disk())
