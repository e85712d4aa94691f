"""Shares and counts: the worked value, exact totals, bounds, and what can't be reached."""

from __future__ import annotations

import math

import pytest
import torch

from compress.numerics import allocate, largest_remainder, project, to_counts


def linear_map(alpha: list[float], epsilon: float) -> torch.Tensor:
    a = torch.tensor(alpha, dtype=torch.float64)
    return (a - a.min()) / (a.max() - a.min()) * 2 * epsilon + 1 - epsilon


def test_the_worked_value_of_alphapruning():
    ratio = linear_map([2, 3, 4], 0.3)
    shares = allocate(ratio, [1, 1, 2], 0.5)
    expected = torch.tensor([0.325581, 0.465116, 0.604651], dtype=torch.float64)
    assert torch.allclose(shares, expected, atol=5e-7)
    assert shares.dtype == torch.float64


def bisected(ratio, sizes, sparsity, lo, hi):
    """The definition, slowly: halve an interval for eta 200 times."""
    left, right = 0.0, 1e12
    for _ in range(200):
        middle = (left + right) / 2
        total = sum(d * min(max(middle * r, lo), hi) for r, d in zip(ratio, sizes, strict=True))
        left, right = (middle, right) if total < sparsity * sum(sizes) else (left, middle)
    return [min(max(right * r, lo), hi) for r in ratio]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sparsity", [0.02, 0.3, 0.7, 0.98])
def test_allocate_is_the_definition_and_exact(seed, sparsity):
    g = torch.Generator().manual_seed(seed)
    n = 2 + seed * 5
    ratio = torch.rand(n, generator=g, dtype=torch.float64) * 3 + 0.01
    sizes = torch.randint(1, 10_000, (n,), generator=g)
    lo, hi = (0.0, 0.99) if seed % 2 else (0.01, 0.985)
    shares = allocate(ratio, sizes, sparsity, (lo, hi))
    slow = bisected(ratio.tolist(), sizes.tolist(), sparsity, lo, hi)
    assert torch.allclose(shares, torch.tensor(slow, dtype=torch.float64), atol=1e-9)
    assert float((shares * sizes).sum() / sizes.sum()) == pytest.approx(sparsity, rel=1e-12)
    assert float(shares.min()) >= lo
    assert float(shares.max()) <= hi
    counts = to_counts(shares, sizes, sparsity)
    assert int(counts.sum()) == round(sparsity * int(sizes.sum()))
    assert bool(((counts >= 0) & (counts <= sizes)).all())
    assert float((counts - shares * sizes).abs().max()) < 1 + 1e-6


def test_the_published_overshoot_is_clipped_and_made_up_elsewhere():
    # alpha.md 1.3: at a spread of 0.5 and 70 % the unbounded map asks for more than 1.
    ratio = linear_map([2.1, 2.2, 2.3, 4.3], 0.5)
    shares = allocate(ratio, [1, 1, 1, 1], 0.7, (0.0, 0.99))
    assert float(shares.max()) == 0.99
    assert float(shares.mean()) == pytest.approx(0.7, rel=1e-12)
    assert bool((shares[:3] > 0.7 * ratio[:3] / ratio.mean()).all())


def test_equal_ratios_are_uniform_and_order_is_irrelevant():
    sizes = torch.tensor([5, 70, 11, 900])
    assert torch.allclose(allocate([2.0] * 4, sizes, 0.6), torch.full((4,), 0.6).double())
    ratio = torch.tensor([1.0, 3.0, 0.5, 2.0])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(
        allocate(ratio, sizes, 0.6)[order], allocate(ratio[order], sizes[order], 0.6)
    )
    shares = allocate(ratio, sizes, 0.6)
    assert torch.equal(shares.argsort(), ratio.argsort())


def test_a_ratio_of_zero_stays_at_the_lower_bound():
    shares = allocate([0.0, 1.0], [1, 1], 0.4, (0.1, 0.9))
    assert shares.tolist() == pytest.approx([0.1, 0.7])


