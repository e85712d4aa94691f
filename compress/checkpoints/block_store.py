"""Where a walk's blocks come from and go to: the checkpoint, memory, and the written parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from compress.checkpoints.anatomy import Block
from compress.checkpoints.block_weights import BlockWeights
from compress.checkpoints.loader import REST, BlockLoader
from compress.checkpoints.shards import ShardWriter
from compress.numerics.ranks import ALONE, Team


class Finished(NamedTuple):
    """What an earlier run noted about a block that it finished.

    Attributes:
        untouched: (matrix or parameter, reason) of what it did not edit.
        dropped: the streams that ended at this block.
    """

    untouched: list[tuple[str, str]]
    dropped: set[str]


class BlockStore:
    """Loads blocks, at most one at a time, and writes them.

    Args:
        loader: reads the checkpoint.
        writers: stream -> where its blocks go. In a team the first rank writes there, the others
            only read.
        team: the processes that make one walk together.
    """

    def __init__(
        self, loader: BlockLoader, writers: Mapping[str, ShardWriter], team: Team = ALONE
    ) -> None:
        self.loader = loader
        self.team = team
        self._writers = writers
        self.dense = False  # blocks get what the model as loaded has in the blocks they share with
        self._loaded: BlockWeights | None = None

    @property
    def written(self) -> set[str]:
        """The streams whose blocks are written."""
        return set(self._writers)

    def clear(self) -> None:
        """Remove what earlier runs wrote."""
        for writer in self._writers.values() if self.team.first else ():
            writer.clear()

    def load(self, block: Block, streams: Sequence[str]) -> BlockWeights:
        """Return the block as the checkpoint has it; the one before is unloaded."""
        self.unload()
        lent = self._lent(block, streams)
        alone = len(streams) == 1
        self.loader.load(block.name, lent=lent.get(streams[0]) if alone else None)
        weights = self._hold(block, streams)
        for stream, tensors in lent.items() if not alone else ():
            weights.adopt(stream, tensors)
        return weights

    def load_edited(self, block: Block, streams: Sequence[str]) -> BlockWeights:
        """Return the block as the walk left it: still loaded, or from its written parts."""
        if self._loaded is not None and self._loaded.block is block:
            return self._loaded
        self.unload()
        there = self.team.from_first(lambda: self._with_part(block.name))
        written = {stream: self._writers[stream] for stream in there}
        lent = self._lent(block, streams)
        if len(streams) == 1 and streams[0] in written:
            tensors = written[streams[0]].read(block.name)
            self.loader.load(block.name, tensors, lent.get(streams[0]))
            return self._hold(block, streams)
        versions = lent
        for stream in set(streams) & set(written):
            self.loader.load(block.name, written[stream].read(block.name), lent.get(stream))
            versions[stream] = self.loader.tensors(block.name)
        self.loader.load(block.name)
        weights = self._hold(block, streams)
        for stream, tensors in versions.items():
            weights.adopt(stream, tensors)
        return weights

    def _lent(self, block: Block, streams: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Return, by stream, the edited weights that the block shares with blocks done before."""
        found: dict[str, dict[str, Tensor]] = {}
        if self.dense:
            return found
        for lender, names in self.loader.lenders(block.name).items():
            for stream in streams:
                writer = self._writers.get(stream)
                if writer is None or lender not in writer.parts():
                    continue
                self.loader.load(lender, writer.read(lender))
                theirs = self.loader.tensors(lender)
                own = {name: theirs[origin] for name, origin in names.items()}
                found.setdefault(stream, {}).update(own)
            self.loader.unload(lender)
        return found

    def unload(self) -> None:
        """Free the loaded block."""
        if self._loaded is not None:
            self.loader.unload(self._loaded.block.name)
            self._loaded = None

    def finished(self, block: Block, streams: Sequence[str]) -> Finished | None:
        """Return an earlier run's note on a block that it wrote for every stream it edited.

        Only rank 0 looks; all ranks must ask.
        """
        return self.team.from_first(lambda: self.noted(block, streams))

    def noted(self, block: Block, streams: Sequence[str]) -> Finished | None:
        """Return what `finished` does, by this process's own look."""
        writers = {s: w for s, w in self._writers.items() if s in streams}
        written = [w for w in writers.values() if block.name in w.parts()]
        if not written:
            return None
        note = written[0].note(block.name)
        dropped, edited = set(note.get("dropped", ())), set(note.get("edited", ()))
        if len(written) < len(set(writers) - dropped) or not edited <= set(self._writers):
            return None
        return Finished([(name, reason) for name, reason in note.get("untouched", ())], dropped)

    def write(self, weights: BlockWeights, untouched: list[tuple[str, str]]) -> None:
        """Write an edited block for every stream that has a writer; rank 0 does."""
        if not self.team.first:
            return
        note = {
            "untouched": untouched,
            "edited": [stream for stream in weights.streams if weights.differs(stream)],
            "dropped": sorted(weights.dropped),
        }
        for stream, writer in self._writers.items():
            if stream in weights.streams:
                writer.write(weights.block.name, weights.tensors(stream), note)

    def write_rest(self) -> None:
        """Write what lies outside the blocks, where that hasn't been done."""
        waiting = [writer for writer in self._writers.values() if REST not in writer.parts()]
        if waiting:
            self.loader.load_rest()
        for writer in waiting:
            writer.write(REST, self.loader.tensors(REST))

    def _with_part(self, part: str) -> list[str]:
        return [stream for stream, writer in self._writers.items() if part in writer.parts()]

    def _hold(self, block: Block, streams: Sequence[str]) -> BlockWeights:
        names = self.loader.names(block.name)
        self._loaded = BlockWeights(block, self.loader.model, names, streams)
        return self._loaded
