"""The walk: a model is run, edited and written one block at a time.

Every block gets exactly what the model's own code gives it (`suspended`), only one block's weights
are in memory (`loader`), and each finished block is on disk before the next is read (`shards`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from compress.checkpoints.activations import Activations, OnBlock, OnOutput
from compress.checkpoints.anatomy import Block, Matrix, read_anatomy
from compress.checkpoints.block_store import BlockStore, Finished
from compress.checkpoints.block_weights import BlockWeights
from compress.checkpoints.experts_tap import check_observable
from compress.checkpoints.gathering import memory_in_use
from compress.checkpoints.loader import BlockLoader, skeleton
from compress.checkpoints.replay import BlockRuns, Replaying
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.source import Source
from compress.errors import RequestError, RunError, near_names
from compress.numerics.ranks import ALONE, Team, chunks
from compress.progress import Progress, silent

__all__ = ["BlockWeights", "Method", "NotKept", "WalkReport", "open_writer", "walk"]


class NotKept(RunError):
    """A model calls a block again that was edited and not written."""


class Method(Protocol):
    """What a compression method is to the walk."""

    def stages(self, block: Block) -> Sequence[Sequence[str]]:
        """Return groups of matrix names; each is observed, then edited, before the next."""

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Take one batch's inputs of a matrix.

        Args:
            matrix: which one.
            inputs: stream -> [rows, in], token rows only. Matrices that read one tensor (q, k, v)
                get the identical object. Streams have equal rows in equal order, but for experts:
                each stream brings the rows that it routes there, perhaps none.
            keep: bool [B, T], the batch's tokens, or None where nothing is padded.
        """

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Change the matrices of one stage by writing to `weights.view(name, stream)`."""

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """End the block: after the last stage, before it is written and passed on."""


@dataclass
class WalkReport:
    """What a walk did.

    Attributes:
        passes: forward passes of blocks over the batches, divided by the number of blocks.
        seconds: time of each phase: load, collect, edit, propagate, write.
        peak_bytes: largest anonymous memory of the process seen between phases; on a GPU the
            largest allocation there.
        untouched: (matrix or parameter, reason) of what was not edited.
        resumed: blocks that an earlier run had finished.
        sent_bytes: of tensors, sent between the ranks of a team.
    """

    passes: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    untouched: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0
    sent_bytes: int = 0


def open_writer(
    directory: str | Path,
    source: Source,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    team: Team = ALONE,
) -> ShardWriter:
    """Return a writer for the parts of `source`'s model, with the names of its own files.

    Args:
        directory: where the parts lie.
        source: the checkpoint.
        dtype: of the written weights, as the walk is given it; None keeps each tensor's dtype on
            disk, whatever the walk computes in.
        max_shard_size: largest file of the joined result.
        team: rank 0's writer writes; those of the other ranks read what it has written.
    """
    model = skeleton(source, dtype)
    blocks = [block.name for block in read_anatomy(model).blocks]
    loader = BlockLoader(source, model, blocks=blocks, dtype=dtype)
    keep = source if dtype is None else None
    return ShardWriter(
        directory, model, loader.conversions, max_shard_size, keep, reads_only=not team.first
    )


def walk(
    source: Source,
    batches: Sequence[dict[str, Tensor]],
    method: Method,
    writer: ShardWriter | Mapping[str, ShardWriter] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    streams: Sequence[str] = ("pruned",),
    progress: Progress = silent,
    resume: bool = False,
    propagate: Literal["edited", "dense"] = "edited",
    on_block: OnBlock | None = None,
    on_output: OnOutput | None = None,
    held_out: Sequence[dict[str, Tensor]] = (),
    team: Team | None = None,
) -> WalkReport:
    """Run `method` over every block of a model, one block in memory at a time.

    Args:
        source: the checkpoint.
        batches: keyword arguments of the model's forward, one dict a batch; `attention_mask` only
            where rows are padded. Empty for methods that need no data: nothing is run then.
        method: what observes and edits. If it has `replay` (replay.Replaying) it is given trial
            runs of each block, unless `propagate` is "dense": the batches have passed by then.
        writer: where finished blocks go: one for the first stream, or one per stream.
        device: where blocks run.
        dtype: the weights' dtype; None keeps the one on disk.
        streams: names of the versions of the model that are carried in lockstep. They start equal
            and are computed once until their edits differ.
        progress: told of each block as the job "blocks".
        resume: go on from the parts that the writers hold; else those are removed.
        propagate: "edited" gives each block what the edited blocks before it produce, in one pass
            more per block; "dense" gives it what the model as loaded produces.
        on_block: called with (block, stream, batch, the block's output) of each passing on.
        on_output: called with (stream, batch, the model's output), as soon as there is one. Without
            it the model isn't run beyond what the edits need.
        held_out: further batches, which run through the same blocks but are never observed; their
            numbers follow those of `batches`. With them on_output hears of no other batch.
        team: processes that make this walk together, each calling it with the same arguments; each
            runs its share of `batches`. The method must be `Chunked`, combine what it has observed
            in `edit` and leave the same weights in all ranks. Only rank 0 writes.

    Raises:
        RequestError: the method names matrices that aren't there or can't be observed; two streams
            have one name; a weight can't be loaded.
        RunError: an activation isn't finite; names the block.
        ValueError: held-out batches, or no batches at all, with a team of several.
        NotKept: the model calls a block again that a stream without a writer has edited.
    """
    if len(set(streams)) != len(streams) or not streams:
        raise RequestError(f"stream names must be unique: {', '.join(streams) or 'none given'}")
    writers = {streams[0]: writer} if isinstance(writer, ShardWriter) else dict(writer or {})
    if not set(writers) <= set(streams):
        raise RequestError(f"a writer is for no stream: {', '.join(set(writers) - set(streams))}")
    sent = 0 if team is None else team.sent
    if team is not None and team.size > 1 and (held_out or not batches):
        raise ValueError("several ranks share batches that are observed")
    model = skeleton(source, dtype)
    blocks = read_anatomy(model).blocks
    loader = BlockLoader(
        source, model, blocks=[block.name for block in blocks], dtype=dtype, device=device
    )
    store = BlockStore(loader, writers, team or ALONE)
    run = _Walk(blocks, method, store, list(streams), progress)
    run.resume, run.dense, run.last_needed = resume, propagate == "dense", bool(on_block)
    run.last_needed |= on_output is not None
    store.dense = run.dense
    run.held_only = bool(held_out)
    own = range(len(batches)) if team is None else team.batches(len(batches))
    number = {index: n for n, chunk in enumerate(chunks(len(batches))) for index in chunk}
    with torch.no_grad():
        if batches or held_out:
            run.check_observable()
            with run.timed("load"):
                loader.load_rest()
            names = [block.name for block in blocks]
            activations = Activations(
                model,
                [*batches[own.start : own.stop], *held_out],
                streams,
                names,
                loader.device,
                on_block,
                on_output,
                observed=len(own),
                chunks=[number[index] for index in own],
                first=own.start,
            )
            with activations:
                run.with_data(activations)
            runs = sum(store.team.gather(activations.block_runs))
            run.report.passes = runs / ((len(batches) + len(held_out)) * len(blocks))
        if store.team.first:
            run.without_data(edit=not batches)
    run.report.peak_bytes = max(store.team.gather(run.report.peak_bytes))
    run.report.sent_bytes = sum(store.team.gather(store.team.sent - sent))
    return run.report


class _Walk:
    """The state of one walk."""

    resume = False
    dense = False
    last_needed = False  # somebody looks at the last block's output
    held_only = False  # and that only of the batches that are not observed

    def __init__(
        self,
        blocks: Sequence[Block],
        method: Method,
        store: BlockStore,
        streams: list[str],
        progress: Progress,
    ) -> None:
        self.blocks = {block.name: block for block in blocks}
        self.method, self.store, self.streams, self.progress = method, store, streams, progress
        self.report = WalkReport()
        self.visited: set[str] = set()
        self.edited: set[tuple[str, str]] = set()
        self.stages = {block.name: self._stages(block) for block in blocks}

    def check_observable(self) -> None:
        """Raise RequestError where a stage names matrices whose inputs can't be seen."""
        staged = {name for stages in self.stages.values() for names in stages for name in names}
        matrices = [m for block in self.blocks.values() for m in block.editable]
        check_observable(self.store.loader.model, [m for m in matrices if m.name in staged])

    def with_data(self, activations: Activations) -> None:
        """Visit blocks in the order in which the model calls them."""
        if not self.resume:
            self.store.clear()
        activations.start()
        while (name := self._next(activations)) and not self._nothing_left():
            self._visit(self.blocks[name], activations)

    def _next(self, activations: Activations) -> str | None:
        """Return the earliest block at which a batch of any rank waits."""
        found = [name for name in self.store.team.gather(activations.next_block()) if name]
        return min(found, key=list(self.blocks).index) if found else None

    def without_data(self, *, edit: bool) -> None:
        """Write the blocks that no batch has reached, edited or as they are, and all the rest."""
        if not self.resume and not self.visited:
            self.store.clear()
        for name, block in self.blocks.items():
            if name in self.visited:
                continue
            self._begin(block)
            finished = self._noted(self.store.noted(block, self.streams) if self.resume else None)
            dropped = finished.dropped if finished else set()
            if finished is None:
                weights = self._load(block)
                if edit:
                    self._edit(weights, self.stages[name])
                self._write(weights, "" if edit else "no batch runs through its block")
                self._sample_memory()
                dropped = weights.dropped
            self.streams = [stream for stream in self.streams if stream not in dropped]
        self.store.unload()
        with self.timed("write"):
            self.store.write_rest()
        self.progress("blocks", len(self.blocks), len(self.blocks))

    def _visit(self, block: Block, activations: Activations) -> None:
        """Edit a block at its first visit, then let the forwards pass it."""
        first = block.name not in self.visited
        if first:
            self._begin(block)
        finished = self._finished(block) if first else None
        passed_on = False
        if first and finished is None:
            weights = self._load(block)
            stages = self.stages[block.name]
            if isinstance(self.method, Replaying) and not self.dense:
                self.method.replay(BlockRuns(activations, weights))
            if self.dense:
                everything = [name for names in stages for name in names]
                passed_on = not self._nothing_left()
                self._collect(weights, everything, activations, pass_on=passed_on)
            self._edit(weights, stages, None if self.dense else activations)
            self.edited |= {(block.name, s) for s in weights.streams if weights.differs(s)}
            self._write(weights)
        else:
            with self.timed("load"):
                load = self.store.load if self.dense else self.store.load_edited
                weights = load(block, self.streams)
            self._check_kept(weights)
            for stream in (finished.dropped if finished else set()) & set(self.streams):
                weights.drop(stream)
        for stream in weights.dropped & set(self.streams):
            activations.drop(stream)
            self.streams = list(activations.streams)
        if not passed_on and not self._nothing_left():
            if self.held_only and len(self.visited) == len(self.blocks):
                activations.end_observed()
            with self.timed("propagate"):
                activations.propagate(weights)
        self._sample_memory()

    def _edit(
        self,
        weights: BlockWeights,
        stages: Sequence[Sequence[str]],
        activations: Activations | None = None,
    ) -> None:
        for names in stages:
            if activations is not None:
                self._collect(weights, names, activations, pass_on=False)
            with self.timed("edit"):
                self.method.edit(weights.block, names, weights)
                weights.settle()
        with self.timed("edit"):
            self.method.finish(weights.block, weights)
            weights.settle()

    def _collect(
        self,
        weights: BlockWeights,
        names: Sequence[str],
        activations: Activations,
        *,
        pass_on: bool,
    ) -> None:
        wanted = set(names)
        matrices = [matrix for matrix in weights.block.editable if matrix.name in wanted]
        if matrices or pass_on:
            with self.timed("collect"):
                activations.collect(weights, matrices, self.method, pass_on=pass_on)

    def _check_kept(self, weights: BlockWeights) -> None:
        """Raise NotKept where a stream's edits of a block that runs again are lost."""
        block = weights.block.name
        lost = [s for s in weights.streams if (block, s) in self.edited and not weights.differs(s)]
        if lost and not self.dense and not set(lost) <= self.store.written:
            raise NotKept(
                f"`{block}` runs more than once, and nothing keeps what stream `{lost[0]}` made "
                "of it",
                "give every stream of the walk a writer",
            )

    def _nothing_left(self) -> bool:
        """Return whether what the model would still compute is of no use to anybody."""
        done = len(self.visited) == len(self.blocks) and not self.last_needed
        return done or not self.streams

    def _finished(self, block: Block) -> Finished | None:
        return self._noted(self.store.finished(block, self.streams) if self.resume else None)

    def _noted(self, found: Finished | None) -> Finished | None:
        if found is not None:
            self.report.resumed += 1
            self.report.untouched += found.untouched
        return found

    def _load(self, block: Block) -> BlockWeights:
        with self.timed("load"):
            return self.store.load(block, self.streams)

    def _write(self, weights: BlockWeights, reason: str = "") -> None:
        """Write a block; a reason says why none of its matrices was edited."""
        staged = {name for names in self.stages[weights.block.name] for name in names}
        untouched = weights.untouched(staged)
        if reason:
            names = {matrix.name for matrix in weights.block.matrices}
            untouched = [(n, reason if n in names else why) for n, why in untouched]
        self.report.untouched += untouched
        with self.timed("write"):
            self.store.write(weights, untouched)

    def _stages(self, block: Block) -> list[list[str]]:
        stages = [list(names) for names in self.method.stages(block)]
        known = {matrix.name for matrix in block.editable}
        for name in (name for names in stages for name in names):
            if name not in known:
                raise RequestError(
                    f"`{block.name}` has no matrix `{name}`", near_names(name, known)
                )
        return stages

    def _begin(self, block: Block) -> None:
        self.progress("blocks", len(self.visited), len(self.blocks), block.name)
        self.visited.add(block.name)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase of the report."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.report.seconds[phase] = self.report.seconds.get(phase, 0.0) + spent

    def _sample_memory(self) -> None:
        now = memory_in_use(self.store.loader.device)
        self.report.peak_bytes = max(self.report.peak_bytes, now)
