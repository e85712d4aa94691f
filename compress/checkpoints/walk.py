"""The walk: a model is run, edited and written one block at a time.

Every block gets exactly what the model's own code gives it (`suspended`), only one block's weights
are in memory (`loader`), and each finished block is on disk before the next is read (`shards`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Block, Matrix, read_anatomy
from compress.checkpoints.block_weights import BlockWeights
from compress.checkpoints.experts_tap import check_observable
from compress.checkpoints.gathering import FiniteCheck, Gathering, memory_in_use
from compress.checkpoints.loader import REST, BlockLoader, skeleton
from compress.checkpoints.padding import BatchPadding
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.source import Source
from compress.checkpoints.suspended import Call, Forward, Gates, forward_options
from compress.checkpoints.taps import Enough, InputTaps
from compress.errors import RequestError, RunError
from compress.progress import Progress, silent

__all__ = ["BlockWeights", "Method", "WalkReport", "open_writer", "walk"]


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
    """

    passes: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    untouched: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0


def open_writer(
    directory: str | Path,
    source: Source,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> ShardWriter:
    """Return a writer for the parts of `source`'s model, with the names of its own files."""
    model = skeleton(source, dtype)
    blocks = [block.name for block in read_anatomy(model).blocks]
    loader = BlockLoader(source, model, blocks=blocks, dtype=dtype)
    return ShardWriter(directory, model, loader.conversions, max_shard_size)


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
    on_block: Callable[[Block, str, int, Any], None] | None = None,
    on_output: Callable[[str, int, Any], None] | None = None,
) -> WalkReport:
    """Run `method` over every block of a model, one block in memory at a time.

    Args:
        source: the checkpoint.
        batches: keyword arguments of the model's forward, one dict a batch; `attention_mask` only
            where rows are padded. Empty for methods that need no data: nothing is run then.
        method: what observes and edits.
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
        on_output: called with (stream, batch, the model's output). Without it the model isn't run
            beyond what the edits need.

    Raises:
        RequestError: the method names matrices that aren't there or can't be observed; two streams
            have one name; a weight can't be loaded.
        RunError: an activation isn't finite; names the block.
    """
    if len(set(streams)) != len(streams) or not streams:
        raise RequestError(f"stream names must be unique: {', '.join(streams) or 'none given'}")
    if isinstance(writer, ShardWriter):
        writer = {streams[0]: writer}
    run = _Walk(source, batches, method, dict(writer or {}), device, dtype, list(streams), progress)
    run.resume, run.dense = resume, propagate == "dense"
    run.on_block, run.on_output = on_block, on_output
    return run.run()


