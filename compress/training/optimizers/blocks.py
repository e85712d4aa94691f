"""Which entries of a matrix SPAM moves between two resets, with `density` below 1.

Blocks of neighbouring entries, for gathers that read whole cache lines, drawn from a counter: the
same on every process, whatever was drawn before. Nothing is stored but a short list of blocks.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from compress.numerics.counter import generator

BLOCK = 128


def block_size(parameter: Tensor) -> int:
    """Entries in a block: the largest power of two, at most 128, that divides a row.

    A row is all that stands at one index of the first dimension.
    """
    row = parameter.numel() // max(parameter.shape[0], 1)
    return next(size for size in (128, 64, 32, 16, 8, 4, 2, 1) if row % size == 0)


def draw_blocks(parameter: Tensor, density: float, seed: int, key: int, reset: int) -> Tensor:
    """Choose max(1, round(density * blocks)) of a parameter's blocks at random.

    Args:
        parameter: at least 2-D.
        density: in (0, 1].
        seed, key, reset: what the choice depends on; `key` as of `parameter_key`.

    Returns:
        int64 [chosen], ascending, on the parameter's device.
    """
    total = parameter.numel() // block_size(parameter)
    chosen = max(1, round(density * total))
    order = torch.randperm(total, generator=generator(seed, key, reset))
    return order[:chosen].sort().values.to(parameter.device, non_blocking=True)


def parameter_key(name: str | None, index: int) -> int:
    """A number for a parameter: of its name if it has one, else of its place in the optimizer."""
    if name is None:
        return index
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
