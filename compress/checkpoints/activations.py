"""The activations of a walk: suspended forwards of every batch, in one or several streams.

Streams start equal. As long as two have had the same weights everywhere, their forwards get the
same block outputs, which are computed once: a group. A group splits where its streams' edits
differ, which is how a stream forks; a dropped stream's forwards are ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.block_weights import BlockWeights
from compress.checkpoints.gathering import FiniteCheck, Gathering, Observer
from compress.checkpoints.padding import BatchPadding, TokenRows
from compress.checkpoints.suspended import Call, Forward, Gates, without_cache
from compress.checkpoints.taps import Enough, InputTaps
from compress.errors import RunError

OnBlock = Callable[[Block, str, int, Any], None]
"""Called with a block, a stream, a batch's number and what the block returned."""
OnOutput = Callable[[str, int, Any], None]
"""Called with a stream, a batch's number and what the model returned."""


class Activations:
    """Forwards of all batches in all streams, each stopped before a block.

    A context: leaving it ends every forward.

    Args:
        model: the model; what lies outside its blocks is loaded.
        batches: keyword arguments of its forward, one dict a batch.
        streams: names of the streams.
        blocks: names of the blocks, in order.
        device: where the model is.
        on_block: told of every block output that is passed on.
        on_output: told of what the model returns, as soon as it does; it isn't kept.
        observed: so many of the batches, the first ones, are observed; None is all.
        chunks: of each observed batch, the number of its chunk, which the observer is told before
            the chunk's first batch; None is one chunk.
        first: number of the first batch, where others before it run elsewhere.

    Attributes:
        model: the model.
        first: number of the first batch.
        streams: the live streams.
        block_runs: how often a block has run on a batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Mapping[str, Any]],
        streams: Sequence[str],
        blocks: Sequence[str],
        device: torch.device,
        on_block: OnBlock | None = None,
        on_output: OnOutput | None = None,
        observed: int | None = None,
        chunks: Sequence[int] | None = None,
        first: int = 0,
    ) -> None:
        self.streams = list(streams)
        self.block_runs = 0
        self.model = model
        self._groups = [list(streams)]
        self._order = {name: index for index, name in enumerate(blocks)}
        self._on_block, self._on_output = on_block, on_output
        self._observed = len(batches) if observed is None else observed
        self._chunks, self.first = chunks, first
        self._gates = Gates(model, blocks)
        self._paddings = [BatchPadding(batch, model, device) for batch in batches]
        options = without_cache(model)
        inputs = [{**options, **_moved(batch, device)} for batch in batches]
        self._forwards = {s: [Forward(model, each) for each in inputs] for s in streams}

    def __enter__(self) -> Activations:
        self._gates.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for forward in self._all():
                forward.cancel()
        finally:
            self._gates.__exit__(kind, error, trace)

    def start(self) -> None:
        """Bring every forward to its first block."""
        for stream, forwards in self._forwards.items():
            for index in range(len(forwards)):
                self._advance(stream, index, None)

    def next_block(self) -> str | None:
        """Return the earliest block at which a forward waits, None once all are done."""
        waiting = {forward.call.name for forward in self._all() if forward.call}
        return min(waiting, key=self._order.__getitem__) if waiting else None

    def collect(
        self,
        weights: BlockWeights,
        matrices: Sequence[Matrix],
        observer: Observer,
        *,
        pass_on: bool,
    ) -> None:
        """Run the block on all batches and hand the observer what its matrices read.

        Args:
            weights: the block, loaded.
            matrices: what to observe.
            observer: gets each batch's inputs of a matrix in all streams.
            pass_on: let the forwards go on with these outputs; else the block is left as soon as
                all has been seen.
        """
        block, units = weights.block, self._units(weights)
        finite, gathering = FiniteCheck(block.name), Gathering(observer, units)
        chunk = None
        with InputTaps(self.model, matrices, gathering.seen) as taps:
            for index in self._waiting(units, block.name):
                if index >= self._observed:
                    continue
                if self._chunks is not None and self._chunks[index] != chunk:
                    chunk = self._chunks[index]
                    gathering.begin_chunk(chunk)
                padding = self._paddings[index]
                own = padding.own(block.name)
                for unit in units:
                    call = self._call(unit[0], index, block.name)
                    gathering.begin(unit, None if own is None else own.mask)
                    taps.begin(padding.rows(block.name, call.args, call.kwargs), early=not pass_on)
                    output = self._run(weights, unit, call if pass_on else call.rehearsal())
                    if pass_on:
                        self._answer(block, unit, index, output, finite)
                gathering.flush()
        if pass_on:
            self._pass(weights, units, finite, first=self._observed)
        finite.verify()

    def propagate(self, weights: BlockWeights) -> None:
        """Run the block on all batches and let the forwards go on to their next block.

        Raises:
            RunError: an output isn't finite; names the block.
        """
        finite = FiniteCheck(weights.block.name)
        self._groups = self._units(weights)
        self._pass(weights, self._groups, finite)
        finite.verify()

    def end_observed(self) -> None:
        """End the forwards of the batches that are observed: nobody needs what follows."""
        for forwards in self._forwards.values():
            for forward in forwards[: self._observed]:
                forward.cancel()

    def drop(self, stream: str) -> None:
        """End a stream."""
        self.streams.remove(stream)
        groups = [[s for s in group if s != stream] for group in self._groups]
        self._groups = [group for group in groups if group]
        for forward in self._forwards.pop(stream):
            forward.cancel()

    def shareable(self, stream: str) -> bool:
        """Return whether a stream may take over another's output.

        Not where blocks leave something behind in a shared container (gemma3n's keys and values).
        """
        call = next((f.call for f in self._forwards[stream] if f.call), None)
        values = [*call.args, *call.kwargs.values()] if call else []
        return not any(isinstance(value, dict | list | Cache) for value in values)

    def waiting(self, block: str) -> list[int]:
        """Return the observed batches that wait at the block; usually all."""
        return [i for i in self._waiting(self._groups, block) if i < self._observed]

    def rehearse(
        self,
        weights: BlockWeights,
        stream: str,
        index: int,
        leaves: Mapping[str, nn.Parameter] | None = None,
    ) -> Any:
        """Run the block on one batch and return its output; the forward stays where it is.

        Args:
            weights: the block, loaded.
            stream: whose inputs and weights.
            index: the batch.
            leaves: parameters that stand in for the stream's own, by run-time name.
        """
        self.block_runs += 1
        call = self._call(stream, index, weights.block.name).rehearsal()
        with weights.installed(stream, leaves):
            return self._gates.run(call)

    def token_rows(self, block: str, stream: str, index: int) -> TokenRows:
        """Return how the inputs of the block's matrices become rows of tokens."""
        call = self._call(stream, index, block)
        return self._paddings[index].rows(block, call.args, call.kwargs)

    def token_mask(self, block: str, index: int) -> Tensor | None:
        """Return which positions of the block's sequence are tokens, [B, T]; None if all are."""
        own = self._paddings[index].own(block)
        return None if own is None else own.mask

    def _all(self) -> list[Forward]:
        return [forward for forwards in self._forwards.values() for forward in forwards]

    def _pass(
        self, weights: BlockWeights, units: list[list[str]], finite: FiniteCheck, first: int = 0
    ) -> None:
        """Run the block on the batches from `first` on that wait there, and let them go on."""
        block = weights.block
        for index in self._waiting(units, block.name):
            for unit in units if index >= first else []:
                call = self._call(unit[0], index, block.name)
                self._answer(block, unit, index, self._run(weights, unit, call), finite)

    def _waiting(self, units: list[list[str]], block: str) -> list[int]:
        """Return the batches that wait at the block; usually all."""
        return [
            index
            for index, forward in enumerate(self._forwards[units[0][0]])
            if forward.call is not None and forward.call.name == block
        ]

    def _call(self, stream: str, index: int, block: str) -> Call:
        call = self._forwards[stream][index].call
        if call is None or call.name != block:
            raise RunError(
                f"`{block}`: batch {index} doesn't reach it in stream `{stream}`, but does in "
                "another stream",
                "run the streams one at a time",
            )
        return call

    def _run(self, weights: BlockWeights, unit: list[str], call: Call) -> Any:
        self.block_runs += 1
        try:
            with weights.installed(unit[0]):
                return self._gates.run(call)
        except Enough:
            return None

    def _answer(
        self, block: Block, unit: list[str], index: int, output: object, finite: FiniteCheck
    ) -> None:
        finite.add(output, self._paddings[index].own(block.name), unit[0], self.first + index)
        for stream in unit:
            if self._on_block is not None:
                self._on_block(block, stream, self.first + index, output)
            self._advance(stream, index, output)

    def _advance(self, stream: str, index: int, answer: object) -> None:
        """Let a forward go on; what the model returns at its end is handed over at once."""
        forward = self._forwards[stream][index]
        forward.advance(answer)
        if forward.call is None:
            output, forward.output = forward.output, None
            if self._on_output is not None:
                self._on_output(stream, self.first + index, output)

    def _units(self, weights: BlockWeights) -> list[list[str]]:
        """Return the streams grouped by equal inputs and equal weights of this block."""
        units: list[list[str]] = []
        for group in self._groups:
            fresh: list[list[str]] = []
            for stream in group:
                alike = (u for u in fresh if weights.same(u[0], stream))
                unit = next(alike, None) if self.shareable(stream) else None
                if unit is None:
                    fresh.append([stream])
                else:
                    unit.append(stream)
            units += fresh
        return units


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
