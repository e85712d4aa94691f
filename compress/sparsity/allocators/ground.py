"""What every allocator is given and gives back, and how values of matrices become those of blocks.

Letters: n matrices, b blocks, S the sparsity asked for, d_i the weights of matrix i.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compress.checkpoints.anatomy import Anatomy, Matrix
from compress.checkpoints.source import Source
from compress.numerics.ranks import ALONE, Team
from compress.progress import Progress, silent

if TYPE_CHECKING:
    from compress.sparsity.pruner import Target
    from compress.sparsity.settings import AlphaPruneSettings

Bounds = tuple[float, float]
Values = dict[str, float]


@dataclass(frozen=True)
class Ground:
    """What an allocation may rest on.

    Attributes:
        source: the checkpoint.
        anatomy: its anatomy.
        matrices: those that are pruned, in order.
        settings: of the command.
        bounds: least and greatest share of one matrix.
        batches: the calibration windows that pruning will use; empty where none is needed.
        held_out: further windows of the calibration text, that no statistic ever sees.
        targets: what the pruner would take for given shares [n].
        device: where it is measured.
        progress: told how far it is.
        team: the processes that measure together; what needs no team each does by itself.
    """

    source: Source
    anatomy: Anatomy
    matrices: Sequence[Matrix]
    settings: AlphaPruneSettings
    bounds: Bounds
    batches: Sequence[dict[str, Tensor]] = ()
    held_out: Sequence[dict[str, Tensor]] = ()
    targets: Callable[[Tensor], Mapping[str, Target]] | None = None
    device: str = "cpu"
    progress: Progress = silent
    team: Team = ALONE

    @property
    def sizes(self) -> list[int]:
        """Weights of each matrix, [n]."""
        return [m.numel for m in self.matrices]

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks that hold them, in order."""
        return list(dict.fromkeys(m.block for m in self.matrices))

    @property
    def grains(self) -> tuple[str, ...]:
        """Whether values of blocks, of matrices or of both are wanted."""
        grain = self.settings.grain
        return ("block", "matrix") if grain == "mixed" else (grain,)


@dataclass(frozen=True)
class Measured:
    """What an allocation rests on.

    Attributes:
        values: "block" and "matrix", as far as wanted, to the value of every matrix by name.
        warnings: what was odd, for the receipt.
        record: what the receipt tells of how they came about.
        column: name of the values in the plan's rows.
    """

    values: Mapping[str, Values] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    column: str = ""


def block_means(values: Mapping[str, float], matrices: Sequence[Matrix]) -> Values:
    """Give every matrix the unweighted mean of its block."""
    blocks: dict[str, list[float]] = {}
    for matrix in matrices:
        blocks.setdefault(matrix.block, []).append(values[matrix.name])
    means = {name: statistics.fmean(v) for name, v in blocks.items()}
    return {m.name: means[m.block] for m in matrices}


def block_shares(values: Mapping[str, float], matrices: Sequence[Matrix]) -> Values:
    """Give every matrix the mean of its block weighted by the numbers of weights."""
    weighted: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for matrix in matrices:
        weighted[matrix.block] = (
            weighted.get(matrix.block, 0.0) + values[matrix.name] * matrix.numel
        )
        sizes[matrix.block] = sizes.get(matrix.block, 0) + matrix.numel
    return {m.name: weighted[m.block] / sizes[m.block] for m in matrices}


def filled(values: Mapping[str, float], matrices: Sequence[Matrix]) -> tuple[Values, list[str]]:
    """Give matrices without a value the median of the others, so that it pulls no share either way.

    Returns:
        A value for every matrix, 0 where none has one; the names of those that had none.
    """
    known = [values[m.name] for m in matrices if m.name in values]
    stand_in = statistics.median(known) if known else 0.0
    missing = [m.name for m in matrices if m.name not in values]
    return {m.name: values.get(m.name, stand_in) for m in matrices}, missing
