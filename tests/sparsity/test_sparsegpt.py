"""SparseGPT: closed forms, an independent brain-surgeon reference, exact counts, repairs."""

from __future__ import annotations

import pytest
import torch

from compress.errors import RequestError, RunError
from compress.sparsity.masks import magnitude_mask, wanda_mask_counts
from compress.sparsity.sparsegpt import sparsegpt

DAMP = 0.01


def correlated(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=g, dtype=torch.float64)
    mix *= torch.logspace(0, -1.5, width, dtype=torch.float64)[:, None]
    return torch.randn(tokens, width, generator=g, dtype=torch.float64) @ mix


def gaussian(out: int, inp: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def damped(hessian: torch.Tensor) -> torch.Tensor:
    return hessian + DAMP * hessian.diagonal().mean() * torch.eye(len(hessian)).to(hessian)


def surgeon(weight, hessian, counts, block):
    """The definition, slowly: for each column the inverse of what is still free, row by row."""
    weight, hessian = weight.clone(), damped(hessian)
    out, width = weight.shape
    mask = torch.ones(out, width, dtype=torch.bool)
    for number, start in enumerate(range(0, width, block)):
        columns = range(start, min(start + block, width))
        price = [torch.linalg.inv(hessian[j:, j:])[0, 0] for j in columns]
        cost = {
            (i, j): float(weight[i, j] ** 2 / p) for j, p in zip(columns, price) for i in range(out)
        }
        for i, j in sorted(cost, key=cost.get)[: counts[number]]:
            mask[i, j] = False
        for j in columns:
            inverse = torch.linalg.inv(hessian[j:, j:])
            for i in range(out):
                if not mask[i, j]:
                    weight[i, j:] -= weight[i, j] / inverse[0, 0] * inverse[0]
                    weight[i, j] = 0
    return weight, mask


def test_equal_to_the_surgeon():
    x, weight = correlated(60, 20), gaussian(5, 20)
    result = sparsegpt(weight, x.T @ x, 51, block_size=8)
    # 40, 40 and 20 weights share 51: 20.4, 20.4 and 10.2.
    expected, mask = surgeon(weight, x.T @ x, [21, 20, 10], 8)
    assert torch.equal(result.mask, mask)
    assert torch.allclose(result.weight, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("block_size", [4, 40, 64, 128, 1000])
def test_late_updates_change_nothing_but_the_choice(block_size):
    # Every fourth column is next to nothing, so that all block sizes choose just these; from the
    # left their errors run through every strip and block.
    x, weight = correlated(300, 100), gaussian(7, 100)
    weight[:, ::4] *= 1e-6
    hessian = x.T @ x
    result = sparsegpt(weight, hessian, 175, block_size=block_size)
    assert not bool(result.mask[:, ::4].any())
    change = weight.clone()
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(hessian)), upper=True)
    for j in range(0, 100, 4):
        change[:, j:] -= change[:, j : j + 1] / upper[j, j] * upper[j, j:]
    assert torch.allclose((result.weight - weight) * 1e6, (change - weight) * 1e6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [1e-3, 1.0, 37.0])
def test_a_spherical_hessian_is_magnitude_per_block_and_leaves_survivors_bit_equal(dtype, c):
    weight = gaussian(24, 300).to(dtype)
    result = sparsegpt(weight, c * torch.eye(300), 3600)
    for start, count in ((0, 1536), (128, 1536), (256, 528)):
        block = weight[:, start : start + 128]
        assert torch.equal(result.mask[:, start : start + 128], magnitude_mask(block, count))
    assert torch.equal(result.weight, torch.where(result.mask, weight, 0))
    assert result.weight.dtype == dtype
    assert result.note is None


@pytest.mark.parametrize("column", [0, 5, 11])
def test_the_price_of_one_column_is_the_closed_form(column):
    x, weight = correlated(80, 12), gaussian(1, 12)
    weight[0, column] = 1e-4
    hessian = damped(x.T @ x)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    result = sparsegpt(weight, x.T @ x, 1)
    assert (~result.mask).nonzero().tolist() == [[0, column]]
    change = (result.weight - weight)[0]
    price = float(weight[0, column] ** 2 / upper[column, column] ** 2)
    assert float(change @ hessian @ change) == pytest.approx(price, rel=1e-8)
    assert result.loss == pytest.approx(price, rel=1e-8)
    assert torch.equal(result.weight[0, :column], weight[0, :column])  # the left is frozen
    if column == 0:
        whole = float(weight[0, 0] ** 2 / torch.linalg.inv(hessian)[0, 0])
        assert price == pytest.approx(whole, rel=1e-8)


