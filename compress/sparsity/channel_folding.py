"""Channel permutation folded into a block: the columns of one matrix with the rows that feed them.

An order of input channels costs nothing at run time only where the rows of what produces them can
take it too. That holds inside the feed-forward part (gate and up, or fc1, feed down) and inside
each value head (v feeds o; with grouped queries all query heads of a value head share its order).
What reads the residual stream stays in order, for its channels belong to every block. The stored
weights are in the new order, so N:M holds in them as they lie, and any engine computes the same
function up to the order of sums.

Which matrices feed which is read off roles and shapes. Whether a fold leaves the function alone is
tried on a batch: what the matrix reads must come in the new order and what the block returns must
stay. A fold that fails is undone and listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.calibration.statistics import Moments
from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.block_weights import BlockWeights
from compress.checkpoints.replay import BlockRuns
from compress.sparsity.channel_permutation import channel_order, retained

RESIDUAL = "reads the residual stream, whose channels all blocks share"
_FEEDS = {"down": ("gate", "up", "gate_up", "fc1"), "fc2": ("fc1",), "o": ("v",)}
_HEAD_SIZES = ("v_head_dim", "head_dim", "attention_head_size", "head_size", "d_head", "d_kv")
# Largest difference, as a share of the largest value, that counts as rounding, by bits of mantissa.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.04}


class Fold(NamedTuple):
    """An order for the inputs of one matrix."""

    consumer: Matrix
    producers: tuple[Matrix, ...]
    columns: Tensor
    """int64 [in]: which column of the consumer comes to each place."""
    rows: Tensor
    """int64 [out of v, or in]: which row of a producer comes to each place."""
    gain: float
    """Score kept, as a share of what is kept without it, minus 1."""

    def inverse(self) -> Fold:
        """The fold that undoes this one."""
        return self._replace(columns=self.columns.argsort(), rows=self.rows.argsort())


@dataclass
class Folding:
    """Finds, applies and tries the folds of blocks, one stage at a time.

    Args:
        stream: of the walk, whose weights are changed.
        wanted: matrices that may be changed, with their (N, M) or None.

    Attributes:
        gains: consumer -> its gain, of the block.
        in_order: matrix -> why it has its old order, of the block.
    """

    stream: str
    wanted: Mapping[str, tuple[int, int] | None]
    gains: dict[str, float] = field(default_factory=dict)
    in_order: dict[str, str] = field(default_factory=dict)
    _columns: dict[str, Tensor] = field(default_factory=dict)

    def arrange(
        self, runs: BlockRuns, names: Sequence[str], score: Callable[[str], Tensor | None]
    ) -> None:
        """Permute the channels of a stage's matrices where that keeps more and changes nothing.

        Args:
            runs: of the block.
            names: the stage.
            score: gives a matrix's score [out, in], or None where no token reached it.
        """
        matrices = {m.name: m for m in runs.block.matrices}
        stage = [matrices[name] for name in names if self.wanted.get(name) is not None]
        for attention in (True, False):  # what a layer reads must not move under its trial
            found = [
                fold
                for matrix in stage
                if (matrix.role == "o") is attention
                and (fold := self._fold(matrix, runs, score)) is not None
            ]
            self._try(runs, found)

    def statistic(self, name: str, value: Tensor | Moments | None) -> Tensor | Moments | None:
        """A statistic of a matrix's inputs in the order that they have now."""
        order = self._columns.get(name)
        if order is None or value is None:
            return value
        if isinstance(value, Moments):
            return Moments(*(part[order] for part in value))
        return value[order] if value.dim() == 1 else value[order][:, order]

    def state(self) -> tuple[dict[str, float], dict[str, str], dict[str, list[int]]]:
        """What has been found of the block, as plain data for another process to `take`."""
        orders = {name: order.tolist() for name, order in self._columns.items()}
        return self.gains, self.in_order, orders

    def take(self, state: tuple[dict[str, float], dict[str, str], dict[str, list[int]]]) -> None:
        """Know of the block what another process has found."""
        self.gains, self.in_order, orders = state
        self._columns = {name: torch.tensor(order) for name, order in orders.items()}

    def clear(self) -> None:
        """Forget the block."""
        self.gains, self.in_order, self._columns = {}, {}, {}

    def _fold(
        self, matrix: Matrix, runs: BlockRuns, score: Callable[[str], Tensor | None]
    ) -> Fold | None:
        """The fold of a matrix, None (and a reason) where there is none."""
        producers = _producers(matrix, runs.block)
        pattern = self.wanted[matrix.name]
        assert pattern is not None
        reason = self._obstacle(matrix, producers, runs)
        heads = None
        if reason is None and matrix.role == "o":
            heads = _heads(matrix, producers[0], runs)
            if heads is None:
                reason = "the size of its heads can't be told"
            elif heads[2] % pattern[1]:
                reason = f"its heads have {heads[2]} channels, which {pattern[1]} doesn't divide"
        values = score(matrix.name) if reason is None else None
        if reason is None and values is None:
            reason = "no calibration token reached it"
        if values is None:
            self.in_order[matrix.name] = str(reason)
            return None
        columns, rows = _orders(values, heads, pattern)
        gain = retained(values[:, columns], *pattern) / max(retained(values, *pattern), 1e-300) - 1
        if gain <= 0:
            self.in_order[matrix.name] = "no other order keeps more"
            return None
        return Fold(matrix, producers, columns, rows, gain)

    def _obstacle(
        self, matrix: Matrix, producers: tuple[Matrix, ...], runs: BlockRuns
    ) -> str | None:
        """Why a matrix can't be folded, as far as roles and shapes tell."""
        if matrix.role not in _FEEDS:
            fused = matrix.role == "other" or matrix.role == "router"
            return "what feeds it can't be told" if fused else RESIDUAL
        if not producers:
            return "no matrix of its block feeds it channel by channel"
        skipped = [p.name for p in producers if p.name not in self.wanted]
        if skipped:
            return f"`{skipped[0]}`, which feeds it, is left alone"
        if matrix.role == "o" and not runs.self_contained(self.stream):
            return "other blocks may read its values"
        return None

    def _try(self, runs: BlockRuns, folds: list[Fold]) -> None:
        """Apply folds, and undo those under which something changes."""
        if not folds:
            return
        consumers = [fold.consumer for fold in folds]
        batch = runs.batches[0]
        inputs, output = runs.inputs(batch, self.stream, consumers), self._output(runs, batch)
        for fold in folds:
            _apply(fold, runs.weights, self.stream)
        after = runs.inputs(batch, self.stream, consumers)
        for fold in folds:
            name = fold.consumer.name
            if name not in inputs:
                reason = "no token of the batch it is tried on reaches it"
            elif not _close(inputs[name][:, fold.columns], after.get(name)):
                reason = "what it reads isn't what its producer gives, channel by channel"
            else:
                self.gains[name], self._columns[name] = fold.gain, fold.columns
                continue
            _apply(fold.inverse(), runs.weights, self.stream)
            self.in_order[name] = reason
        kept = [fold for fold in folds if fold.consumer.name in self.gains]
        if kept and not all(map(_close, output, self._output(runs, batch))):
            for fold in kept:
                _apply(fold.inverse(), runs.weights, self.stream)
                del self.gains[fold.consumer.name], self._columns[fold.consumer.name]
                self.in_order[fold.consumer.name] = "what its block returns would change"

    def _output(self, runs: BlockRuns, batch: int) -> list[Tensor]:
        return [tensor.clone() for tensor in runs.output(batch, self.stream)]


