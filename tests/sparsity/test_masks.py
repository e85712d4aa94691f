"""Masks of one matrix: the definitions by counting, exact totals, invariances, patterns."""

from __future__ import annotations

import pytest
import torch

import compress
from compress.errors import RequestError
from compress.sparsity.masks import (
    magnitude_mask,
    nm_mask,
    wanda_mask,
    wanda_mask_counts,
    wanda_score,
)


def slow_mask(weight, norm, k):
    """The definition, by counting."""
    keep = torch.empty(weight.shape, dtype=torch.bool)
    for i, row in enumerate((weight.abs() * norm).tolist()):
        for j, s in enumerate(row):
            keep[i, j] = sum((t, o) < (s, j) for o, t in enumerate(row)) >= k
    return keep


def rounded(out, inp, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(out, inp, generator=g).round(decimals=1), torch.rand(inp, generator=g) + 0.1


@pytest.mark.parametrize(
    ("out", "inp", "sparsity", "k"),
    [(3, 8, 0.5, 4), (5, 8, 0.25, 2), (4, 16, 0.0, 0), (1, 1, 0.9, 1), (6, 10, 0.9, 9)],
)
def test_wanda_is_the_definition(out, inp, sparsity, k):
    weight, norm = rounded(out, inp, out)
    assert torch.equal(wanda_mask(weight, norm, sparsity), slow_mask(weight, norm, k))


@pytest.mark.parametrize(("out", "inp", "sparsity"), [(5, 7, 0.5), (9, 11, 0.61), (64, 33, 0.7)])
def test_wanda_total_is_exact_and_rows_differ_by_at_most_one(out, inp, sparsity):
    weight, norm = rounded(out, inp, 1)
    dropped = (~wanda_mask(weight, norm, sparsity)).sum(1)
    assert int(dropped.sum()) == round(sparsity * out * inp)
    assert int(dropped.max() - dropped.min()) <= 1
    assert torch.equal(dropped, dropped.sort(descending=True).values)  # ceilings first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [False, True])
def test_every_mask_is_exact_in_every_dtype(dtype, constant):
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.full_like(weight, 0.3) if constant else weight
    norm = torch.ones(40)
    for mask in (
        magnitude_mask(weight, 0.37),
        magnitude_mask(weight, 740),
        wanda_mask(weight, norm, 0.37),
        wanda_mask_counts(weight, norm, 740),
    ):
        assert int((~mask).sum()) == 740
    assert int((~nm_mask(weight.abs(), 2, 4)).sum()) == 1000


def test_a_loud_input_saves_a_small_weight():  # magnitude would do the opposite
    mask = wanda_mask(torch.tensor([[1.0, 2.0]]), torch.tensor([10.0, 1.0]), 0.5)
    assert mask.tolist() == [[True, False]]


def test_identity_activations_make_wanda_magnitude_per_row():
    weight, _ = rounded(12, 20, 3)
    norm = torch.eye(20).norm(dim=0)
    mask = wanda_mask(weight, norm, 0.35)
    per_row = torch.stack([magnitude_mask(row, 7) for row in weight])
    assert torch.equal(mask, per_row)


def test_wanda_ignores_the_scale_of_rows_and_what_moves_from_input_to_weight():
    g = torch.Generator().manual_seed(4)
    weight = torch.randn(16, 24, generator=g, dtype=torch.float64)
    x = torch.randn(100, 24, generator=g, dtype=torch.float64)
    mask = wanda_mask(weight, x.norm(dim=0), 0.6)
    rows = torch.rand(16, 1, generator=g, dtype=torch.float64) * 100 + 0.01
    assert torch.equal(wanda_mask(weight * rows, x.norm(dim=0), 0.6), mask)
    d = torch.rand(24, generator=g, dtype=torch.float64) * 10 + 0.1
    assert torch.equal(wanda_mask(weight / d, (x * d).norm(dim=0), 0.6), mask)
    assert torch.equal(wanda_mask(weight, x.norm(dim=0) * 1e-3, 0.6), mask)


def test_magnitude_takes_the_whole_matrix_as_one_group():
    weight = torch.tensor([[0.1, -0.2, 0.3], [5.0, -6.0, 7.0]])
    assert magnitude_mask(weight, 3).tolist() == [[False] * 3, [True] * 3]
    assert magnitude_mask(weight, 0.5).tolist() == [[False] * 3, [True] * 3]


def test_weights_are_only_read():
    weight, norm = rounded(6, 8, 0)
    before = weight.clone(), norm.clone()
    magnitude_mask(weight, 0.5)
    wanda_mask(weight, norm, 0.5)
    assert torch.equal(weight, before[0])
    assert torch.equal(norm, before[1])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_a_pattern_keeps_n_in_every_group(n, m):
    weight, norm = rounded(10, 24, 5)
    keep = nm_mask(wanda_score(weight, norm), n, m, name="layer")
    assert bool((keep.reshape(10, -1, m).sum(-1) == n).all())
    flat = wanda_score(weight, norm).reshape(-1, m)
    groups = torch.stack([magnitude_mask(row, m - n) for row in flat])
    assert torch.equal(keep.reshape(-1, m), groups)


def test_a_width_that_the_pattern_does_not_divide_is_refused_by_name():
    with pytest.raises(RequestError, match=r"layers\.3\.q_proj.*90 inputs.*4.*2:4") as error:
        nm_mask(torch.ones(5, 90), 2, 4, name="layers.3.q_proj")
    assert error.value.hint


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w, n: wanda_mask(w, n, 1.0), "sparsity 1.0"),
        (lambda w, n: wanda_mask(w, n, -0.1), "sparsity -0.1"),
        (lambda w, n: wanda_mask(w, n[:-1], 0.5), r"\[7\]"),
        (lambda w, n: wanda_mask(w, n * torch.nan, 0.5), "8 of 8"),
        (lambda w, n: wanda_mask(w, -n, 0.5), "8 of 8"),
        (lambda w, n: wanda_mask_counts(w, n, 49), "49 of 48"),
        (lambda w, n: magnitude_mask(w, -1), "-1 of 48"),
        (lambda w, n: magnitude_mask(w, 1.0), "sparsity 1.0"),
        (lambda w, n: magnitude_mask(w * torch.nan, 0.5), "NaN"),
    ],
)
def test_bad_requests_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(*rounded(6, 8, 0))


def test_the_contract_names_are_callable():
    weight, norm = rounded(4, 6, 0)
    assert int((~compress.sparsity.wanda_mask(weight, norm, 0.5)).sum()) == 12
    assert compress.numerics.allocate([1, 2], [1, 1], 0.3).tolist() == pytest.approx([0.2, 0.4])
