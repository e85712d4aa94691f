"""Exact selection with ties, against counting."""

from __future__ import annotations

import pytest
import torch

from compress.numerics import drop_smallest, drop_smallest_per_row, keep_n_of_m, spread_over_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def slow_keep(values: list[float], k: int) -> list[bool]:
    """The definition: dropped are the k first in order of (score, index)."""
    dropped = set(sorted(range(len(values)), key=lambda i: (values[i], i))[:k])
    return [i not in dropped for i in range(len(values))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 17, 59, 60])
def test_drop_smallest_is_the_definition(dtype, count):
    g = torch.Generator().manual_seed(count)
    score = (torch.randn(6, 10, generator=g) * 2).round().to(dtype)  # rounding makes ties
    keep = drop_smallest(score, count)
    assert keep.dtype == torch.bool
    assert keep.shape == score.shape
    assert keep.flatten().tolist() == slow_keep(score.flatten().tolist(), count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_matrix_drops_exactly_the_count(dtype):
    keep = drop_smallest(torch.full((40, 30), 0.1, dtype=dtype), 841)
    assert keep.flatten().tolist() == [False] * 841 + [True] * 359


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_seventy_percent_is_seventy_percent_in_low_precision(dtype):
    # `score <= threshold` would drop 70.21 % in bfloat16 (alpha.md 1.5).
    g = torch.Generator().manual_seed(0)
    score = torch.randn(300, 300, generator=g).to(dtype).abs()
    assert int((~drop_smallest(score, 63_000)).sum()) == 63_000


@pytest.mark.parametrize(
    "counts", [[0, 0, 0, 0], [3, 3, 3, 3], [3, 3, 2, 2], [0, 9, 4, 7], [9] * 4]
)
def test_rows_are_the_definition(counts):
    g = torch.Generator().manual_seed(sum(counts))
    score = torch.randint(0, 4, (4, 9), generator=g).float()
    score[1, 2] = -torch.inf
    score[3, 3] = torch.inf
    keep = drop_smallest_per_row(score, torch.tensor(counts))
    for row, count, kept in zip(score.tolist(), counts, keep.tolist(), strict=True):
        assert kept == slow_keep(row, count)


def test_infinite_scores_of_a_row_that_loses_nothing_stay():
    score = torch.tensor([[-torch.inf, -torch.inf], [1.0, 2.0]])
    keep = drop_smallest_per_row(score, torch.tensor([0, 1]))
    assert keep.tolist() == [[True, True], [False, True]]


def test_scores_are_not_changed_and_layout_is_irrelevant():
    score = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    before = score.clone()
    keep = drop_smallest(score.T, 50)
    assert torch.equal(keep, drop_smallest(score.T.contiguous(), 50))
    assert torch.equal(score, before)


def test_integers_and_booleans_are_scores_too():
    assert drop_smallest(torch.tensor([3, 1, 2]), 2).tolist() == [True, False, False]
    assert drop_smallest(torch.tensor([True, False]), 1).tolist() == [True, False]


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_spreading_differs_by_at_most_one_ceiling_first(count):
    counts = spread_over_rows(count, 7)
    assert int(counts.sum()) == count
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(counts, counts.sort(descending=True).values)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 2), (3, 5), (0, 4), (4, 4), (1, 1)])
def test_n_of_m_keeps_n_in_every_group(n, m):
    g = torch.Generator().manual_seed(n * 10 + m)
    score = torch.randint(0, 3, (5, 6 * m), generator=g).float()
    keep = keep_n_of_m(score, n, m).reshape(5, 6, m)
    groups = score.reshape(5, 6, m)
    for i in range(5):
        for j in range(6):
            assert keep[i, j].tolist() == slow_keep(groups[i, j].tolist(), m - n)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: drop_smallest(torch.tensor([1.0, torch.nan]), 1), "NaN"),
        (lambda: drop_smallest(torch.ones(3), 4), "4"),
        (lambda: drop_smallest(torch.ones(3), -1), "-1"),
        (lambda: drop_smallest_per_row(torch.ones(2, 3), torch.ones(3, dtype=torch.int64)), "2"),
        (lambda: drop_smallest_per_row(torch.ones(3), torch.ones(3)), "R, C"),
        (lambda: keep_n_of_m(torch.ones(2, 6), 2, 4), "width 6"),
        (lambda: keep_n_of_m(torch.ones(2, 8), 5, 4), "5:4"),
        (lambda: keep_n_of_m(torch.full((2, 8), torch.nan), 2, 4), "NaN"),
        (lambda: spread_over_rows(3, 0), "0 rows"),
    ],
)
def test_bad_requests_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
