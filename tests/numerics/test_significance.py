from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from compress.numerics.significance import Test as Difference
from compress.numerics.significance import holm, matched, mcnemar, mean_of, paired, unpaired


def test_the_paired_test_is_scipys():
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    b = a + rng.normal(0.1, 0.3, size=40)
    test = paired(a.tolist(), b.tolist())
    assert test.p == pytest.approx(stats.ttest_rel(b, a).pvalue, rel=1e-9)
    assert test.difference == pytest.approx((b - a).mean())
    assert test.stderr == pytest.approx(stats.sem(b - a))


def test_pairs_without_spread_and_too_few_pairs():
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired([1.0, 2.0], [1.5, 2.5]).p == 0.0
    assert paired([1.0], [2.0]) is None
    with pytest.raises(ValueError, match="can't be paired"):
        paired([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 12)])
def test_mcnemar_is_the_binomial_test(gained, lost):
    want = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(want, rel=1e-9)


def test_items_are_matched_by_key_not_by_order():
    first = {str(i): float(i < 50) for i in range(100)}
    second = {str(i): float(i < 40 or i == 99) for i in reversed(range(100))}
    test = matched(first, second)
    assert test.difference == pytest.approx(-0.09)
    assert test.p == pytest.approx(mcnemar(1, 10))
    assert matched(first, {"other": 1.0}) is None
    assert matched({}, {}) is None
    scores = matched({"a": 0.5, "b": 0.25, "c": 1}, {"a": 0.4, "b": 0.0, "c": 1})
    assert scores.p == pytest.approx(paired([0.5, 0.25, 1], [0.4, 0.0, 1]).p)


def test_unpaired_is_the_normal_test():
    test = unpaired(10.0, 0.3, 11.0, 0.4)
    assert test.stderr == pytest.approx(0.5)
    assert test.p == pytest.approx(2 * stats.norm.sf(2.0))
    assert unpaired(1.0, None, 2.0, 0.1) is None
    assert unpaired(1.0, 0.0, 1.0, 0.0).p == 1.0


def test_a_mean_of_tasks_has_the_error_of_the_mean():
    parts = [Difference(0.1, 0.03, 0.0, True), Difference(0.0, 0.04, 1.0, True)]
    mean = mean_of(parts)
    assert (mean.difference, mean.stderr) == pytest.approx((0.05, 0.025))
    assert mean.p == pytest.approx(math.erfc(2 / math.sqrt(2)))
    assert mean.paired
    assert mean_of(parts[:1]) is parts[0]
    assert not mean_of([parts[0], parts[1]._replace(paired=False)]).paired


def slow_holm(p):
    """An adjusted p is the least level at which Holm's procedure rejects it."""
    m = len(p)
    out = []
    for target in range(m):
        worst = 0.0
        for rank, i in enumerate(sorted(range(m), key=lambda j: (p[j], j))):
            worst = max(worst, (m - rank) * p[i])
            if i == target:
                break
        out.append(min(1.0, worst))
    return out


def test_holm():
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = rng.random(rng.integers(1, 8)).round(1).tolist()
        assert holm(p) == pytest.approx(slow_holm(p))
