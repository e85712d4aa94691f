"""Statistics of inputs that several matrices read: each batch is accumulated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from compress.calibration.sums import ChunkedSums, Seen
from compress.numerics.ranks import Team

V = TypeVar("V", covariant=True)


class Accumulator(Protocol[V]):
    """A statistic of compress.calibration.statistics."""

    sums: ChunkedSums

    def add(self, inputs: Tensor) -> None:
        """Account inputs [rows, in]."""

    def end_chunk(self, hold: bool = False) -> None:
        """What is added from here on belongs to the next chunk of batches."""

    def value(self) -> V:
        """The finished statistic."""


@dataclass
class InputStatistics(Generic[V]):
    """The statistics of the inputs that several matrices may share (q, k and v do).

    The walk hands matrices that read one tensor the same tensor object, so each batch is
    accumulated once, whoever asks.
    """

    make: Callable[[str], Accumulator[V]]
    values: dict[str, Accumulator[V]] = field(default_factory=dict)
    _last: dict[int, tuple[Tensor, Accumulator[V]]] = field(default_factory=dict)

    def add(self, name: str, inputs: Tensor) -> None:
        """Account `inputs` [rows, in] to matrix `name`."""
        shared = self._last.get(id(inputs))
        if shared is not None and shared[0] is inputs:
            self.values.setdefault(name, shared[1])
            return
        own = self.values.get(name)
        if own is None:
            own = self.values[name] = self.make(name.rpartition("/")[2])  # without the stream
        own.add(inputs)
        # Only the newest input of each statistic is kept, so at most one batch is held alive.
        self._last = {k: v for k, v in self._last.items() if v[1] is not own}
        self._last[id(inputs)] = (inputs, own)

    def begin_chunk(self, hold: bool = False) -> None:
        """What comes next belongs to the next chunk of batches; see ChunkedSums for `hold`."""
        for own in self.values.values():
            own.end_chunk(hold)

    def combine(self, names: Sequence[str], team: Team, device: torch.device) -> None:
        """Make the statistics of some matrices those of all ranks' batches, in all ranks.

        Every rank calls this with the same names. A matrix that only some ranks saw (an expert)
        is in all of them afterwards.
        """
        if team.size == 1:
            return
        leaders: dict[int, str] = {}  # matrices that share a statistic send it once
        mine = {}
        for name in names:
            own = self.values.get(name)
            if own is not None:
                leader = leaders.setdefault(id(own), name)
                mine[name] = (leader, own.sums.seen() if leader == name else None)
        found = team.gather(mine)
        joined: dict[str, list[Seen | None]] = {}
        for name in names:
            first = next((each[name][0] for each in found if name in each), None)
            if first is None:
                continue
            if first == name:
                joined[name] = [each[name][1] if name in each else None for each in found]
                self.values.setdefault(name, self.make(name.rpartition("/")[2]))
            self.values[name] = self.values[first]
        for name, seen in joined.items():
            self.values[name].sums.chain(team, seen, device)
        for name, seen in joined.items():
            self.values[name].sums.share(team, seen, device)

    def get(self, name: str) -> V | None:
        """The finished statistic of `name`, or None where no token reached it."""
        found = self.values.get(name)
        return None if found is None else found.value()

    def clear(self) -> None:
        """Forget everything: a block is done."""
        self.values.clear()
        self._last.clear()
