"""Ranks by budget: against brute force, and what every rule promises."""

import itertools

import pytest
import torch

from compress.lowrank.allocation import (
    DENSE,
    Item,
    Unreachable,
    energy,
    energy_within,
    greedy,
    knapsack,
    steps,
    total_error,
    total_kept,
    uniform,
    worthwhile,
)


def made(shapes, seed=0, ranks=None):
    """Items of layers [out, in] with energies that fall like a power."""
    draw = torch.Generator().manual_seed(seed)
    items = []
    for out, into in shapes:
        side = min(out, into)
        power = 0.5 + 2 * float(torch.rand(1, generator=draw))
        values = torch.arange(1, side + 1, dtype=torch.float64) ** -power
        values *= 1 + 0.3 * torch.rand(side, generator=draw, dtype=torch.float64)
        values = values.sort(descending=True).values
        lost = 1 - values.cumsum(0) / values.sum()
        own = ranks or range(1, out * into // (out + into))
        own = tuple(r for r in own if r * (out + into) < out * into)
        errors = tuple(float(lost[r - 1].clamp(min=0)) for r in own)
        items.append(Item(out * into, out + into, own, errors))
    return items


def best(items, budget):
    """The definition: every choice."""
    choices = itertools.product(*[(*item.ranks, DENSE) for item in items])
    return min(
        (c for c in choices if total_kept(items, c) <= budget),
        key=lambda c: total_error(items, c),
        default=None,
    )


SHAPES = [(16, 16), (40, 24), (24, 64)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [0.15, 0.3, 0.5, 0.63, 0.8, 0.9, 0.97, 1.0])
def test_knapsack_is_brute_force(keep, seed):
    items = made(SHAPES, seed, ranks=range(1, 9))
    budget = int(keep * sum(item.dense for item in items))
    wanted = best(items, budget)
    if wanted is None:
        with pytest.raises(Unreachable):
            knapsack(items, budget)
        return
    found = knapsack(items, budget)
    assert total_kept(items, found) <= budget
    assert total_error(items, found) == pytest.approx(
        total_error(items, wanted), rel=1e-12, abs=1e-15
    )


def test_knapsack_keeps_a_layer_dense_where_that_is_the_better_bargain():
    hard, soft = Item(100, 20, (4,), (0.9,)), Item(100, 20, (4,), (0.1,))
    assert knapsack([hard, soft], 180) == [DENSE, 4]


def test_a_budget_too_fine_for_whole_steps_is_kept_and_nearly_spent():
    items = made([(1009, 1013), (2003, 997), (769, 3001)], ranks=range(8, 600, 8))
    budget = int(0.6 * sum(item.dense for item in items))
    found = knapsack(items, budget)
    assert 0.97 * budget < total_kept(items, found) <= budget
    assert total_error(items, found) <= total_error(items, greedy(items, budget)) + 1e-12


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.9])
def test_better_rules_lose_less(keep):
    items = made([(32, 32), (64, 32), (32, 96), (48, 48)], seed=3)
    budget = int(keep * sum(item.dense for item in items))
    even = total_error(items, uniform(items, keep))
    assert total_error(items, greedy(items, budget)) <= even + 1e-12
    assert total_error(items, knapsack(items, budget)) <= total_error(items, greedy(items, budget))


@pytest.mark.parametrize("rule", [greedy, knapsack])
def test_more_budget_never_loses_more(rule):
    items = made(SHAPES, seed=1)
    whole = sum(item.dense for item in items)
    errors = [total_error(items, rule(items, int(k / 20 * whole))) for k in range(4, 21)]
    if rule is knapsack:
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(errors))
    assert errors[0] > errors[-1] == 0


def test_uniform_keeps_the_share_of_each_layer():
    items = made([(64, 64), (64, 256)])
    for item, rank in zip(items, uniform(items, 0.5), strict=True):
        assert rank == int(0.5 * item.dense / item.cost)
    assert uniform(items, 1.0) == [DENSE, DENSE]


def test_energy_is_the_least_rank_that_keeps_it():
    items = made(SHAPES)
    for item, rank in zip(items, energy(items, 0.9), strict=True):
        if rank == DENSE:
            assert item.errors[-1] > 0.1
        else:
            assert item.error(rank) <= 0.1
            assert rank == item.ranks[0] or item.error(rank - 1) > 0.1


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_one_level_of_energy_keeps_a_budget(keep):
    items = made(SHAPES, seed=2)
    whole = sum(item.dense for item in items)
    ranks, level = energy_within(items, keep)
    assert total_kept(items, ranks) <= keep * whole
    assert total_kept(items, energy(items, min(level + 0.02, 1.0))) > keep * whole
    assert ranks == energy(items, level)


def test_weights_of_errors_move_rank():
    items = made([(32, 32), (32, 32)], seed=4)
    heavy = [Item(i.dense, i.cost, i.ranks, i.errors, w) for i, w in zip(items, (1.0, 100.0))]
    plain, moved = (knapsack(each, 1200) for each in (items, heavy))
    assert moved[1] > plain[1] or moved[1] == DENSE


def test_what_cannot_be_kept_is_said_with_the_least_that_can():
    items = [Item(100, 20, (2, 3), (0.5, 0.3)), Item(50, 15, (2,), (0.4,))]
    for rule in (greedy, knapsack):
        with pytest.raises(Unreachable) as caught:
            rule(items, 60)
        assert caught.value.least == pytest.approx(70 / 150)
    with pytest.raises(Unreachable):
        uniform(items, 0.4)


@pytest.mark.parametrize(
    ("most", "side", "step", "least", "ranks"),
    [
        (31, 64, None, 1, (4, 8, 12, 16, 20, 24, 28)),
        (31, 64, 8, 1, (8, 16, 24)),
        (31, 64, 8, 9, (16, 24)),
        (31, 64, 1, 29, (29, 30, 31)),
        (5, 12, 8, 1, (5,)),
        (0, 2, None, 1, ()),
        (5, 12, 8, 6, ()),
        (100, 200, None, 1, tuple(range(8, 101, 8))),
    ],
)
def test_ranks_are_multiples_up_to_the_last_that_saves(most, side, step, least, ranks):
    assert steps(most, side, step, least) == ranks


def test_ranks_that_hardly_save_are_not_offered():
    assert worthwhile((8, 16, 24, 28), 128, 4096) == (8, 16, 24, 28)
    assert worthwhile((8, 16, 24, 30), 128, 4096) == (8, 16, 24)
    assert worthwhile((31,), 128, 4096) == (31,)
