"""The class that the walk calls: collects what a method needs and prunes one block at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.calibration.shared import InputStatistics
from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.replay import BlockRuns
from compress.checkpoints.roles import in_sequence
from compress.checkpoints.source import require_finite
from compress.checkpoints.walk import BlockWeights
from compress.numerics.ranks import ALONE, Team, shares
from compress.sparsity.channel_folding import Folding
from compress.sparsity.journal import Journal
from compress.sparsity.methods import (
    Layer,
    Statistic,
    channel_score,
    prune_layer,
    statistics_needed,
    trim_layer,
)
from compress.sparsity.refit_block import BlockRefit, refit_block

STREAM = "pruned"
TRIM = "trim"


@dataclass(frozen=True)
class Target:
    """What one matrix loses.

    Attributes:
        zeros: exact number of weights to remove.
        pattern: (N, M) to keep N of every M consecutive inputs, or None.
        rows: how many of them each row loses; TRIM leaves that to `trim`; None to the method.
    """

    zeros: int
    pattern: tuple[int, int] | None = None
    rows: tuple[int, ...] | str | None = None


Pool = dict[Statistic, InputStatistics[Any]]


class Pruner:
    """Prunes each planned matrix of a block by one method.

    Args:
        targets: matrix name to what it loses; matrices that aren't named stay as they are.
        method: a name of methods.METHODS.
        refit: a name of methods.REFITS: how survivors get new values; or none.
        damp: of Hessians, a fraction of the mean diagonal.
        block_size: SparseGPT's column block.
        true_sequential: attention inputs, attention output, MLP inputs and MLP output are pruned
            one after the other, each seeing the ones before it pruned.
        stored: dtype of the weights on disk; what a method computes is rounded to it before later
            blocks see it, so that they see what is written. None is the dtype they come in.
        notes_file: where notes are kept across an interruption, a line per finished block.
        stream: the walk's stream that it prunes.
        pool: statistics shared with the pruners of other streams: while two streams are equal,
            what their matrices read is accumulated once. None is a pool of its own.
        channel_permutation: matrices with a pattern get the order of channels in which it keeps
            most, where their producers can take it.
        block_refit: how all kept weights of a block are refitted in the end; the walk then carries
            the stream `dense` beside. None leaves them.
        team: the processes of the walk. Each has seen its own batches and prunes its part of a
            block's matrices.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        method: str,
        *,
        refit: str = "none",
        damp: float = 0.01,
        block_size: int = 128,
        true_sequential: bool = False,
        stored: torch.dtype | None = None,
        notes_file: Path | None = None,
        stream: str = STREAM,
        pool: Pool | None = None,
        channel_permutation: bool = False,
        block_refit: BlockRefit | None = None,
        team: Team = ALONE,
    ) -> None:
        self.targets = targets
        self.method = method
        self.refit = refit
        self.damp = damp
        self.block_size = block_size
        self.true_sequential = true_sequential
        self.stored = stored
        self.stream = stream
        self.block_refit = block_refit
        patterns = {name: target.pattern for name, target in targets.items()}
        self._folding = Folding(stream, patterns) if channel_permutation else None
        self._runs: BlockRuns | None = None
        self._notes: list[str] = []
        self._trimmed: dict[str, dict[str, Any]] = {}
        self._team = team
        self._journal = Journal(notes_file if team.first else None)
        pool = {} if pool is None else pool
        self._statistics = {
            kind: pool.setdefault(kind, InputStatistics(kind))
            for kind in statistics_needed(
                method, refit, any(target.rows == TRIM for target in targets.values())
            )
        }

    def stages(self, block: Block) -> list[list[str]]:
        """Groups of matrices that are measured together and then pruned."""
        planned = [m for m in block.matrices if m.name in self.targets]
        if not self.true_sequential:
            return [[m.name for m in planned]] if planned else []
        return [[m.name for m in stage] for stage in in_sequence(planned)]

    def begin_chunk(self, chunk: int) -> None:
        """Sum what comes next apart from what has come before."""
        for statistic in self._statistics.values():
            statistic.begin_chunk(hold=not self._team.first)

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Account one batch of inputs [rows, in] of `matrix`; padded rows are gone already."""
        found = inputs.get(self.stream)
        if found is None or not len(found):  # of experts, a stream may bring no rows
            return
        for statistic in self._statistics.values():
            statistic.add(self._key(matrix.name), found)

    def replay(self, runs: BlockRuns) -> None:
        """Take the trial runs of a block that is about to be edited."""
        self._runs = runs

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Prune the matrices of one stage in place."""
        for name in names:
            require_finite(name, weights.read(name, self.stream))
        if names and self._team.size > 1:
            device = weights.read(names[0], self.stream).device
            for statistic in self._statistics.values():
                statistic.combine([self._key(name) for name in names], self._team, device)
        if self._folding is not None and self._runs is not None:
            self._arrange(self._folding, self._runs, names, weights)
        self._prune_all(block, [n for n in names if self.targets[n].zeros], weights)

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """Refit the block if asked to, drop its statistics and keep its notes."""
        for statistic in self._statistics.values():
            statistic.clear()
        found: dict[str, Any] = {"notes": self._notes, "trimmed": self._trimmed}
        pruned = [
            m for m in block.matrices if m.name in self.targets and self.targets[m.name].zeros
        ]
        if self.block_refit is not None and self._runs is not None and pruned:
            found["refit"] = refit_block(
                self._runs, pruned, self.stream, self.block_refit, self.stored, self._team
            )
        if self._folding is not None:
            found |= {"permuted": self._folding.gains, "in_order": self._folding.in_order}
            self._folding.clear()
        self._journal.add(block.name, found)
        self._notes, self._trimmed, self._runs = [], {}, None

    def notes(self) -> tuple[str, ...]:
        """What was odd, those of an interrupted run included."""
        return self._journal.lines()

    def rows(self) -> dict[str, list[int]]:
        """What each row lost of the matrices whose rows TRIM chose, by name; as `notes`."""
        return self._journal.rows()

    def _channel_score(self, name: str, weights: BlockWeights) -> Tensor | None:
        return channel_score(self.method, weights.read(name, self.stream), self._finished(name))

    def _finished(self, name: str) -> dict[Statistic, Any]:
        return {kind: found.get(self._key(name)) for kind, found in self._statistics.items()}

    def _key(self, name: str) -> str:
        """Under which name a matrix's statistics are kept: streams of one pool have their own."""
        return f"{self.stream}/{name}"

    def _arrange(
        self, folding: Folding, runs: BlockRuns, names: Sequence[str], weights: BlockWeights
    ) -> None:
        """Permute channels, by rank 0, which has the batch that they are tried on."""
        if self._team.first:
            folding.arrange(runs, names, lambda name: self._channel_score(name, weights))
        if self._team.size > 1:
            folding.take(self._team.from_first(folding.state))
            for name in sorted(weights.tensors(self.stream)):
                self._team.broadcast(weights.parameter(name, self.stream), 0)

    def _prune_all(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Prune matrices, each by one rank, which tells the others what became of it."""
        shapes = {matrix.name: matrix.shape for matrix in block.matrices}
        # A solver's work grows like out * in²; the order of names stays, as the notes' does.
        own = shares([float(shapes[n][0] * shapes[n][1] ** 2) for n in names], self._team.size)
        owner = {names[i]: rank for rank, part in enumerate(own) for i in part}
        notes: dict[str, str] = {}
        trimmed: dict[str, dict[str, Any]] = {}
        for name in names:
            if owner[name] == self._team.rank:
                note, rows = self._prune(name, weights.view(name, self.stream), self.targets[name])
                notes |= {name: f"{name}: {note}"} if note else {}
                trimmed |= {name: rows} if rows else {}
        for name in names:
            self._team.broadcast(weights.view(name, self.stream), owner[name])
        told: dict[str, str] = {}
        found: dict[str, dict[str, Any]] = {}
        for part, shares_of_rows in self._team.gather((notes, trimmed)):
            told |= part
            found |= shares_of_rows
        self._notes += [told[name] for name in names if name in told]
        self._trimmed |= {name: found[name] for name in names if name in found}

    def _prune(
        self, name: str, view: Tensor, target: Target
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Prune a matrix; return what was odd, and what TRIM chose for its rows."""
        given = isinstance(target.rows, tuple)
        layer = Layer(
            name,
            view.to(self.stored or view.dtype),
            target.zeros,
            target.pattern,
            self.damp,
            self.block_size,
            torch.tensor(target.rows) if given else None,
        )
        statistics = self._finished(name)
        if self._folding is not None:
            statistics = {k: self._folding.statistic(name, v) for k, v in statistics.items()}
        rows = None
        if target.rows == TRIM:
            layer, rows = trim_layer(layer, self.method, statistics)
        pruned = prune_layer(layer, self.method, self.refit, statistics)
        if pruned.weight is None:
            view.masked_fill_(~pruned.mask, 0)
        else:
            view.copy_(pruned.weight)
        if target.rows != TRIM:
            return pruned.note, None
        entry: dict[str, Any] = {"rows": (~pruned.mask).sum(1).tolist()}
        if rows is not None:
            entry |= {"even": rows.even, "kept": rows.kept, "rate": rows.rate}
        return pruned.note, entry
