"""ALPS: closed forms, the floor it never falls under, exact counts, repairs."""

from itertools import combinations

import pytest
import torch
from layers import correlated, error, gaussian

from compress.errors import RequestError
from compress.sparsity.admm import admm
from compress.sparsity.alps import alps
from compress.sparsity.masks import magnitude_mask
from compress.sparsity.refit import refit_exact
from compress.sparsity.sparsegpt import sparsegpt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [1e-3, 1.0, 37.0])
def test_a_spherical_hessian_is_magnitude_and_leaves_survivors_bit_equal(dtype, c):
    weight = gaussian(24, 60).to(dtype)
    result = alps(weight, c * torch.eye(60), 900)
    dropped = weight[~result.mask].abs().sort().values
    assert torch.equal(dropped, weight[~magnitude_mask(weight, 900)].abs().sort().values)
    assert torch.equal(result.weight, torch.where(result.mask, weight, 0))
    assert result.weight.dtype == dtype
    assert result.note is None


def test_the_error_is_below_those_of_admm_and_sparsegpt():
    for seed in range(3):
        x, weight = correlated(500, 96, seed), gaussian(48, 96, seed + 10)
        count = round(0.7 * weight.numel())
        found = [
            float(error(weight, method(weight, x.T @ x, count).weight, x).sum())
            for method in (alps, admm, sparsegpt)
        ]
        assert found == sorted(found)


def test_the_masks_of_small_rows_lie_well_below_the_largest_weights_and_above_the_best():
    found, best, plain = 0.0, 0.0, 0.0
    for seed in range(8):
        x, weight = correlated(60, 8, seed), gaussian(1, 8, seed + 20)
        every = [
            torch.tensor([[j in kept for j in range(8)]]) for kept in combinations(range(8), 4)
        ]
        refitted = [refit_exact(weight, keep, x.T @ x).weight for keep in every]
        best += min(float(error(weight, w, x)) for w in refitted)
        found += float(error(weight, alps(weight, x.T @ x, 4).weight, x))
        mask = magnitude_mask(weight * x.norm(dim=0), 4)
        plain += float(error(weight, refit_exact(weight, mask, x.T @ x).weight, x))
    assert best <= found * (1 + 1e-6)
    assert found < 0.7 * plain


def test_never_worse_than_the_largest_scaled_weights_refined():
    for seed in range(4):
        x, weight = correlated(60, 32, seed), gaussian(5, 32, seed)
        plain = magnitude_mask(weight * x.norm(dim=0), 96)
        floor = refit_exact(weight, plain, x.T @ x).weight
        found = alps(weight, x.T @ x, 96, iterations=3, refinements=100).weight
        damped = x.T @ x + 0.01 * torch.diag((x.T @ x).diagonal())
        cost = [float((((w - weight) @ damped) * (w - weight)).sum()) for w in (found, floor)]
        assert cost[0] <= cost[1] * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_are_exactly_the_count(dtype):
    x = correlated(200, 40).float()
    for weight in ((gaussian(11, 40) * 0.02).to(dtype), torch.full((11, 40), 0.1, dtype=dtype)):
        for count in (0, 1, 270, 440):
            result = alps(weight, x.T @ x, count)
            assert int((~result.mask).sum()) == count
            assert torch.equal(result.weight == 0, ~result.mask)


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 4)])
def test_patterns_are_exact(pattern):
    n, m = pattern
    x, weight = correlated(300, 64), gaussian(9, 64)
    result = alps(weight, x.T @ x, None, pattern)
    assert bool((result.mask.reshape(9, -1, m).sum(-1) == n).all())
    assert torch.equal(result.weight == 0, ~result.mask)


def test_dead_inputs_go_first_and_never_beyond_the_count():
    x, weight = correlated(100, 16), gaussian(4, 16)
    x[:, [3, 9]] = 0
    result = alps(weight, x.T @ x, 20)
    assert not bool(result.mask[:, [3, 9]].any())
    assert "2 of 16 inputs are never active" in result.note
    few = alps(weight, x.T @ x, 3)
    assert torch.equal(few.mask[:, [3, 9]], magnitude_mask(weight[:, [3, 9]], 3))
    assert torch.equal(few.weight[few.mask], weight[few.mask])


def test_the_scale_of_the_hessian_is_irrelevant():
    x, weight = correlated(100, 40).float(), gaussian(6, 40).float()
    one, two = (alps(weight, x.T @ x * c, 120) for c in (1, 2.0**40))
    assert torch.equal(one.weight, two.weight)


def test_a_width_that_the_pattern_doesnt_divide_is_named():
    with pytest.raises(RequestError, match="`up` has 10 inputs"):
        alps(gaussian(4, 10), torch.eye(10), None, (2, 4), name="up")
