"""Shares that need no calibration text: by the shapes of the matrices, or by one threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compress.checkpoints.anatomy import matrix_view
from compress.checkpoints.loader import BlockLoader, skeleton
from compress.numerics.ranked import kth_smallest
from compress.sparsity.allocators.ground import Ground, Measured, Values, block_shares
from compress.sparsity.allocators.maps import by_density, shifted


def measure_nothing(ground: Ground) -> Measured:
    """What rests on nothing but the shapes."""
    return Measured({grain: {m.name: 0.0 for m in ground.matrices} for grain in ground.grains})


def share_uniform(values: Sequence[float], ground: Ground) -> Tensor:
    """One share for all."""
    return shifted([0.0] * len(values), ground.sizes, ground.settings.share, bounds=ground.bounds)


def measure_er(ground: Ground) -> Measured:
    """Densities up to a factor: (out + in) / (out * in), of a matrix or over a block."""
    density = {m.name: sum(m.shape) / m.numel for m in ground.matrices}
    return _both(ground, density, "density")


def share_er(values: Sequence[float], ground: Ground) -> Tensor:
    """The share that is kept is proportional to the density."""
    return by_density(values, ground.sizes, ground.settings.share, bounds=ground.bounds)


def measure_global(ground: Ground) -> Measured:
    """The share of each matrix below one threshold for |W| that removes S of all weights.

    Ties at the threshold go in order of the matrices.
    """
    sizes = ground.sizes
    total = round(ground.settings.share * sum(sizes))
    counts = [0] * len(sizes)
    if total:
        found = kth_smallest(lambda: _magnitudes(ground), total)
        spare = total - sum(found.below)
        for i, (below, equal) in enumerate(zip(found.below, found.equal)):
            taken = min(equal, spare)
            counts[i], spare = below + taken, spare - taken
    shares = {m.name: count / m.numel for m, count in zip(ground.matrices, counts)}
    return _both(ground, shares, "below")


def share_line(values: Sequence[float], ground: Ground) -> Tensor:
    """Shares that are known (global, atp), shifted where the bounds clip some of them."""
    return shifted(values, ground.sizes, ground.settings.share, bounds=ground.bounds)


def _both(ground: Ground, values: Values, column: str) -> Measured:
    made = {"matrix": values, "block": block_shares(values, ground.matrices)}
    return Measured({grain: made[grain] for grain in ground.grains}, column=column)


def _magnitudes(ground: Ground) -> Iterator[Tensor]:
    """|W| of every matrix in order, one block in memory at a time."""
    source, blocks = ground.source, ground.blocks
    loader = BlockLoader(
        source,
        skeleton(source),
        blocks=[block.name for block in ground.anatomy.blocks],
        device=torch.device(ground.device),
    )
    for done, block in enumerate(blocks):
        ground.progress("threshold", done, len(blocks), block)
        loader.load(block)
        tensors = loader.tensors(block)
        for matrix in ground.matrices:
            if matrix.block == block:
                yield matrix_view(tensors[matrix.parameter], matrix).abs()
        loader.unload(block)
    ground.progress("threshold", len(blocks), len(blocks))
