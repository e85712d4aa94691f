"""RIA: the definition by loops, exact counts, invariances, patterns."""

import pytest
import torch
from layers import gaussian

from compress.errors import RequestError
from compress.sparsity.ria import ria_mask, ria_score


def slow_score(weight, norm, power):
    rows, columns = range(len(weight)), range(len(weight[0]))
    score = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for i in rows:
        for j in columns:
            size = abs(float(weight[i, j]))
            by_column = size / sum(abs(float(weight[k, j])) for k in rows)
            by_row = size / sum(abs(float(weight[i, k])) for k in columns)
            score[i, j] = (by_column + by_row) * float(norm[j]) ** power
    return score


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_score_is_the_definition(power):
    weight, norm = gaussian(6, 9), torch.rand(9, generator=torch.Generator().manual_seed(3)) + 0.1
    expected = slow_score(weight, norm, power)
    assert torch.allclose(ria_score(weight, norm, power), expected, rtol=1e-6)
    dropped = ria_mask(weight, norm, 20, power=power).logical_not().flatten().nonzero().flatten()
    assert sorted(dropped.tolist()) == sorted(expected.flatten().argsort()[:20].tolist())


def test_half_the_power_is_the_default():
    weight, norm = gaussian(6, 9), torch.rand(9) + 0.1
    assert torch.equal(ria_score(weight, norm), ria_score(weight, norm, 0.5))


def test_the_scale_of_weights_and_inputs_is_irrelevant():
    weight, norm = gaussian(12, 20), torch.rand(20, generator=torch.Generator().manual_seed(1))
    mask = ria_mask(weight, norm, 150)
    assert torch.equal(ria_mask(weight * 1e-3, norm * 1e4, 150), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_are_exactly_the_count_ties_and_zero_rows_included(dtype):
    constant = torch.full((10, 12), 0.3, dtype=dtype)
    mask = ria_mask(constant, torch.ones(12), 31)
    assert (~mask).flatten().nonzero().flatten().tolist() == list(range(31))  # ties by index
    weight = gaussian(10, 12).to(dtype)
    weight[2] = 0
    weight[:, 5] = 0
    score = ria_score(weight, torch.ones(12))
    assert bool(score.isfinite().all())
    assert bool((score[2] == 0).all())
    for count in (0, 1, 77, 120):
        assert int((~ria_mask(weight, torch.ones(12), count)).sum()) == count


def test_patterns_keep_the_best_of_each_group():
    weight, norm = gaussian(5, 16), torch.rand(16, generator=torch.Generator().manual_seed(2))
    groups = ria_mask(weight, norm, None, (2, 4)).reshape(5, 4, 4)
    score = slow_score(weight, norm, 0.5).reshape(5, 4, 4)
    assert bool((groups.sum(-1) == 2).all())
    best = score.masked_fill(~groups, torch.inf).min(-1).values
    assert bool((best > score.masked_fill(groups, -torch.inf).max(-1).values).all())


def test_bad_requests_are_named():
    weight = gaussian(4, 10)
    with pytest.raises(RequestError, match="`up` has 10 inputs"):
        ria_mask(weight, torch.ones(10), None, (2, 4), name="up")
    with pytest.raises(ValueError, match="41 of 40"):
        ria_mask(weight, torch.ones(10), 41)
    with pytest.raises(ValueError, match="not finite"):
        ria_score(weight, torch.full((10,), torch.nan))
