"""Many ways to prune one model in one walk: weights are read once, shared prefixes run once.

A branch is a plan with a method; each gets a stream of the walk. Streams are computed once until
their edits differ, and while they are equal their statistics are accumulated once, so that the
first block's statistics serve every branch of equal needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.walk import BlockWeights
from compress.sparsity.pruner import Pool, Pruner, Target


@dataclass(frozen=True)
class Branch:
    """One way to prune.

    Attributes:
        targets: matrix name to what it loses.
        method: a name of methods.METHODS.
        options: further arguments of Pruner: refit, damp, block_size, stored.
    """

    targets: Mapping[str, Target]
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Branches:
    """Prunes in every stream of a walk by that stream's branch.

    The result of a branch is bit for bit what a walk of its own gives.

    Args:
        branches: stream name to branch; pass the names to the walk as `streams`.

    Raises:
        ValueError: a branch asks for stages (true_sequential), which streams can't have each
            their own.
    """

    def __init__(self, branches: Mapping[str, Branch]) -> None:
        pool: Pool = {}
        for name, branch in branches.items():
            if branch.options.get("true_sequential"):
                raise ValueError(f"branch `{name}`: stages of its own can't run in lockstep")
        self.pruners = {
            stream: Pruner(b.targets, b.method, stream=stream, pool=pool, **b.options)
            for stream, b in branches.items()
        }

    def stages(self, block: Block) -> list[list[str]]:
        """All matrices that any branch prunes, at once."""
        planned = [m.name for m in block.matrices if any(m.name in p.targets for p in self._all())]
        return [planned] if planned else []

    def begin_chunk(self, chunk: int) -> None:
        """Sum what comes next apart from what has come before."""
        for pruner in self._all():
            pruner.begin_chunk(chunk)

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Account one batch of inputs [rows, in] in the streams that prune the matrix."""
        for pruner in self._all():
            if matrix.name in pruner.targets:
                pruner.observe(matrix, inputs, keep)

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Prune the matrices of each stream in place."""
        for stream in weights.streams:
            pruner = self.pruners[stream]
            pruner.edit(block, [name for name in names if name in pruner.targets], weights)

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """Drop the block's statistics."""
        for pruner in self._all():
            pruner.finish(block, weights)

    def notes(self) -> dict[str, tuple[str, ...]]:
        """What was odd, by stream."""
        return {stream: pruner.notes() for stream, pruner in self.pruners.items()}

    def _all(self) -> list[Pruner]:
        return list(self.pruners.values())