def _producers(matrix: Matrix, block: Block) -> tuple[Matrix, ...]:
    """The matrices whose outputs are the inputs of `matrix`, by roles, place and shape."""
    roles = _FEEDS.get(matrix.role, ())
    holder = matrix.name.rpartition(".")[0]
    found = [m for m in block.matrices if m.role in roles]
    near = [m for m in found if m.name.rpartition(".")[0] == holder]
    alone = sum(m.role == matrix.role for m in block.matrices) == 1
    chosen = near or (found if alone else [])
    if len({m.role for m in chosen}) < len(chosen):
        return ()
    width = matrix.shape[1]
    if matrix.role != "o" and any(
        m.shape[0] != width * (2 if m.role == "gate_up" else 1) for m in chosen
    ):
        return ()
    return tuple(chosen)


def _heads(matrix: Matrix, value: Matrix, runs: BlockRuns) -> tuple[int, int, int] | None:
    """(value heads, query heads of each, channels of a head), None where they can't be told."""
    holder = matrix.module.rpartition(".")[0]
    for size in _sizes(runs.module(holder), matrix.shape[1]):
        if size > 0 and matrix.shape[1] % size == 0 and value.shape[0] % size == 0:
            heads, queries = value.shape[0] // size, matrix.shape[1] // size
            if queries % heads == 0:
                return heads, queries // heads, size
    return None


def _sizes(module: nn.Module, width: int) -> Iterable[int]:
    """Head sizes that an attention module, or its config, names."""
    for name in _HEAD_SIZES:
        if isinstance(size := getattr(module, name, None), int):
            yield size
    count = getattr(getattr(module, "config", None), "num_attention_heads", None)
    if isinstance(count, int) and count and width % count == 0:
        yield width // count


def _orders(
    score: Tensor, heads: tuple[int, int, int] | None, pattern: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Orders of the consumer's columns and of its producers' rows."""
    if heads is None:
        order = channel_order(score, *pattern)
        return order, order
    count, queries, size = heads
    parts = score.unflatten(1, heads)
    # All query heads of a value head must agree: their rows are stacked.
    inner = torch.stack(
        [channel_order(parts[:, head].flatten(0, 1), *pattern) for head in range(count)]
    )
    starts = torch.arange(count, device=score.device)[:, None] * size
    rows = (starts + inner).flatten()
    starts = torch.arange(count * queries, device=score.device).view(count, queries, 1) * size
    return (starts + inner[:, None]).flatten(), rows


def _apply(fold: Fold, weights: BlockWeights, stream: str) -> None:
    view = weights.view(fold.consumer.name, stream)
    view.copy_(view[:, fold.columns])
    known = weights.tensors(stream)
    for matrix in fold.producers:
        rows = fold.rows
        if matrix.shape[0] == 2 * len(rows):
            rows = torch.cat([rows, rows + len(rows)])  # gate and up in one
        view = weights.view(matrix.name, stream)
        view.copy_(view[rows])
        bias = f"{matrix.module}.bias"
        if matrix.rows is None and matrix.expert is None and bias in known:
            values = weights.parameter(bias, stream)
            values.copy_(values[rows])


def _close(before: Tensor, after: Tensor | None) -> bool:
    """Whether two results differ by rounding alone."""
    if after is None or before.shape != after.shape:
        return False
    if not before.is_floating_point():
        return torch.equal(before, after)
    limit = _ROUNDING.get(before.dtype, 1e-4) * before.abs().amax().clamp(min=1e-30)
    return before.numel() == 0 or bool((before - after).abs().amax() <= limit)
