"""How rank goes with depth: exact sums, the formula, lists, and what can't be meant."""

import random

import pytest

from compress.errors import RequestError
from compress.lowrank.scratch.schedules import depth_shares, scheduled_ranks, uniform_ranks


def test_the_formula():
    up = depth_shares("linear-up", 0.2, 5, 0.5)
    assert up == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert depth_shares("linear-down", 0.2, 5, 0.5) == pytest.approx(up[::-1])
    assert depth_shares("linear-up", 0.2, 1, 0.5) == [0.2]
    assert depth_shares("linear-up", 0.9, 3, 0.5)[-1] == 1.0  # a share above 1 is full rank


@pytest.mark.parametrize("schedule", ["linear-up", "linear-down"])
@pytest.mark.parametrize("seed", range(20))
def test_sums_are_those_of_the_uniform_run(schedule, seed):
    draw = random.Random(seed)
    depth = draw.randint(1, 12)
    sides = [draw.choice([8, 96, 96, 100, 384]) for _ in range(depth * 3)]
    blocks = [number // 3 for number in range(len(sides))]
    ratio, slope = draw.uniform(0.05, 1.0), draw.uniform(0, 1)
    ranks = scheduled_ranks(sides, blocks, ratio, schedule, slope)
    assert sum(ranks) == sum(uniform_ranks(sides, ratio))
    assert all(1 <= rank <= side for rank, side in zip(ranks, sides))


def test_rank_rises_and_falls_with_depth():
    sides, blocks = [96] * 6, [0, 1, 2, 3, 4, 5]
    up = scheduled_ranks(sides, blocks, 0.25, "linear-up", 0.5)
    assert up == sorted(up)
    assert up[0] == 12
    assert up[-1] == 36
    assert scheduled_ranks(sides, blocks, 0.25, "linear-down", 0.5) == up[::-1]


def test_no_slope_and_one_block_are_uniform():
    sides = [10, 96, 33]
    plain = uniform_ranks(sides, 0.3)
    assert plain == [3, 29, 10]
    assert scheduled_ranks(sides, [0, 1, 2], 0.3, "linear-up", 0.0) == plain
    assert scheduled_ranks(sides, [0, 0, 0], 0.3, "linear-down", 0.5) == plain


def test_full_rank_stays_full():
    assert scheduled_ranks([8, 8], [0, 1], 1.0, "linear-up", 0.5) == [8, 8]


def test_a_list_says_each_block():
    ranks = scheduled_ranks([96, 96, 96, 96], [0, 0, 1, 1], 0.9, "0.5,0.125")
    assert ranks == [48, 48, 12, 12]


@pytest.mark.parametrize("schedule", ["linear", "0.5,x", "0.5,0", "1.5,0.5", "nan,0.5", ""])
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(RequestError, match="rank-schedule"):
        depth_shares(schedule, 0.25, 2)


def test_a_list_of_another_depth_is_refused():
    with pytest.raises(RequestError, match="has 3 shares, and the model 2 blocks"):
        depth_shares("0.5,0.25,0.1", 0.25, 2)
