"""One run in several processes, as `torchrun` starts them: who does what, and how they exchange.

Results don't depend on how many there are. Batches are cut into `CHUNKS` runs, whatever the number
of ranks; sums are made within a chunk and added in the order of the chunks, whoever computed them;
all else is computed by one rank and copied. Nothing is ever reduced by the library, whose order of
sums depends on the number of ranks.

Without a launcher there is one process, `ALONE`, to which every exchange costs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from compress.launcher import world_size

__all__ = ["ALONE", "CHUNKS", "RESUME", "Team", "chunks", "joined", "shares"]

CHUNKS = 8
"""Runs of batches whose sums are made apart; more ranks than that have no batches left to run."""

RESUME = "run again with --resume: what was finished is kept; the number of ranks may be another"

T = TypeVar("T")
_current: Team | None = None


def chunks(batches: int) -> list[range]:
    """Cut `batches` into at most CHUNKS runs of nearly equal length, in order."""
    count = min(CHUNKS, batches)
    return [range(i * batches // count, (i + 1) * batches // count) for i in range(count)]


def shares(costs: Sequence[float], size: int) -> list[range]:
    """Cut items into `size` runs of nearly equal total cost, in order; some may be empty."""
    total = sum(costs) or 1.0
    bounds, done = [0], 0.0
    for index, cost in enumerate(costs):
        # An item belongs to the rank in whose part of the total its middle lies.
        owner = min(int((done + cost / 2) / total * size), size - 1)
        bounds += [index] * (owner + 1 - len(bounds))
        done += cost
    bounds += [len(costs)] * (size + 1 - len(bounds))
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


class Team:
    """The processes of a run; this class is the team of one.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        sent: bytes of tensors that this process has sent.
    """

    rank = 0
    size = 1
    sent = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """This process's device, where the user names only its kind."""
        return name

    def batches(self, count: int) -> range:
        """Which of `count` batches this rank runs: whole chunks, contiguous, in rank order.

        Rank 0 has the first batch.
        """
        cut = chunks(count)
        if len(cut) <= self.size:
            return cut[self.rank] if self.rank < len(cut) else range(0)
        own = shares([1] * len(cut), self.size)[self.rank]
        return range(cut[own[0]].start, cut[own[-1]].stop) if own else range(0)

    def from_first(self, make: Callable[[], T]) -> T:
        """Have rank 0 make a value (plain data); all get it."""
        return make()

    def gather(self, value: T) -> list[T]:
        """Every rank's value (plain data), in the order of ranks."""
        return [value]

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to another rank, which must `receive` it."""
        raise NotImplementedError("there is nobody to send to")

    def receive(self, into: Tensor, source: int) -> None:
        """Fill a tensor with what another rank sends."""
        raise NotImplementedError("there is nobody to receive from")

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Make a tensor, of one shape and dtype everywhere, in all ranks what it is in one."""

    def wait(self) -> None:
        """Go on when all have come here."""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Have an error inside that another rank's end has caused name that end instead.

        For libraries that exchange by themselves, as DDP does.
        """
        yield


ALONE = Team()


@contextlib.contextmanager
def joined(device: str = "cpu", remedy: str = RESUME) -> Iterator[Team]:
    """Join the processes that a launcher has started; ALONE without one.

    Inside, the failure of one process ends all, and each says so or leaves it to rank 0; see
    `lifeline`. A second call inside gives the same team.

    Args:
        device: where the work will run; tensors of several GPUs go by NCCL, all else by gloo.
        remedy: what the user is told to do where one of them has died.

    Raises:
        RequestError: the processes can't find each other.
    """
    global _current
    if _current is not None or world_size() == 1:
        yield _current or ALONE
        return
    from compress.numerics.processes import Processes

    with Processes.join(device, remedy) as _current:
        try:
            yield _current
        finally:
            _current = None


def split_cuda(name: str, local_rank: int) -> str:
    """Name this process's GPU where only "cuda" is said; several processes may share one."""
    if name != "cuda":
        return name
    return f"cuda:{local_rank % max(torch.cuda.device_count(), 1)}"
