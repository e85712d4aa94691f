"""Sums over the calibration set whose bits don't depend on who computed them.

The set is cut into chunks (`numerics.ranks.chunks`). A chunk is summed by itself, and chunks are
added one to the next in their order: by one process as it goes, by several in a chain, in which
each rank takes the total of those before it, adds its own chunks and hands it on. Both are the same
additions of the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compress.numerics.ranks import Team

Form = tuple[tuple[int, ...], torch.dtype]


class Seen(NamedTuple):
    """What one rank knows of a statistic, for the others."""

    rows: int
    forms: dict[str, Form]


class ChunkedSums:
    """Named tensors, summed chunk by chunk.

    With one process a finished chunk is added to the total at once: two tensors are held of each
    name. A rank that isn't the first holds each of its chunks until the chain has come to it.

    Attributes:
        rows: how many rows have been added.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._open: dict[str, Tensor] = {}
        self._closed: list[dict[str, Tensor]] = []

    def at(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return the sum of the chunk under way, to be added to in place; zero at first."""
        if name not in self._open:
            self._open[name] = torch.zeros(*shape, dtype=dtype, device=device)
        return self._open[name]

    def end_chunk(self, hold: bool = False) -> None:
        """What is added from here on belongs to the next chunk.

        Args:
            hold: keep the chunk apart; else it is added to the total.
        """
        if not self._open:
            return
        if hold or not self._closed:
            self._closed.append(self._open)
        else:
            self._add(self._open)
        self._open = {}

    def total(self, name: str) -> Tensor | None:
        """Return the sum of all chunks, None if nothing was added."""
        self.end_chunk()
        while len(self._closed) > 1:
            first, second, *rest = self._closed
            self._closed = [first]
            self._add(second)
            self._closed += rest
        return self._closed[0].get(name) if self._closed else None

    def seen(self) -> Seen:
        """Return what the other ranks need to know before `chain`."""
        self.end_chunk(hold=True)
        forms = {n: (tuple(v.shape), v.dtype) for each in self._closed for n, v in each.items()}
        return Seen(self.rows, forms)

    def chain(self, team: Team, found: Sequence[Seen | None], device: torch.device) -> None:
        """Take the total of the ranks before this one, add its chunks, hand it on.

        Args:
            team: the ranks; all call this for the same statistics in the same order.
            found: what each rank has seen, None for nothing.
            device: where the sums are.
        """
        holders = [rank for rank, seen in enumerate(found) if seen is not None]
        if team.rank not in holders:
            return
        place = holders.index(team.rank)
        if place:
            forms = {n: f for seen in found for n, f in (seen.forms if seen else {}).items()}
            before = {n: torch.empty(*s, dtype=t, device=device) for n, (s, t) in forms.items()}
            for tensor in before.values():
                team.receive(tensor, holders[place - 1])
            self._closed.insert(0, before)
        for name in self._closed[0]:
            self.total(name)
        if place + 1 < len(holders):
            for tensor in self._closed[0].values():
                team.send(tensor, holders[place + 1])

    def share(self, team: Team, found: Sequence[Seen | None], device: torch.device) -> None:
        """After `chain`: give all ranks the total, which the last that has seen any holds."""
        last = max(rank for rank, seen in enumerate(found) if seen is not None)
        forms = {n: f for seen in found for n, f in (seen.forms if seen else {}).items()}
        if team.rank != last:
            self._closed = [
                {n: torch.empty(*s, dtype=t, device=device) for n, (s, t) in forms.items()}
            ]
        for name in forms:
            team.broadcast(self._closed[0][name], last)
        self.rows = sum(seen.rows for seen in found if seen is not None)

    def _add(self, chunk: dict[str, Tensor]) -> None:
        for name, value in chunk.items():
            self._closed[0][name] += value
