"""Gram eigenvalues: equal to float64 singular values, ranks right, any scale, any shape."""

from __future__ import annotations

import pytest
import torch

from compress.numerics import gram_eigenvalues
from compress.numerics.eigen import single_error


def reference(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(weight.double()).square().flip(-1)


def with_singular_values(values: torch.Tensor, out: int, seed: int = 0) -> torch.Tensor:
    """[out, n] float64 with the given singular values."""
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    left = torch.linalg.qr(torch.randn(out, n, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    return left * values @ right


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (1, 7), (7, 1), (3, 5, 30, 20)])
def test_equal_to_singular_values(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = gram_eigenvalues(weight)
    expected = reference(weight)
    assert values.dtype == torch.float64
    assert values.shape == expected.shape
    assert bool((values.diff(dim=-1) >= 0).all())
    assert float(((values - expected).abs() / expected.amax(-1, keepdim=True)).max()) < 1e-13


def test_small_eigenvalues_are_resolved():
    # A square Gaussian spans 1e-6 or less: float32 would be off by half or more (alpha.md 4.2).
    weight = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    expected = reference(weight)
    assert float(expected[0] / expected[-1]) < 1e-5
    assert torch.allclose(gram_eigenvalues(weight), expected, rtol=1e-8, atol=0)


def test_a_matrix_has_the_same_bits_alone_in_a_batch_and_transposed():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(50, 80, generator=g), torch.randn(50, 80, generator=g)
    both = gram_eigenvalues(torch.stack([first, second]))
    assert torch.equal(both[0], gram_eigenvalues(first))
    assert torch.equal(both[1], gram_eigenvalues(second))
    assert torch.equal(both[1], gram_eigenvalues(second.T))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 9])
def test_positive_eigenvalues_count_the_rank(exact, rank):
    g = torch.Generator().manual_seed(rank)
    left = torch.randn(30, rank, generator=g, dtype=torch.float64)
    weight = left @ torch.randn(rank, 40, generator=g, dtype=torch.float64)
    values = gram_eigenvalues(weight, exact=exact)
    assert int((values > 0).sum()) == rank
    assert float(values.min()) == 0.0


def test_exact_reaches_where_a_gram_matrix_cannot():
    sigma = torch.logspace(1, -7, 60, dtype=torch.float64)
    weight = with_singular_values(sigma, 80)
    values = gram_eigenvalues(weight, exact=True)
    assert torch.allclose(values.flip(0), sigma.square(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_any_scale(scale):
    weight = torch.randn(20, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gram_eigenvalues(weight)
    scaled = gram_eigenvalues(weight * scale)
    assert torch.allclose(scaled / scale**2, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_cast_up_first(dtype):
    weight = torch.randn(24, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.allclose(gram_eigenvalues(weight), reference(weight), rtol=1e-10)


def test_bad_weights_are_refused():
    weight = torch.ones(3, 4)
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        gram_eigenvalues(weight)
    with pytest.raises(ValueError, match="out, in"):
        gram_eigenvalues(torch.ones(4))
    with pytest.raises(ValueError, match="out, in"):
        gram_eigenvalues(torch.ones(0, 4))


def heavy(n: int, long: int, g: torch.Generator, power: float) -> torch.Tensor:
    return torch.randn(n, long, generator=g) * torch.arange(1, n + 1)[:, None] ** -power


FAMILIES = {
    "gaussian": lambda n, m, g: torch.randn(n, m, generator=g),
    "rows of falling size": lambda n, m, g: heavy(n, m, g, 0.7),
    "a mean": lambda n, m, g: torch.randn(n, m, generator=g) + 1,
    "spikes": lambda n, m, g: (
        torch.randn(n, m, generator=g)
        + 3 * torch.randn(n, 3, generator=g) @ torch.randn(3, m, generator=g)
    ),
    "nine of ten zero": lambda n, m, g: (
        torch.randn(n, m, generator=g) * (torch.rand(n, m, generator=g) < 0.1)
    ),
    "tiny": lambda n, m, g: torch.randn(n, m, generator=g) * 1e-25,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(64, 64), (128, 300), (300, 128), (512, 600)])
def test_single_precision_keeps_its_bound(family, shape):
    for seed in range(2):
        weight = FAMILIES[family](*shape, torch.Generator().manual_seed(seed))
        double, single = gram_eigenvalues(weight), gram_eigenvalues(weight, single=True)
        bound = single_error(single)
        assert bool(bound.isfinite().all())
        assert bool(((single - double).abs() <= bound).all())
        # It isn't so wide as to mean nothing.
        assert float((bound / single[-1]).max()) < 3e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda g: torch.randn(128, 20, generator=g) @ torch.randn(20, 128, generator=g),
        lambda g: torch.linalg.qr(torch.randn(128, 128, generator=g)).Q,
        lambda g: torch.zeros(128, 128),
    ],
    ids=["low rank", "orthogonal", "zero"],
)
def test_coinciding_eigenvalues_have_no_bound(make):
    weight = make(torch.Generator().manual_seed(0))
    assert bool(single_error(gram_eigenvalues(weight, single=True)).isinf().all())


def test_single_precision_is_for_weights_without_more_digits():
    weight = torch.randn(64, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(gram_eigenvalues(weight, single=True), gram_eigenvalues(weight))
    half = weight.bfloat16()
    assert not torch.equal(gram_eigenvalues(half, single=True), gram_eigenvalues(half))
