"""ADMM: the recursion by its definition, the schedule, closed forms, exact counts, repairs."""

import pytest
import torch
from layers import correlated, error, gaussian

from compress.errors import RequestError, RunError
from compress.sparsity import admm as module
from compress.sparsity.admm import admm, schedule
from compress.sparsity.masks import magnitude_mask, wanda_mask_counts
from compress.sparsity.sparsegpt import sparsegpt


def textbook(weight, hessian, count, damp, iterations, choosing):
    """The paper's recursion with the whole inverse, masks by sorting."""
    scale = hessian.diagonal().sqrt()
    h = hessian / scale / scale[:, None] + damp * torch.eye(len(hessian), dtype=torch.float64)
    rho = 1 + damp
    dense = weight * scale
    w, u = dense.clone(), torch.zeros_like(dense)
    for t in range(iterations):
        if t < choosing:
            dropped = round(count * (1 - (1 - (t + 1) / choosing) ** 3))
            order = (w + u).abs().flatten().argsort(stable=True)
            mask = torch.ones(weight.numel())
            mask[order[:dropped]] = 0
            mask = mask.view_as(weight)
        z = (w + u) * mask
        u = u + w - z
        w = (dense @ h + rho * (z - u)) @ torch.linalg.inv(
            h + rho * torch.eye(len(h), dtype=torch.float64)
        )
    return (w + u) * mask / scale


@pytest.mark.parametrize("damp", [0.01, 0.3])
def test_equal_to_the_recursion(damp):
    x, weight = correlated(90, 24), gaussian(7, 24)
    result = admm(weight, x.T @ x, 101, damp=damp, iterations=9, choosing=6)
    expected = textbook(weight, x.T @ x, 101, damp, 9, 6)
    assert torch.allclose(result.weight, expected, rtol=1e-8, atol=1e-10)


def test_the_schedule_is_cubic_and_ends_at_the_count():
    assert schedule(1000, 4) == [578, 875, 984, 1000]
    assert len(schedule(5)) == 15
    assert schedule(7)[-1] == 7
    assert schedule(0, 3) == [0, 0, 0]


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_every_step_drops_what_the_schedule_says(pattern, monkeypatch):
    seen = []
    choose = module.choose

    def look(score, count, pattern):
        seen.append(int((~choose(score, count, pattern)).sum()))
        return choose(score, count, pattern)

    monkeypatch.setattr(module, "choose", look)
    x, weight = correlated(90, 24), gaussian(8, 24)
    admm(weight, x.T @ x, 96, pattern)
    assert seen == schedule(96, 15)
    assert seen == sorted(seen)
    assert seen[0] < 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [1e-3, 1.0, 37.0])
def test_a_spherical_hessian_is_magnitude_and_leaves_survivors_bit_equal(dtype, c):
    weight = gaussian(24, 60).to(dtype)
    result = admm(weight, c * torch.eye(60), 900)
    # Ties of short dtypes may fall otherwise by rounding: what is dropped is as small, no more.
    dropped = weight[~result.mask].abs().sort().values
    assert torch.equal(dropped, weight[~magnitude_mask(weight, 900)].abs().sort().values)
    assert torch.equal(result.weight, torch.where(result.mask, weight, 0))
    assert result.weight.dtype == dtype
    assert result.note is None


def test_a_diagonal_hessian_is_wandas_score_over_the_whole_matrix():
    weight, norm = gaussian(9, 20), torch.rand(20, generator=torch.Generator().manual_seed(1))
    result = admm(weight, torch.diag(norm.double() ** 2), 100)
    assert torch.equal(result.mask, magnitude_mask(weight * norm, 100))
    assert torch.equal(result.weight, weight * result.mask)


def test_the_error_is_below_those_of_sparsegpt_and_wanda():
    for seed in range(3):
        x, weight = correlated(500, 96, seed), gaussian(48, 96, seed + 10)
        count = round(0.7 * weight.numel())
        found = [
            float(error(weight, w, x).sum())
            for w in (
                admm(weight, x.T @ x, count).weight,
                sparsegpt(weight, x.T @ x, count).weight,
                weight * wanda_mask_counts(weight, x.norm(dim=0), count),
            )
        ]
        assert found == sorted(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_are_exactly_the_count(dtype):
    x = correlated(200, 40).float()
    for weight in ((gaussian(11, 40) * 0.02).to(dtype), torch.full((11, 40), 0.1, dtype=dtype)):
        for count in (0, 1, 270, 440):
            result = admm(weight, x.T @ x, count)
            assert int((~result.mask).sum()) == count
            assert torch.equal(result.weight == 0, ~result.mask)


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 4)])
def test_patterns_are_exact(pattern):
    n, m = pattern
    x, weight = correlated(300, 64), gaussian(9, 64)
    result = admm(weight, x.T @ x, None, pattern)
    assert bool((result.mask.reshape(9, -1, m).sum(-1) == n).all())
    assert torch.equal(result.weight == 0, ~result.mask)


def test_dead_inputs_go_first_and_never_beyond_the_count():
    x, weight = correlated(100, 16), gaussian(4, 16)
    x[:, [3, 9]] = 0
    result = admm(weight, x.T @ x, 20)
    assert not bool(result.mask[:, [3, 9]].any())
    assert "2 of 16 inputs are never active" in result.note
    few = admm(weight, x.T @ x, 3)  # fewer than the eight dead weights: the smallest three
    assert torch.equal(few.mask[:, [3, 9]], magnitude_mask(weight[:, [3, 9]], 3))
    assert torch.equal(few.weight[few.mask], weight[few.mask])
    alone = admm(weight, torch.zeros(16, 16), 30)
    assert torch.equal(alone.weight, weight * magnitude_mask(weight, 30))


def test_damping_that_has_to_grow_is_told_and_a_hopeless_hessian_clamped():
    x = correlated(100, 16)
    correlation = x.T @ x / torch.outer(x.norm(dim=0), x.norm(dim=0))
    result = admm(gaussian(4, 16), correlation - 0.02 * torch.eye(16), 30, damp=1e-4)
    assert "instead of 0.0001" in result.note
    assert bool(result.weight.isfinite().all())
    hopeless = admm(gaussian(4, 16), torch.eye(16) - 50 * (1 - torch.eye(16)), 30, name="q")
    assert "eigenvalues clamped" in hopeless.note
    assert int((hopeless.weight == 0).sum()) == 30


def test_inputs_are_only_read():
    x, weight = correlated(50, 12), gaussian(3, 12)
    hessian = x.T @ x
    before = weight.clone(), hessian.clone()
    admm(weight, hessian, 18)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


@pytest.mark.parametrize(
    ("kind", "call", "words"),
    [
        (RequestError, lambda w, h: admm(w, h, None, (2, 4), name="up"), "`up` has 10 inputs"),
        (RunError, lambda w, h: admm(w, h * torch.nan, 5, name="up"), "`up`.*not finite"),
        (ValueError, lambda w, h: admm(w, h[:3, :3], 5), "Hessian of"),
        (ValueError, lambda w, h: admm(w, h, 41), "41 of 40"),
        (ValueError, lambda w, h: admm(w, h, 7, (1, 2)), "drops 20 weights, not 7"),
    ],
)
def test_bad_requests_are_named(kind, call, words):
    with pytest.raises(kind, match=words):
        call(gaussian(4, 10), torch.eye(10))
