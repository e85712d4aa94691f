"""The weights of the block that is in memory, in as many versions as there are streams.

The base is what was loaded; a stream holds only the tensors in which its block differs from it.
With a single stream there are no copies: edits go into the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress.checkpoints.anatomy import Block, Matrix, matrix_view
from compress.errors import near_names


class BlockWeights:
    """One block's weights, for a method to read and write.

    Args:
        block: which block.
        model: the model that holds it, loaded.
        names: run-time names of its parameters and persistent buffers.
        streams: the live streams; the first is the default one.
    """

    def __init__(
        self, block: Block, model: nn.Module, names: Sequence[str], streams: Sequence[str]
    ) -> None:
        self.block = block
        self.dropped: set[str] = set()
        self._streams = list(streams)
        self._matrices = {matrix.name: matrix for matrix in block.editable}
        self._places = {name: _place(model, name) for name in names}
        self._base = {name: holder[leaf].detach() for name, (holder, leaf) in self._places.items()}
        self._versions = {name: value._version for name, value in self._base.items()}
        self._own: dict[str, dict[str, Tensor]] = {stream: {} for stream in streams}
        self._modules: dict[str, dict[str, nn.Module]] = {stream: {} for stream in streams}
        self._model = model
        self._alone = len(streams) == 1
        self._asked: set[str] = set()

    @property
    def streams(self) -> tuple[str, ...]:
        """The live streams."""
        return tuple(stream for stream in self._streams if stream not in self.dropped)

    def view(self, name: str, stream: str | None = None) -> Tensor:
        """Return a matrix as a 2-D view [out, in] to be written; other streams don't see it.

        Args:
            name: a matrix of the block.
            stream: which version; None is the first stream's.

        Raises:
            KeyError: the block has no such matrix, or there is no such stream.
        """
        matrix = self._matrix(name)
        self._asked.add(name)
        return matrix_view(self.parameter(matrix.parameter, stream), matrix)

    def read(self, name: str, stream: str | None = None) -> Tensor:
        """Return a matrix as a 2-D view [out, in] that must not be written; costs no copy."""
        matrix = self._matrix(name)
        stream = self._known(stream)
        value = self._own[stream].get(matrix.parameter, self._base[matrix.parameter])
        return matrix_view(value, matrix)

    def parameter(self, name: str, stream: str | None = None) -> Tensor:
        """Return a whole parameter or persistent buffer by its run-time name, to be written."""
        stream = self._known(stream)
        if self._alone:
            return self._base[name]
        own = self._own[stream]
        if name not in own:
            own[name] = self._base[name].clone()
        return own[name]

    def replace(self, name: str, module: nn.Module, stream: str | None = None) -> None:
        """Let a stream run another module in a module's place; it can't be written by the walk.

        Args:
            name: the module's full name, inside the block.
            module: what runs instead, called as the old one is. Streams that are given the same
                object are alike.
            stream: which version; None is the first stream's.
        """
        self._modules[self._known(stream)][name] = module

    def drop(self, stream: str) -> None:
        """End a stream: it goes no further than this block and nothing more is written for it."""
        self.dropped.add(self._known(stream))
        self._own[stream], self._modules[stream] = {}, {}

    # What follows is the walk's.

    def settle(self) -> None:
        """Forget copies that equal the base."""
        for own in self._own.values():
            for name in [n for n, value in own.items() if torch.equal(value, self._base[n])]:
                del own[name]

    def adopt(self, stream: str, tensors: Mapping[str, Tensor]) -> None:
        """Give a stream the version of the block that `tensors`, by run-time name, describe."""
        self._own[stream] = dict(tensors)
        self.settle()

    def tensors(self, stream: str) -> dict[str, Tensor]:
        """Return all tensors of one stream's version by run-time name."""
        return {**self._base, **self._own[stream]}

    def differs(self, stream: str) -> bool:
        """Return whether the stream's block is not the one that was loaded."""
        return bool(self._own[stream] or self._modules[stream]) or (
            self._alone and any(self._was_written(name) for name in self._base)
        )

    def same(self, first: str, second: str) -> bool:
        """Return whether two streams have the same version of the block."""
        one, other = self._own[first], self._own[second]
        mine, theirs = self._modules[first], self._modules[second]
        if mine.keys() != theirs.keys() or any(mine[n] is not theirs[n] for n in mine):
            return False
        return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)

    def untouched(self, staged: set[str]) -> list[tuple[str, str]]:
        """Return (matrix or parameter, reason) of all that was not edited in any stream.

        Args:
            staged: the names that the method put into its stages.
        """
        pointwise = {matrix.parameter for matrix in self.block.pointwise}
        found = [
            (name, reason)
            for name, reason in self.block.skipped
            if name not in pointwise or name.rpartition(".")[0] not in self._asked
        ]
        for name, matrix in self._matrices.items():
            if matrix.parameter in pointwise and name not in self._asked:
                continue  # told by its parameter
            if name not in staged and name not in self._asked:
                found.append((name, "not chosen by the method"))
            elif name not in self._asked or not self._was_written(matrix.parameter):
                found.append((name, "left unchanged by the method"))
        return found

    @contextmanager
    def installed(
        self, stream: str, leaves: Mapping[str, nn.Parameter] | None = None
    ) -> Iterator[None]:
        """Let the model run with one stream's version, some of it replaced by `leaves`.

        With leaves, they alone ask for gradients.
        """
        own = {**self._own[stream], **(leaves or {})}
        before = {}
        for name, (holder, leaf) in self._places.items():
            value = own.get(name, holder[leaf] if leaves else None)
            if value is None:
                continue
            before[name] = holder[leaf]
            bare = isinstance(holder[leaf], nn.Parameter) and name not in (leaves or {})
            # As in a model just loaded: even without gradients torch's matmul asks who wants them.
            wanted = not leaves and value.is_floating_point()
            holder[leaf] = nn.Parameter(value, requires_grad=wanted) if bare else value
        replaced = {name: self._model.get_submodule(name) for name in self._modules[stream]}
        for name, module in self._modules[stream].items():
            self._model.set_submodule(name, module)
        try:
            yield
        finally:
            for name, module in replaced.items():
                self._model.set_submodule(name, module)
            for name, value in before.items():
                holder, leaf = self._places[name]
                holder[leaf] = value

    def _was_written(self, name: str) -> bool:
        return (
            any(name in own for own in self._own.values())
            or self._base[name]._version != self._versions[name]
        )

    def _matrix(self, name: str) -> Matrix:
        if name not in self._matrices:
            raise KeyError(
                f"`{self.block.name}` has no matrix `{name}`; {near_names(name, self._matrices)}"
            )
        return self._matrices[name]

    def _known(self, stream: str | None) -> str:
        if stream is None:
            return self.streams[0]
        if stream not in self._own or stream in self.dropped:
            raise KeyError(f"no stream `{stream}`; {near_names(stream, self.streams)}")
        return stream


def _place(model: nn.Module, name: str) -> tuple[dict, str]:
    """Return the dictionary of its module that holds a parameter or buffer, and the key there."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if leaf in module._parameters else module._buffers), leaf
