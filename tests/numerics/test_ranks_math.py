"""Who does what in a team: nothing left out, nothing done twice, however many ranks."""

import socket

import pytest
import torch

from compress import launcher
from compress.numerics import lifeline
from compress.numerics.ranks import ALONE, CHUNKS, Team, chunks, joined, shares


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 9, 20, 128])
def test_chunks_cover_all_batches_in_order(count):
    cut = chunks(count)
    assert [i for part in cut for i in part] == list(range(count))
    assert len(cut) == min(CHUNKS, count)
    assert max(map(len, cut), default=0) - min(map(len, cut), default=0) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 11])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 20, 128])
def test_ranks_run_whole_chunks_contiguously_and_all_of_them(count, size):
    starts = {part.start for part in chunks(count)} | {count}
    found = []
    for rank in range(size):
        team = Team()
        team.rank, team.size = rank, size
        own = team.batches(count)
        assert not own or {own.start, own.stop} <= starts
        found += own
    assert found == list(range(count))


def test_shares_are_balanced_by_cost():
    costs = [1.0, 1, 1, 9, 3, 3, 3, 3]
    parts = shares(costs, 4)
    assert [i for part in parts for i in part] == list(range(8))
    assert max(sum(costs[i] for i in part) for part in parts) <= 9
    assert shares([], 3) == [range(0)] * 3
    assert shares([0.0, 0.0], 2) == [range(2), range(2, 2)]


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    assert launcher.world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")  # a scheduler's, without the rest
    monkeypatch.setenv("RANK", "3")
    assert (launcher.world_size(), launcher.rank()) == (1, 0)
    with joined("cuda") as team:
        assert team is ALONE
        assert team.first
        assert team.from_first(lambda: 3) == 3
        assert team.gather("a") == ["a"]
        assert team.device("cuda") == "cuda"
        assert not torch.distributed.is_initialized()


def test_the_door_of_rank_0_turns_strangers_away():
    server, address = lifeline.listen("127.0.0.1")
    assert server.getsockname()[0] == "127.0.0.1"  # and not every interface
    stranger = socket.create_connection((address.host, address.port))
    stranger.sendall(b"guess 1\n")
    friend = lifeline.connect(address, 1)
    links = lifeline.accept(server, address.token, 2)
    assert list(links) == [1]
    assert stranger.recv(8) == b""
    for link in (stranger, *friend.values(), *links.values()):
        link.close()