@pytest.mark.parametrize("bounds", [(0.2, 0.99), (0.0, 0.2)])
def test_the_ends_of_the_range_are_reachable(bounds):
    for sparsity in bounds:
        assert allocate([1.0, 5.0], [3, 4], sparsity, bounds).tolist() == [sparsity] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: allocate([1, 2], [1, 1], 0.995), ["upper bound 0.99", "0 to 0.99"]),
        (lambda: allocate([1, 2], [1, 1], 0.1, (0.2, 0.9)), ["lower bound 0.2", "0.2 to 0.9"]),
        (lambda: allocate([0, 1], [1, 1], 0.6, (0.0, 0.9)), ["upper bound 0.9", "0 to 0.45"]),
        (lambda: project([0, 1], [1, 1], 0.95, (0.0, 0.9)), ["upper bound 0.9", "0 to 0.9"]),
        (lambda: allocate([1, 2], [1, 1], 0.5, (0.6, 0.4)), ["bounds (0.6, 0.4)"]),
        (lambda: allocate([1, 2], [1, 1], 0.5, (-0.1, 0.4)), ["bounds (-0.1, 0.4)"]),
        (lambda: allocate([1, -2], [1, 1], 0.5), ["-2", "negative"]),
        (lambda: allocate([1, math.nan], [1, 1], 0.5), ["ratio", "finite"]),
        (lambda: allocate([1, 2], [1, 0], 0.5), ["sizes", "positive"]),
        (lambda: allocate([1, 2], [1], 0.5), ["sizes has 1", "2 needed"]),
        (lambda: allocate([], [], 0.5), ["n >= 1"]),
        (lambda: allocate([1, 2], [1, 1], math.nan), ["sparsity nan"]),
        (lambda: allocate([1, 2], [1, 1], 1.5), ["sparsity 1.5"]),
    ],
)
def test_what_cannot_hold_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("seed", range(5))
def test_project_shifts_and_clips_to_the_weighted_mean(seed):
    g = torch.Generator().manual_seed(seed)
    shares = torch.rand(12, generator=g, dtype=torch.float64) * 1.4 - 0.2
    sizes = torch.randint(1, 500, (12,), generator=g)
    moved = project(shares, sizes, 0.55, (0.05, 0.95))
    assert float((moved * sizes).sum() / sizes.sum()) == pytest.approx(0.55, rel=1e-12)
    inside = (moved > 0.05) & (moved < 0.95)
    shift = (moved - shares)[inside]
    assert float(shift.max() - shift.min()) < 1e-12
    # Outside, the clipped end is the one that the common shift passes.
    beyond = shares + shift[0]
    assert bool((beyond[moved == 0.05] <= 0.05).all() and (beyond[moved == 0.95] >= 0.95).all())
    assert torch.allclose(project(moved, sizes, 0.55, (0.05, 0.95)), moved, atol=1e-12)


def test_largest_remainder_breaks_ties_by_index_and_ignores_rounding_noise():
    assert largest_remainder(torch.tensor([0.5, 0.5, 0.5, 0.5]), 2).tolist() == [1, 1, 0, 0]
    exact = torch.tensor([3.0 - 1e-15, 2.5, 4.5], dtype=torch.float64)
    assert largest_remainder(exact, 10).tolist() == [3, 3, 4]
    capped = largest_remainder(torch.tensor([1.9, 1.6]), 3, upper=torch.tensor([1, 5]))
    assert capped.tolist() == [1, 2]
    with pytest.raises(ValueError, match="can't sum to 9"):
        largest_remainder(torch.tensor([1.2, 1.3]), 9)


def test_shares_with_another_mean_have_no_counts():
    with pytest.raises(ValueError, match="can't sum to 70"):
        to_counts(torch.tensor([0.5, 0.5]), torch.tensor([50, 50]), 0.7)
