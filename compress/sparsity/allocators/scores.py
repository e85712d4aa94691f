"""OWL and DLP: what the dense model's Wanda scores say of a block or a matrix.

OWL counts scores far above their mean, DLP takes their mean (or median): a walk over the
calibration windows, in which nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from compress.calibration.shared import InputStatistics
from compress.calibration.statistics import ColumnNorms
from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.placement import compute_dtype
from compress.checkpoints.walk import BlockWeights, walk
from compress.numerics.ranked import kth_smallest
from compress.numerics.ranks import ALONE, Team
from compress.progress import renamed
from compress.sparsity.allocators.ground import Ground, Measured, Values, filled
from compress.sparsity.allocators.maps import by_spread, dlp_spread, outlier_share
from compress.sparsity.masks import wanda_score
from compress.sparsity.pruner import STREAM

Reduce = Callable[[Sequence[Tensor]], float]
"""From the score matrices of a block, or of one matrix, to a number."""


class ScoreMeter:
    """What the walk calls to reduce the Wanda scores of every block or matrix of a dense model.

    Args:
        names: the matrices that count.
        reduce: see Reduce.
        grains: "block", "matrix" or both.
        team: the processes of the walk.
    """

    def __init__(
        self,
        names: set[str],
        reduce: Reduce,
        grains: Sequence[str] = ("block",),
        team: Team = ALONE,
    ) -> None:
        self.names = names
        self.team = team
        self.reduce = reduce
        self.values: dict[str, Values] = {grain: {} for grain in grains}
        self._statistics = InputStatistics(ColumnNorms)

    def stages(self, block: Block) -> list[list[str]]:
        """All counted matrices of the block at once."""
        counted = [m.name for m in block.matrices if m.name in self.names]
        return [counted] if counted else []

    def begin_chunk(self, chunk: int) -> None:
        """Sum what comes next apart from what has come before."""
        self._statistics.begin_chunk(hold=not self.team.first)

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Account one batch of inputs [rows, in]."""
        self._statistics.add(matrix.name, inputs[STREAM])

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Measure; nothing is changed. Experts that no token reached have no scores."""
        if names:
            device = weights.read(names[0], STREAM).device
            self._statistics.combine(names, self.team, device)
        norms = {name: self._statistics.get(name) for name in names}
        seen = {name: norm for name, norm in norms.items() if norm is not None}
        if not seen:
            return
        scores = {n: wanda_score(weights.read(n, STREAM), norm) for n, norm in seen.items()}
        if "matrix" in self.values:
            self.values["matrix"] |= {n: self.reduce([score]) for n, score in scores.items()}
        if "block" in self.values:
            value = self.reduce(list(scores.values()))
            self.values["block"] |= dict.fromkeys(names, value)

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """Drop the block's statistics."""
        self._statistics.clear()


def mean_score(scores: Sequence[Tensor]) -> float:
    """Mean of all scores together."""
    return sum(float(s.double().sum()) for s in scores) / sum(s.numel() for s in scores)


def median_score(scores: Sequence[Tensor]) -> float:
    """Median of all scores together, the lower one of an even number, as torch has it."""
    return kth_smallest(lambda: scores, (sum(s.numel() for s in scores) + 1) // 2).value


def measure_owl(ground: Ground) -> Measured:
    """Shares of outlying scores, in percent."""
    multiple = ground.settings.owl_multiple
    return _measure(ground, lambda scores: outlier_share(scores, multiple), "outliers")


def measure_dlp(ground: Ground) -> Measured:
    """Mean or median scores."""
    median = ground.settings.dlp_mean == "median"
    return _measure(ground, median_score if median else mean_score, "score")


def share_owl(values: Sequence[float], ground: Ground) -> Tensor:
    """More outliers, fewer zeros."""
    settings = ground.settings
    return by_spread(
        values, ground.sizes, settings.share, spread=settings.owl_spread, bounds=ground.bounds
    )


def share_dlp(values: Sequence[float], ground: Ground) -> Tensor:
    """A larger score, more zeros: importance is 1 - m / sum(m), and only its order and range count.

    Source: DLP, arXiv:2505.23807. Its paper takes the median, its code the mean.
    """
    settings = ground.settings
    spread = dlp_spread(settings.share) if settings.dlp_spread is None else settings.dlp_spread
    importance = (-torch.tensor(values, dtype=torch.float64)).tolist()
    return by_spread(importance, ground.sizes, settings.share, spread=spread, bounds=ground.bounds)


def _measure(ground: Ground, reduce: Reduce, column: str) -> Measured:
    meter = ScoreMeter({m.name for m in ground.matrices}, reduce, ground.grains, ground.team)
    walk(
        ground.source,
        ground.batches,
        meter,
        device=ground.device,
        dtype=compute_dtype(ground.source.dtype, ground.device),
        streams=(STREAM,),
        progress=renamed(ground.progress, "scores"),
        propagate="dense",
        team=ground.team,
    )
    return _whole(meter.values, ground, column)


def _whole(found: Mapping[str, Values], ground: Ground, column: str) -> Measured:
    values, lost = {}, set()
    for grain, part in found.items():
        values[grain], missing = filled(part, ground.matrices)
        lost |= set(missing)
    names = sorted(lost)
    warnings: tuple[str, ...] = ()
    if names:
        warnings = (
            f"no calibration token reached {len(names)} matrices, first `{names[0]}`: the median "
            "of the others stands in for their share",
        )
    return Measured(values, warnings, column=column)
