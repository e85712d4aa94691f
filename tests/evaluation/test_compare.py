"""Paired comparison: closed forms, scipy's t test, coverage of the intervals, faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from compress.errors import RequestError
from compress.evaluation.compare import compare_items, compare_windows
from compress.evaluation.perplexity import Perplexity


def _perplexity(losses, weights=None, digest="d"):
    losses = torch.tensor(losses, dtype=torch.float64)
    weights = torch.ones_like(losses) if weights is None else torch.tensor(weights).double()
    value = math.exp(float((losses * weights).sum() / weights.sum()))
    return Perplexity(
        value=value,
        stderr=0.1,
        tokens=100,
        losses=losses,
        weights=weights,
        seqlen=10,
        digest=digest,
    )


def _items(values):
    return {str(i): float(v) for i, v in enumerate(values)}


def test_windows_are_compared_by_a_paired_t_test():
    rng = np.random.default_rng(0)
    before = rng.normal(3, 1, 40)
    after = before + rng.normal(0.02, 0.05, 40)
    found = compare_windows(_perplexity(before), _perplexity(after))
    test = stats.ttest_rel(after, before)
    assert found.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    value = math.exp(before.mean())
    assert found.ci95[0] == pytest.approx(value * math.expm1(interval.low))
    assert found.ci95[1] == pytest.approx(value * math.expm1(interval.high))
    assert found.difference == pytest.approx(math.exp(after.mean()) - value)
    assert found.n == 40


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_leaves_out_zero_exactly_where_p_is_small(seed):
    rng = np.random.default_rng(seed)
    before = rng.normal(3, 1, 12)
    after = before + rng.normal(0.03, 0.06, 12)
    found = compare_windows(_perplexity(before), _perplexity(after))
    low, high = found.ci95
    assert low <= found.difference <= high
    assert (low > 0 or high < 0) == (found.p < 0.05) == found.distinguishable


def test_pairing_sees_what_two_error_bars_hide():
    rng = np.random.default_rng(0)
    before = rng.normal(3, 1, 30)
    found = compare_windows(_perplexity(before), _perplexity(before + rng.normal(0.05, 0.02, 30)))
    assert found.distinguishable
    assert stats.ttest_ind(before, before + 0.05).pvalue > 0.5


def test_equal_models_and_one_window():
    same = compare_windows(_perplexity([3.0, 2.0, 4.0]), _perplexity([3.0, 2.0, 4.0]))
    assert (same.difference, same.ci95, same.p) == (0.0, (0.0, 0.0), 1.0)
    assert not same.distinguishable
    one = compare_windows(_perplexity([3.0]), _perplexity([3.5]))
    assert one.ci95 is None
    assert one.p is None
    assert set(one.as_receipt()) == {"difference", "n", "distinguishable"}


def test_other_windows_are_refused():
    with pytest.raises(RequestError, match="different windows"):
        compare_windows(_perplexity([3.0, 2.0]), _perplexity([3.0, 2.0], digest="e"))


def test_right_or_wrong_items_by_mcnemars_exact_test():
    # 3 turned right, 10 turned wrong, of 50: p = 2 * P(Binomial(13, 1/2) <= 3).
    before = [0] * 3 + [1] * 10 + [1] * 20 + [0] * 17
    after = [1] * 3 + [0] * 10 + [1] * 20 + [0] * 17
    found = compare_items(_items(before), _items(after))
    tail = sum(math.comb(13, k) for k in range(4)) / 2**13
    assert found.p == pytest.approx(2 * tail)
    assert found.difference == pytest.approx(-7 / 50)
    assert found.ci95[0] < -7 / 50 < found.ci95[1]
    assert not found.distinguishable


def test_no_changed_item_still_has_a_width():
    found = compare_items(_items([1, 0] * 10), _items([1, 0] * 10))
    assert found.difference == 0
    assert found.p == 1
    assert found.ci95[0] < 0 < found.ci95[1]
    assert found.ci95[1] < 0.15


def test_the_interval_stays_inside_its_range():
    found = compare_items(_items([0] * 6), _items([1] * 6))
    assert found.ci95[0] > 0
    assert found.ci95[1] == 1.0
    assert found.difference == 1.0


def test_graded_items_by_a_paired_t_test():
    rng = np.random.default_rng(1)
    before = rng.uniform(0, 1, 25)
    after = before - rng.uniform(0, 0.2, 25)
    found = compare_items(_items(before), _items(after))
    assert found.p == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert found.difference == pytest.approx((after - before).mean())


def test_intervals_cover_the_true_difference():
    # Pairs with P(right before) 0.7, and P(changed) 0.2 and 0.1 from right and from wrong.
    truth = -0.7 * 0.2 + 0.3 * 0.1
    covered = 0
    for trial in range(600):
        rng = np.random.default_rng(trial)
        before = rng.random(60) < 0.7
        changed = rng.random(60) < np.where(before, 0.2, 0.1)
        low, high = compare_items(_items(before), _items(before ^ changed)).ci95
        covered += low <= truth <= high
    assert 0.93 <= covered / 600 <= 0.985


def test_other_items_are_refused():
    with pytest.raises(RequestError, match="one model only"):
        compare_items(_items([1, 0]), _items([1, 0, 1]))
    with pytest.raises(RequestError, match="no items"):
        compare_items({}, {})


def test_plain_numbers_in_the_receipt():
    entry = compare_items(_items([1, 0, 1]), _items([1, 1, 0])).as_receipt()
    assert all(type(end) is float for end in entry["ci95"])
    assert type(entry["p"]) is float
