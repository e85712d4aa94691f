"""Sums over chunks: the same bits however many ranks share the chunks between them."""

import queue
import threading

import pytest
import torch

from compress.calibration.statistics import ColumnMoments, ColumnNorms, Gram
from compress.numerics.ranks import ALONE, Team, chunks


class Threads(Team):
    """Ranks that are threads of this process."""

    def __init__(self, rank, size, mail, gate):
        self.rank, self.size, self._mail, self._gate = rank, size, mail, gate

    def send(self, tensor, to):
        self._mail[self.rank, to].put(tensor.clone())

    def receive(self, into, source):
        into.copy_(self._mail[source, self.rank].get(timeout=20))

    def broadcast(self, tensor, source):
        if self.rank == source:
            for to in set(range(self.size)) - {source}:
                self.send(tensor, to)
        else:
            self.receive(tensor, source)

    def gather(self, value):
        self._mail["board"][self.rank] = value
        self._gate.wait(20)
        found = [self._mail["board"][rank] for rank in range(self.size)]
        self._gate.wait(20)
        return found


def in_threads(size, work):
    mail = {(a, b): queue.Queue() for a in range(size) for b in range(size)} | {"board": {}}
    gate, found = threading.Barrier(size), {}

    def call(rank):
        found[rank] = work(Threads(rank, size, mail, gate))

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[rank] for rank in range(size)]


def batches(count):
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.randint(-3, 4, (count, 1, 1), generator=generator)
    return list(torch.randn(count, 5, 6, generator=generator) * scale)


def observed(kind, team, all_batches, holders=None):
    """The statistic of all batches, of which each rank has seen its own."""
    statistic = kind("x")
    own = team.batches(len(all_batches))
    for chunk in chunks(len(all_batches)):
        if chunk[0] in own:
            statistic.end_chunk(hold=not team.first)
            for index in chunk:
                if holders is None or index in holders:
                    statistic.add(all_batches[index])
    found = team.gather(statistic.sums.seen() if statistic.rows else None)
    device = torch.device("cpu")
    statistic.sums.chain(team, found, device)
    statistic.sums.share(team, found, device)
    return statistic.rows, statistic.value()


@pytest.mark.parametrize("kind", [ColumnNorms, ColumnMoments, Gram])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_any_number_of_ranks_gives_the_bits_of_one(kind, count):
    data = batches(count)
    rows, alone = observed(kind, ALONE, data)
    assert rows == 5 * count
    for size in (2, 3, 4, 9):
        for found_rows, found in in_threads(size, lambda team: observed(kind, team, data)):
            assert found_rows == rows
            assert all(torch.equal(a, b) for a, b in zip(alone, found))


@pytest.mark.parametrize("holders", [{0}, {6}, {2, 3, 5}])
def test_ranks_that_saw_nothing_take_part(holders):
    # An expert that no token of a rank's batches was routed to.
    data = batches(7)
    rows, alone = observed(Gram, ALONE, data, holders)
    for found in in_threads(4, lambda team: observed(Gram, team, data, holders)):
        assert found[0] == rows == 5 * len(holders)
        assert torch.equal(alone, found[1])


def test_chunks_are_added_one_to_the_next():
    # 1 + 1e-8 is 1 in float32, but the chunk of small numbers counts as a whole.
    gram = Gram()
    for chunk in ([1.0], [1e-4] * 4096):
        gram.end_chunk()
        for value in chunk:
            gram.add(torch.full((1, 1), value))
    assert gram.value().item() == pytest.approx(1 + 4096e-8, rel=1e-7)
    held = Gram()
    for chunk in ([1.0], [1e-4] * 4096):
        held.end_chunk(hold=True)
        for value in chunk:
            held.add(torch.full((1, 1), value))
    assert torch.equal(held.value(), gram.value())
