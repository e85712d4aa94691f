"""Small helpers of the walk: inputs of several streams brought together, and its checks."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Matrix
from compress.checkpoints.padding import Padding
from compress.errors import RunError


class Observer(Protocol):
    """What takes a matrix's inputs: a walk's method."""

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Take one batch's inputs of a matrix, by stream."""


@runtime_checkable
class Chunked(Protocol):
    """An observer whose sums are made chunk by chunk of the batches."""

    def begin_chunk(self, chunk: int) -> None:
        """Hear that the batches that come next are of another chunk: its number, in order."""


class Gathering:
    """Hands a method the inputs of a matrix in all streams together.

    Streams that are computed once (a unit) share one tensor. With one unit nothing is held back;
    with more, a batch's inputs wait until the last unit has run.

    Args:
        observer: the method.
        units: the streams, grouped by what is computed once.
    """

    def __init__(self, observer: Observer, units: Sequence[Sequence[str]]) -> None:
        self._observer = observer
        self._units = units
        self._unit: Sequence[str] = ()
        self._keep: Tensor | None = None
        self._waiting: dict[tuple[str, int], tuple[Matrix, dict[str, Tensor]]] = {}
        self._counts: dict[str, int] = {}

    def begin_chunk(self, chunk: int) -> None:
        """Announce that the batches that come next are of another chunk."""
        if isinstance(self._observer, Chunked):
            self._observer.begin_chunk(chunk)

    def begin(self, unit: Sequence[str], keep: Tensor | None) -> None:
        """Announce whose inputs of which batch come next."""
        self._unit, self._keep, self._counts = unit, keep, {}

    def seen(self, matrix: Matrix, rows: Tensor) -> None:
        """Take the inputs [rows, in] of a matrix in the announced unit."""
        inputs = dict.fromkeys(self._unit, rows)
        if len(self._units) == 1:
            self._observer.observe(matrix, inputs, self._keep)
            return
        turn = self._counts.get(matrix.name, 0)
        self._counts[matrix.name] = turn + 1
        self._waiting.setdefault((matrix.name, turn), (matrix, {}))[1].update(inputs)

    def flush(self) -> None:
        """Hand over what has waited; the batch is done in all streams."""
        order = [stream for unit in self._units for stream in unit]
        for matrix, found in self._waiting.values():
            some = next(iter(found.values()))
            none = some.new_empty((0, some.shape[-1]))  # an expert that a stream sent no token
            self._observer.observe(matrix, {s: found.get(s, none) for s in order}, self._keep)
        self._waiting.clear()


class FiniteCheck:
    """Checks the outputs of a block, with one look at the device for all batches.

    Args:
        block: the block's name.
    """

    def __init__(self, block: str) -> None:
        self._block = block
        self._where: list[tuple[str, int]] = []
        self._finite: list[Tensor] = []

    def add(self, output: object, padding: Padding | None, stream: str, batch: int) -> None:
        """Take what the block returned for a batch; rows of padding may hold anything."""
        hidden = first_tensor(output)
        if hidden is None or not hidden.is_floating_point():
            return
        if padding is not None:
            rows = padding.rows(hidden)
            if rows is None:
                return
            hidden = rows
        self._where.append((stream, batch))
        self._finite.append(hidden.isfinite().all())

    def verify(self) -> None:
        """Raise RunError naming the block if an output held NaN or an infinity."""
        if not self._finite or bool(torch.stack(self._finite).all()):
            return
        bad = [place for place, good in zip(self._where, self._finite) if not bool(good)]
        stream, batch = bad[0]
        raise RunError(
            f"`{self._block}`: its output holds NaN or infinities in {len(bad)} of "
            f"{len(self._where)} batches, first in batch {batch} of stream `{stream}`",
            "if the weights are float16, run in bfloat16 or float32 with --dtype; finished blocks "
            "are kept for --resume",
        )


def first_tensor(output: object) -> Tensor | None:
    """Return the hidden states in what a block returned: a tensor, or the first one in it."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, list | tuple):
        return next((value for value in output if isinstance(value, Tensor)), None)
    return None


def memory_in_use(device: torch.device) -> int:
    """Return bytes: the process's anonymous memory now, or on a GPU the largest allocation.

    Memory-mapped weights are not anonymous. Where the system doesn't tell, the process's largest
    resident size stands in.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
