"""Statistics of repeated trials against scipy, definitions written slowly, and simulations."""

import itertools

import numpy as np
import pytest
from scipy import stats

from compress.numerics.trials import (
    chance_better,
    crossed,
    paired_interval,
    rank_sets,
    variance_shares,
    welch,
)


def test_welch_is_scipys():
    rng = np.random.default_rng(0)
    for n, m in ((5, 5), (3, 9), (2, 2)):
        a, b = rng.normal(1, 0.2, n), rng.normal(0.9, 2.0, m)
        want = stats.ttest_ind(a, b, equal_var=False)
        low, high = want.confidence_interval(0.95)
        found = welch(a.tolist(), b.tolist())
        assert found == pytest.approx((a.mean() - b.mean(), low, high, want.pvalue))


def test_welch_without_spread_and_with_one_seed():
    assert welch([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert welch([2.0, 2.0], [1.0, 1.0]) == (1.0, None, None, None)  # noise unknown, not absent
    assert paired_interval([2.0, 3.0], [1.0, 2.0]) == (1.0, None, None, None)
    assert paired_interval([2.0, 3.0], [2.0, 3.0]).p == 1.0
    assert welch([2.0], [1.0, 1.5]) == (0.75, None, None, None)
    assert welch([1e-150, 2e-150], [1e-150, 3e-150]).p == pytest.approx(
        welch([1.0, 2.0], [1.0, 3.0]).p
    )


def test_pairs_of_seeds_are_scipys_paired_test():
    rng = np.random.default_rng(1)
    a = rng.normal(size=6)
    b = a + rng.normal(0.2, 0.1, 6)
    want = stats.ttest_rel(a, b)
    low, high = want.confidence_interval(0.95)
    found = paired_interval(a.tolist(), b.tolist())
    assert found == pytest.approx(((a - b).mean(), low, high, want.pvalue))
    assert paired_interval([1.0], [3.0]) == (-2.0, None, None, None)


def slow_crossed(first, second, paired_seeds, rng, resamples):
    found = []
    for _ in range(resamples):
        s = rng.integers(0, len(first), len(first))
        r = s if paired_seeds else rng.integers(0, len(second), len(second))
        i = rng.integers(0, first.shape[1], first.shape[1])
        found.append(first[np.ix_(s, i)].mean() - second[np.ix_(r, i)].mean())
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("paired_seeds", [False, True])
def test_the_crossed_bootstrap_is_its_definition(paired_seeds):
    rng = np.random.default_rng(2)
    items = rng.normal(size=20)
    first = items + rng.normal(0.3, 0.2, (5, 1)) + rng.normal(0, 0.3, (5, 20))
    second = items + rng.normal(0.0, 0.2, (5, 1)) + rng.normal(0, 0.3, (5, 20))
    want = slow_crossed(first, second, paired_seeds, rng, 4000)
    found = crossed(first, second, resamples=8000, seed=3, paired_seeds=paired_seeds)
    width = want[1] - want[0]
    assert found == pytest.approx(tuple(want), abs=0.06 * width)
    again = crossed(first, second, resamples=8000, seed=3, paired_seeds=paired_seeds)
    assert again == found
    with pytest.raises(ValueError, match="20 items can't be paired with 4"):
        crossed(first, second[:, :4])


def test_intervals_cover_a_known_difference():
    """1000 studies of 5 seeds and 60 items: seeds, items and their crossing vary."""
    rng = np.random.default_rng(4)
    by_seed = by_both = 0
    for trial in range(1000):
        items = rng.normal(0, 1, 60)  # shared by both sets
        a, b = (items + rng.normal(0, 0.2, (5, 1)) + rng.normal(0, 0.5, (5, 60)) for _ in range(2))
        found = welch(a.mean(1), b.mean(1))
        by_seed += found.low <= 0 <= found.high
        if trial < 300:
            low, high = crossed(a, b, resamples=400, seed=trial)
            by_both += low <= 0 <= high
    assert 0.92 <= by_seed / 1000 <= 0.98
    # Percentiles of 5 seeds are a little narrow: simulated, 0.90 of a nominal 0.95.
    assert by_both / 300 >= 0.84


def test_chance_better_counts_pairs():
    a, b = [1.0, 2.0, 3.0], [2.0, 4.0]
    pairs = list(itertools.product(a, b))
    want = sum((x < y) + 0.5 * (x == y) for x, y in pairs) / len(pairs)
    assert chance_better(a, b, smaller=True) == pytest.approx(want)
    assert chance_better(a, b, smaller=False) == pytest.approx(1 - want)
    assert chance_better([1, 2, 3], [2, 1, 4], smaller=True, paired_seeds=True) == pytest.approx(
        2 / 3
    )


def test_ranks_that_cannot_be_told_apart_are_shared():
    rng = np.random.default_rng(5)
    trials = {
        "worst": 9 + rng.normal(0, 0.05, 5),
        "a": 1 + rng.normal(0, 0.05, 5),
        "b": 1 + rng.normal(0, 0.05, 5),
        "mid": 5 + rng.normal(0, 0.05, 5),
    }
    found = {r.name: (r.best, r.worst) for r in rank_sets(trials, smaller=True)}
    assert found == {"a": (1, 2), "b": (1, 2), "mid": (3, 3), "worst": (4, 4)}
    upside_down = {r.name: (r.best, r.worst) for r in rank_sets(trials, smaller=False)}
    assert upside_down == {"worst": (1, 1), "mid": (2, 2), "a": (3, 4), "b": (3, 4)}
    single = rank_sets({"a": [1.0], "b": [2.0]}, smaller=True)
    assert [(r.name, r.best, r.worst) for r in single] == [("a", 1, 2), ("b", 1, 2)]


def test_variance_is_split_as_the_anova_does():
    """Two factors, one with groups: sums of squares from effects written as indicator fits."""
    rng = np.random.default_rng(6)
    values = (
        rng.normal(0, 2, (4, 1, 1)) + rng.normal(0, 1, (1, 3, 1)) + rng.normal(0, 0.3, (4, 3, 5))
    )
    groups = ["x", "x", "y", "y"]

    def fitted(columns):
        design = np.stack([c.astype(float).ravel() for c in columns], 1)
        coef, *_ = np.linalg.lstsq(design, values.ravel(), rcond=None)
        return float(((design @ coef - values.mean()) ** 2).sum())

    index = np.indices(values.shape)
    data = [index[0] == i for i in range(4)]
    group = [np.isin(index[0], [i for i in range(4) if groups[i] == g]) for g in "xy"]
    method = [index[1] == i for i in range(3)]
    cell = [(index[0] == i) & (index[1] == j) for i in range(4) for j in range(3)]
    total = float(((values - values.mean()) ** 2).sum())
    noise = (total - fitted(cell)) / (12 * 4)
    want = {
        "data/group": (fitted(group) - noise) / (total + noise),
        "data": (fitted(data) - fitted(group) - 2 * noise) / (total + noise),
        "method": (fitted(method) - 2 * noise) / (total + noise),
    }
    found = variance_shares(values, ["data", "method"], {"data": groups})
    assert {k: found[k] for k in want} == pytest.approx(want)
    assert sum(found.values()) == pytest.approx(1)
    assert found["interaction"] < 0.02
    assert variance_shares(np.ones((2, 2)), ["data"], {})["seed"] == 1.0
    with pytest.raises(ValueError, match="two seeds"):
        variance_shares(np.ones((2, 1)), ["data"], {})


def test_pure_noise_is_the_seeds():
    rng = np.random.default_rng(7)
    found = variance_shares(rng.normal(size=(6, 4, 200)), ["data", "method"], {})
    assert found["seed"] > 0.97
