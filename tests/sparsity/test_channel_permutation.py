"""The order of channels: against every order there is, never worse, and the same twice."""

import itertools

import pytest
import torch

from compress.sparsity.channel_permutation import channel_order, retained
from compress.sparsity.masks import nm_mask


def scores(rows, columns, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=g) ** 3 * torch.logspace(0, -2, columns)


def best_of_all(score, n, m):
    """Every split of 2 m columns into two groups."""
    columns = range(2 * m)
    return max(
        retained(score[:, [*one, *(c for c in columns if c not in one)]], n, m)
        for one in itertools.combinations(columns, m)
    )


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
def test_retained_is_what_the_mask_keeps(n, m):
    score = scores(7, 24)
    assert retained(score, n, m) == pytest.approx(float((score * nm_mask(score, n, m)).sum()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4)])
def test_it_is_near_the_best_order_and_never_worse_than_none(seed, n, m):
    score = scores(6, 2 * m, seed)
    order = channel_order(score, n, m, rounds=4)
    assert order.sort().values.tolist() == list(range(2 * m))
    found, best = retained(score[:, order], n, m), best_of_all(score, n, m)
    assert retained(score, n, m) <= found <= best * (1 + 1e-6)
    assert found > 0.97 * best


def test_columns_in_the_worst_order_gain():
    strong = torch.cat([torch.ones(10, 32), torch.full((10, 32), 0.01)], 1)  # 4 strong in a group
    assert retained(strong, 2, 4) == pytest.approx(161.6)
    assert retained(strong[:, channel_order(strong, 2, 4)], 2, 4) == pytest.approx(320)


def test_the_assignment_adds_to_the_deal(monkeypatch):
    score = scores(200, 64)
    dealt = retained(score[:, channel_order(score, 2, 4, rounds=0)], 2, 4)
    one, three = (retained(score[:, channel_order(score, 2, 4, rounds=k)], 2, 4) for k in (1, 3))
    assert retained(score, 2, 4) <= dealt < one <= three


def test_equal_scores_and_single_groups_stay_and_two_calls_agree():
    assert channel_order(torch.ones(5, 16), 2, 4).tolist() == list(range(16))
    assert channel_order(scores(5, 4), 2, 4).tolist() == list(range(4))
    score = scores(3000, 48)  # more rows than the assignment looks at
    assert torch.equal(channel_order(score, 2, 4), channel_order(score.clone(), 2, 4))
    assert retained(score[:, channel_order(score, 2, 4)], 2, 4) > retained(score, 2, 4)
