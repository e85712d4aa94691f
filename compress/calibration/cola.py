"""COLA: calibration windows that stand for a pool of candidates, by the model's activations.

Of each candidate the mean of every block's output over its real tokens, scaled to length 1, is
projected at random to DIMENSIONS numbers (block by block, which is the projection of all of them
joined); k-means makes as many clusters as windows are wanted, and the candidate nearest to each
centre is taken. The authors' code averages over padding too and leaves the projection to chance.

Source: COLA, arXiv:2510.10618, whose code has 64 dimensions and n_init = 10.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.placement import compute_dtype
from compress.checkpoints.source import Source
from compress.checkpoints.walk import BlockWeights, walk
from compress.data.batching import make_batches
from compress.data.windows import Window
from compress.numerics.counter import generator
from compress.progress import Progress, renamed, silent

DIMENSIONS = 64
STARTS = 10


class Untouched:
    """A method of the walk that edits nothing; observers are made of it."""

    def stages(self, block: Block) -> Sequence[Sequence[str]]:
        """No matrix is observed."""
        return ()

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Take one batch's inputs of a matrix."""

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Change nothing."""

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """End the block."""


def running_dtype(source: Source, dtype: torch.dtype | None, device: str) -> torch.dtype | None:
    """The dtype that a walk over a model computes in; None is the one on disk."""
    running = dtype or compute_dtype(source.dtype, device)
    return running if running != source.dtype else None


def cola(
    source: Source,
    *,
    seed: int = 0,
    batch_size: int = 1,
    isolated: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> Callable[[Sequence[Window], int], list[int]]:
    """Return the selection by a model's activations, for `prepare_calibration`.

    Args:
        source: the dense model.
        seed: of the projection and of k-means.
        batch_size: windows run at once.
        isolated: documents of a window don't see each other.
        device, dtype: where the model runs, and in what type.
        progress: told of the blocks.
    """

    def select(pool: Sequence[Window], count: int) -> list[int]:
        features = window_features(
            source,
            make_batches(pool, batch_size, isolated),
            seed=seed,
            device=device,
            dtype=dtype,
            progress=progress,
        )
        return nearest_to_centres(features.numpy(), count, seed)

    return select


def window_features(
    source: Source,
    batches: Sequence[dict[str, Tensor]],
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Return what each window does in the model, float64 [windows, DIMENSIONS]; one pass.

    Args:
        source: the model.
        batches: windows; padding doesn't count.
        seed: of the projection.
        device, dtype: where the model runs, and in what type.
        progress: told of the blocks.
    """
    sizes = [len(batch["input_ids"]) for batch in batches]
    found = [torch.zeros(size, DIMENSIONS, dtype=torch.float64) for size in sizes]
    projections: dict[str, Tensor] = {}

    def heard(block: Block, stream: str, batch: int, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        mask = batches[batch].get("attention_mask")
        if mask is None:
            mask = torch.ones(states.shape[:2])
        weight = mask.to(states.device, torch.float64)[..., None]
        mean = ((states.double() * weight).sum(1) / weight.sum(1)).cpu()
        if block.name not in projections:
            draws = generator(seed, len(projections))
            shape = (mean.shape[1], DIMENSIONS)
            projections[block.name] = torch.randn(shape, generator=draws, dtype=torch.float64)
        scaled = mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-30)
        found[batch] += scaled @ projections[block.name] / DIMENSIONS**0.5

    walk(
        source,
        batches,
        Untouched(),
        device=device,
        dtype=running_dtype(source, dtype, device),
        propagate="dense",
        on_block=heard,
        progress=renamed(progress, "choose windows"),
    )
    return torch.cat(found)


def nearest_to_centres(features: np.ndarray, count: int, seed: int) -> list[int]:
    """Choose rows that stand for all: the nearest to each centre of k-means.

    Args:
        features: float64 [rows, columns].
        count: clusters, at most the number of rows.
        seed: of the starts of k-means.

    Returns:
        `count` indices, ascending; where rows are equal, and so fewer clusters than asked for, the
        first rows beside.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        made = KMeans(count, n_init=STARTS, random_state=seed).fit(features)
    chosen = set()
    for cluster in range(count):
        members = np.flatnonzero(made.labels_ == cluster)
        if len(members):
            distance = np.square(features[members] - made.cluster_centers_[cluster]).sum(1)
            chosen.add(int(members[distance.argmin()]))
    rest = (row for row in range(len(features)) if row not in chosen)
    return sorted([*chosen, *(next(rest) for _ in range(count - len(chosen)))])