class _Walk:
    """The state of one walk."""

    resume = False
    dense = False
    on_block: Callable[[Block, str, int, Any], None] | None = None
    on_output: Callable[[str, int, Any], None] | None = None

    def __init__(
        self,
        source: Source,
        batches: Sequence[dict[str, Tensor]],
        method: Method,
        writers: dict[str, ShardWriter],
        device: str | torch.device,
        dtype: torch.dtype | None,
        streams: list[str],
        progress: Progress,
    ) -> None:
        self.batches, self.method, self.writers = batches, method, writers
        self.progress, self.streams = progress, streams
        self.device = torch.device(device)
        self.model = skeleton(source, dtype)
        self.anatomy = read_anatomy(self.model)
        self.blocks = {block.name: block for block in self.anatomy.blocks}
        self.order = {name: index for index, name in enumerate(self.blocks)}
        self.loader = BlockLoader(
            source, self.model, blocks=list(self.blocks), dtype=dtype, device=device
        )
        self.report = WalkReport()
        self.groups = [list(streams)]  # streams whose activations have been the same so far
        self.visited: set[str] = set()
        self.loaded: BlockWeights | None = None
        self.forwards: dict[str, list[Forward]] = {}
        self.paddings: list[BatchPadding] = []
        self.dropped_before: set[str] = set()

    def run(self) -> WalkReport:
        """Walk."""
        self.stages = {name: self._checked_stages(block) for name, block in self.blocks.items()}
        for writer in self.writers.values():
            if not self.resume:
                writer.clear()
        if self.batches:
            self._walk_forwards()
        for name, block in self.blocks.items():
            if name not in self.visited:
                self._without_data(block)
        self._unload()
        self._write_rest()
        self.report.passes /= max(1, len(self.batches)) * len(self.blocks)
        self.progress("blocks", len(self.blocks), len(self.blocks))
        return self.report

    # Scheduling

    def _walk_forwards(self) -> None:
        with self._timed("load"):
            self.loader.load_rest()
        options = forward_options(self.model)
        self.paddings = [BatchPadding(batch, self.model, self.device) for batch in self.batches]
        with Gates(self.model, self.blocks) as self.gates, torch.no_grad():
            self.forwards = {
                stream: [Forward(self.model, {**options, **batch}) for batch in self._on_device()]
                for stream in self.streams
            }
            try:
                for forward in self._all_forwards():
                    forward.advance()
                while waiting := [f.call.name for f in self._all_forwards() if f.call]:
                    self._visit(self.blocks[min(waiting, key=self.order.__getitem__)])
                    if self._nothing_left():
                        break
                self._deliver()
            finally:
                for forward in self._all_forwards():
                    forward.cancel()

    def _visit(self, block: Block) -> None:
        first = block.name not in self.visited
        self.visited.add(block.name)
        if first:
            self.progress("blocks", len(self.visited) - 1, len(self.blocks), block.name)
        if first and not self._is_finished(block):
            weights = self._load(block)
            passed_on = self._edit(block, weights)
            self._write(block, weights)
        else:
            if first:
                self.report.resumed += 1
            weights = self._load_finished(block)
            for stream in self.dropped_before & set(weights.streams):
                weights.drop(stream)
            passed_on = False
        for stream in sorted(weights.dropped & set(self.streams)):
            self._drop(stream)
        if not passed_on and not self._nothing_left():
            self._propagate(block, weights)
        self._sample_memory()

    def _nothing_left(self) -> bool:
        """Return whether what the model would still compute is of no use to anybody."""
        return (
            self.on_output is None
            and self.on_block is None
            and (len(self.visited) == len(self.blocks) or not self.streams)
        )

    def _edit(self, block: Block, weights: BlockWeights) -> bool:
        """Observe and edit stage by stage; return whether the block was also passed on."""
        stages = self.stages[block.name]
        passed_on = False
        if self.dense:
            self._collect(block, weights, [n for s in stages for n in s], pass_on=True)
            passed_on = True
        for names in stages:
            if not self.dense:
                self._collect(block, weights, names, pass_on=False)
            with self._timed("edit"):
                self.method.edit(block, names, weights)
                weights.settle()
        with self._timed("edit"):
            self.method.finish(block, weights)
            weights.settle()
        return passed_on

    # Passes over a block

    def _collect(
        self, block: Block, weights: BlockWeights, names: Sequence[str], *, pass_on: bool
    ) -> None:
        """Run the block over all batches and hand the method what the named matrices read."""
        matrices = {matrix.name: matrix for matrix in block.matrices}
        needed = pass_on and not self._nothing_left()
        units = self._units(weights)
        finite = FiniteCheck(block.name)
        gathering = Gathering(self.method, units)
        watched = [matrices[name] for name in names]
        with self._timed("collect"), InputTaps(self.model, watched, gathering.seen) as taps:
            for index in range(len(self.batches)):
                padding = self.paddings[index]
                own = padding.own(block.name)
                for unit in units:
                    call = self._call(unit[0], index)
                    gathering.begin(unit, None if own is None else own.mask)
                    taps.begin(padding.rows(block.name, call.args, call.kwargs), early=not needed)
                    output = self._run(weights, unit, call)
                    if needed:
                        self._answer(block, unit, index, output, finite)
                gathering.flush()
            finite.verify()

    def _propagate(self, block: Block, weights: BlockWeights) -> None:
        """Run the block once more and let every forward go on to its next block."""
        finite = FiniteCheck(block.name)
        with self._timed("propagate"):
            if not self.dense:
                self.groups = self._units(weights)
            for index in range(len(self.batches)):
                for unit in self.groups:
                    call = self._call(unit[0], index)
                    self._answer(block, unit, index, self._run(weights, unit, call), finite)
            finite.verify()

    def _run(self, weights: BlockWeights, unit: list[str], call: Call) -> Any:  # noqa: ANN401
        self.report.passes += 1
        try:
            with weights.installed(unit[0]):
                return self.gates.run(call)
        except Enough:
            return None

    def _answer(
        self, block: Block, unit: list[str], index: int, output: object, finite: FiniteCheck
    ) -> None:
        finite.add(output, self.paddings[index].own(block.name), unit[0], index)
        for stream in unit:
            if self.on_block is not None:
                self.on_block(block, stream, index, output)
            self.forwards[stream][index].advance(output)

    def _units(self, weights: BlockWeights) -> list[list[str]]:
        """Return the groups of streams that have the same inputs and the same weights."""
        units: list[list[str]] = []
        for group in self.groups:
            start = len(units)
            for stream in group:
                for unit in units[start:]:
                    if weights.same(unit[0], stream) and self._shareable(stream):
                        unit.append(stream)
                        break
                else:
                    units.append([stream])
        return units

    def _shareable(self, stream: str) -> bool:
        """Return whether a stream may take over another's output.

        Not where blocks leave something behind in a shared container (gemma3n's keys and values).
        """
        call = self._call(stream, 0)
        values = [*call.args, *call.kwargs.values()]
        return not any(isinstance(value, dict | list) and value for value in values)

    def _call(self, stream: str, index: int) -> Call:
        call = self.forwards[stream][index].call
        if call is None:
            raise RunError(
                f"batch {index} doesn't reach a block that batch 0 reaches",
                "give batches with the same kinds of input",
            )
        return call

    def _drop(self, stream: str) -> None:
        self.streams.remove(stream)
        self.groups = [[s for s in g if s != stream] for g in self.groups]
        self.groups = [group for group in self.groups if group]
        for forward in self.forwards.pop(stream, []):
            forward.cancel()

    def _all_forwards(self) -> list[Forward]:
        return [forward for forwards in self.forwards.values() for forward in forwards]

    def _on_device(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            yield {
                key: value.to(self.device) if isinstance(value, Tensor) else value
                for key, value in batch.items()
            }

    def _deliver(self) -> None:
        if self.on_output is None:
            return
        for stream in self.streams:
            for index, forward in enumerate(self.forwards[stream]):
                self.on_output(stream, index, forward.output)
                forward.output = None

    # Weights in and out

    def _load(self, block: Block) -> BlockWeights:
        self._unload()
        with self._timed("load"):
            self.loader.load(block.name)
            self.loaded = self._weights(block)
        return self.loaded

    def _weights(self, block: Block) -> BlockWeights:
        return BlockWeights(block, self.model, self.loader.names(block.name), self.streams)

    def _load_finished(self, block: Block) -> BlockWeights:
        """Return the block as the walk left it: still loaded, or from its written parts."""
        if self.loaded is not None and self.loaded.block is block and not self.dense:
            return self.loaded
        self._unload()
        if self.dense:
            return self._load(block)
        with self._timed("load"):
            written = {s: w for s, w in self.writers.items() if block.name in w.parts()}
            if len(self.streams) == 1 and self.streams[0] in written:
                self.loader.load(block.name, written[self.streams[0]].read(block.name))
                self.loaded = self._weights(block)
                return self.loaded
            versions = {}
            for stream in self.streams:
                if stream in written:
                    self.loader.load(block.name, written[stream].read(block.name))
                    versions[stream] = self.loader.tensors(block.name)
            self.loader.load(block.name)
            self.loaded = self._weights(block)
            for stream, tensors in versions.items():
                self.loaded.adopt(stream, tensors)
            return self.loaded

    def _unload(self) -> None:
        if self.loaded is not None:
            self.loader.unload(self.loaded.block.name)
            self.loaded = None

    def _is_finished(self, block: Block) -> bool:
        """Return whether an earlier run wrote the block for every stream that it edited."""
        if not self.resume:
            return False
        writers = [writer for stream, writer in self.writers.items() if stream in self.streams]
        if not writers or any(block.name not in writer.parts() for writer in writers):
            return False
        note = writers[0].note(block.name)
        if not set(note.get("edited", ())) <= set(self.writers):
            return False
        self.report.untouched += [(name, reason) for name, reason in note.get("untouched", ())]
        self.dropped_before = set(note.get("dropped", ()))
        return True

    def _write(self, block: Block, weights: BlockWeights) -> None:
        staged = {name for names in self.stages[block.name] for name in names}
        untouched = weights.untouched(staged)
        self.report.untouched += untouched
        edited = [stream for stream in weights.streams if weights.differs(stream)]
        note = {"untouched": untouched, "edited": edited, "dropped": sorted(weights.dropped)}
        with self._timed("write"):
            for stream, writer in self.writers.items():
                if stream in weights.streams:
                    writer.write(block.name, weights.tensors(stream), note)

    def _without_data(self, block: Block) -> None:
        """Edit a block that no batch reaches, where there are no batches; else write it as it is."""
        self.visited.add(block.name)
        self.progress("blocks", len(self.visited) - 1, len(self.blocks), block.name)
        if self._is_finished(block):
            self.report.resumed += 1
            return
        weights = self._load(block)
        if self.batches:
            self.stages[block.name] = []
        for names in self.stages[block.name]:
            with self._timed("edit"):
                self.method.edit(block, names, weights)
                weights.settle()
        if not self.batches:
            with self._timed("edit"):
                self.method.finish(block, weights)
                weights.settle()
        self._write(block, weights)
        self._sample_memory()

    def _write_rest(self) -> None:
        waiting = [w for w in self.writers.values() if REST not in w.parts()]
        if waiting and not self.batches:
            self.loader.load_rest()
        with self._timed("write"):
            for writer in waiting:
                writer.write(REST, self.loader.tensors(REST))

    # Bookkeeping

    def _checked_stages(self, block: Block) -> list[list[str]]:
        stages = [list(names) for names in self.method.stages(block)]
        matrices = {matrix.name: matrix for matrix in block.matrices}
        for name in (n for names in stages for n in names):
            if name not in matrices:
                raise RequestError(f"`{block.name}` has no matrix `{name}`")
        if self.batches:
            check_observable(self.model, [matrices[n] for names in stages for n in names])
        return stages

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.report.seconds[phase] = self.report.seconds.get(phase, 0.0) + spent

    def _sample_memory(self) -> None:
        self.report.peak_bytes = max(self.report.peak_bytes, memory_in_use(self.device))