@pytest.mark.parametrize(("width", "block_size"), [(130, 128), (96, 128), (97, 32), (64, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_are_exactly_the_count(width, block_size, dtype):
    x = correlated(200, width).float()
    weight = (gaussian(11, width) * 0.02).to(dtype)
    for count in (0, 1, round(0.613 * 11 * width), 11 * width):
        result = sparsegpt(weight, x.T @ x, count, block_size=block_size)
        assert int((~result.mask).sum()) == count
        assert torch.equal(result.weight == 0, ~result.mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_constant_matrix_loses_exactly_the_count(dtype):
    result = sparsegpt(torch.full((30, 70), 0.1, dtype=dtype), torch.eye(70), 1234)
    assert int((result.weight == 0).sum()) == 1234


def test_survivors_never_round_to_zero():
    # 6e-8 is float16's least number; removing the first takes nine tenths off the second.
    weight = torch.tensor([[6e-8, 6e-8, 1.0]]).half()
    hessian = torch.tensor([[1.0, -0.9, 0.0], [-0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    result = sparsegpt(weight, hessian, 1)
    assert (result.weight == 0).tolist() == [[True, False, False]]


def test_the_error_is_at_most_wandas_on_correlated_inputs():
    for seed in range(5):
        x, weight = correlated(500, 96, seed), gaussian(48, 96, seed + 10)
        for sparsity in (0.5, 0.7):
            count = round(sparsity * weight.numel())
            ours = sparsegpt(weight, x.T @ x, count).weight
            wanda = weight * wanda_mask_counts(weight, x.norm(dim=0), count)
            error = [float((x @ (w - weight).T).square().sum()) for w in (ours, wanda)]
            assert error[0] < error[1]


@pytest.mark.parametrize(("pattern", "block_size"), [((2, 4), 128), ((4, 8), 32), ((1, 4), 4)])
def test_patterns_are_exact_and_chosen_on_updated_weights(pattern, block_size):
    n, m = pattern
    x, weight = correlated(300, 64), gaussian(9, 64)
    result = sparsegpt(weight, x.T @ x, None, pattern, block_size)
    assert bool((result.mask.reshape(9, -1, m).sum(-1) == n).all())
    assert torch.equal(result.weight == 0, ~result.mask)
    # The same as unstructured pruning whose blocks are the groups, row by row.
    for row in range(9):
        alone = sparsegpt(weight[row : row + 1], x.T @ x, 64 // m * (m - n), block_size=m)
        assert torch.equal(alone.mask[0], result.mask[row])
        assert torch.allclose(alone.weight[0], result.weight[row], atol=1e-9)


def test_dead_inputs_go_first_and_never_beyond_the_count():
    x, weight = correlated(100, 16), gaussian(4, 16)
    x[:, [3, 9]] = 0
    hessian = x.T @ x
    result = sparsegpt(weight, hessian, 20)
    assert not bool(result.mask[:, [3, 9]].any())
    assert "2 of 16 inputs are never active" in result.note
    few = sparsegpt(weight, hessian, 3)  # fewer than the eight dead weights: the smallest three
    dead = weight[:, [3, 9]]
    assert torch.equal(few.mask[:, [3, 9]], magnitude_mask(dead, 3))
    assert torch.equal(few.weight[few.mask], weight[few.mask])
    assert few.loss == 0


def test_an_all_dead_layer_is_magnitude():
    weight = gaussian(6, 10)
    result = sparsegpt(weight, torch.zeros(10, 10), 25)
    assert torch.equal(result.mask, magnitude_mask(weight, 25))
    assert torch.equal(result.weight, torch.where(result.mask, weight, 0))


def test_a_hessian_that_needs_repair_says_so():
    x = correlated(100, 16)
    hessian = x.T @ x
    hessian -= 0.05 * hessian.diagonal().mean() * torch.eye(16)
    result = sparsegpt(gaussian(4, 16), hessian, 30)
    assert result.note is not None
    assert "damping 0.1 instead of 0.01" in result.note
    assert bool(result.weight.isfinite().all())


@pytest.mark.parametrize("rows", [1, 3])  # the transpose of one row is the row itself
def test_inputs_are_only_read(rows):
    x, weight = correlated(50, 12), gaussian(rows, 12)
    hessian = x.T @ x
    before = weight.clone(), hessian.clone()
    sparsegpt(weight, hessian, 6 * rows)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_the_scale_of_the_hessian_is_irrelevant():
    x, weight = correlated(100, 40).float(), gaussian(6, 40).float()
    one = sparsegpt(weight, x.T @ x, 120)
    two = sparsegpt(weight, x.T @ x * 2.0**40, 120)
    assert torch.equal(one.mask, two.mask)
    assert torch.allclose(one.weight, two.weight, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "call", "words"),
    [
        (RequestError, lambda w, h: sparsegpt(w, h, None, (2, 4), name="fc1"), "`fc1` has 10"),
        (RunError, lambda w, h: sparsegpt(w, h * torch.nan, 5, name="fc1"), "`fc1`: 10 of 10"),
        (ValueError, lambda w, h: sparsegpt(w, h[:9, :9], 5), r"\[9, 9\]"),
        (ValueError, lambda w, h: sparsegpt(w, h, 41), "41 of 40"),
        (ValueError, lambda w, h: sparsegpt(w, h, None), "None of 40"),
        (ValueError, lambda w, h: sparsegpt(w, h, 5, block_size=0), "block size 0"),
        (ValueError, lambda w, h: sparsegpt(w, h, None, (1, 2), block_size=5), "multiple of M"),
        (ValueError, lambda w, h: sparsegpt(w, h, 7, (1, 2)), "drops 20 weights, not 7"),
        (ValueError, lambda w, h: sparsegpt(w, h, None, (3, 2)), "3:2"),
    ],
)
def test_bad_requests_are_named(kind, call, words):
    with pytest.raises(kind, match=words):
        call(gaussian(4, 10), torch.eye(10))
