"""Trial runs of the block that a walk holds, on the calibration batches, for a method to use.

Nothing goes on by them: the forwards stay where they are, whatever is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.block_weights import BlockWeights
from compress.checkpoints.taps import InputTaps

if TYPE_CHECKING:
    from compress.checkpoints.activations import Activations


class BlockRuns:
    """Runs one block, as it is at that moment, on what each batch brings to it.

    Args:
        activations: the walk's.
        weights: the block, loaded.

    Attributes:
        block: which block.
        weights: its weights.
        batches: numbers of the batches that reach it in this process; of several, each has its own.
    """

    def __init__(self, activations: Activations, weights: BlockWeights) -> None:
        self.block: Block = weights.block
        self.weights = weights
        self._activations = activations
        self.batches = [activations.first + i for i in activations.waiting(self.block.name)]

    def output(
        self, batch: int, stream: str, leaves: Mapping[str, nn.Parameter] | None = None
    ) -> list[Tensor]:
        """Return the tensors that the block returns, its hidden states first.

        Args:
            batch: one of `batches`.
            stream: whose inputs and weights.
            leaves: parameters, by run-time name, that stand in for the stream's own; they take
                gradients where the caller enables them.
        """
        place = self._place(batch)
        return _tensors(self._activations.rehearse(self.weights, stream, place, leaves))

    def inputs(self, batch: int, stream: str, matrices: list[Matrix]) -> dict[str, Tensor]:
        """Return what each matrix reads, [rows, in], by name; tokens only; absent if nothing."""
        found: dict[str, Tensor] = {}

        def seen(matrix: Matrix, rows: Tensor) -> None:
            found.setdefault(matrix.name, rows)

        with InputTaps(self._activations.model, matrices, seen) as taps:
            place = self._place(batch)
            taps.begin(self._activations.token_rows(self.block.name, stream, place), early=False)
            self._activations.rehearse(self.weights, stream, place)
        return found

    def tokens(self, batch: int) -> Tensor | None:
        """Return which positions of a batch are tokens, bool [B, T]; None where all are."""
        return self._activations.token_mask(self.block.name, self._place(batch))

    def _place(self, batch: int) -> int:
        """Where a batch stands among this process's."""
        return batch - self._activations.first

    def module(self, name: str) -> nn.Module:
        """Return a module of the model."""
        return self._activations.model.get_submodule(name)

    def self_contained(self, stream: str) -> bool:
        """Return whether the block leaves nothing behind for other blocks but its output."""
        return self._activations.shareable(stream)


@runtime_checkable
class Replaying(Protocol):
    """A method that is given trial runs of each block, before the block's first stage."""

    def replay(self, runs: BlockRuns) -> None:
        """Take the runs; they are good until the block is finished."""


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _tensors(part)]
    return []
