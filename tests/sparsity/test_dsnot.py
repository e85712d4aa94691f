"""DSnoT: swaps row by row by the definition, errors that only fall, exact counts."""

import pytest
import torch
from layers import correlated, gaussian

from compress.calibration.statistics import ColumnMoments
from compress.errors import RequestError
from compress.sparsity.dsnot import dsnot_mask
from compress.sparsity.masks import nm_mask, wanda_mask_counts, wanda_score


def moments(x):
    found = ColumnMoments()
    for part in x.float().split(37):
        found.add(part)
    return found.value()


def shift(weight, keep, mean):
    """How far each row's mean output moves."""
    return ((weight.double() * ~keep) @ mean.double()).abs()


def slow(weight, found, keep, cycles, tolerance, group):
    """The rule, a row and a swap at a time."""
    keep = keep.clone()
    for i, row in enumerate(weight.double()):
        part = (row * found.mean.double()).tolist()
        rank = (row * found.mean.double() / found.variance.double()).tolist()
        score = wanda_score(weight, found.norm)[i].tolist()
        columns = range(len(part))
        for _ in range(cycles):
            e = sum(part[j] for j in columns if not keep[i, j])
            if abs(e) <= tolerance * sum(map(abs, part)):
                break
            sign = 1 if e > 0 else -1
            droppable = [j for j in columns if keep[i, j] and sign * part[j] < 0]
            groups = {j // group for j in droppable}
            regrow = [j for j in columns if not keep[i, j] and j // group in groups]
            if not regrow:
                break
            grow = max(regrow, key=lambda j: sign * rank[j])
            drop = min((j for j in droppable if j // group == grow // group), key=score.__getitem__)
            if abs(e + part[drop] - part[grow]) >= abs(e):
                break
            keep[i, grow], keep[i, drop] = True, False
    return keep


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_rule_swap_by_swap(seed):
    x, weight = correlated(200, 30, seed, shift=0.5), gaussian(12, 30, seed)
    found = moments(x)
    start = wanda_mask_counts(weight, found.norm, 200)
    mask = dsnot_mask(weight, found, 200)
    assert torch.equal(mask, slow(weight, found, start, 50, 1e-3, 30))
    assert not torch.equal(mask, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rows_mean_moves_further_than_under_wanda(dtype):
    x, weight = correlated(300, 64, 1, shift=0.5), gaussian(48, 64).to(dtype)
    found = moments(x)
    start = wanda_mask_counts(weight, found.norm, 1843)
    before = shift(weight, start, found.mean)
    last = before
    for cycles in (0, 1, 5, 50):
        mask = dsnot_mask(weight, found, 1843, cycles=cycles)
        now = shift(weight, mask, found.mean)
        assert bool((now <= last + 1e-9).all())
        assert torch.equal((~mask).sum(1), (~start).sum(1))  # rows keep their counts
        last = now
    assert float(last.sum()) < 0.2 * float(before.sum())


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8)])
def test_swaps_stay_within_their_group(pattern):
    n, m = pattern
    x, weight = correlated(200, 32, 2, shift=0.5), gaussian(10, 32)
    found = moments(x)
    start = nm_mask(wanda_score(weight, found.norm), n, m)
    mask = dsnot_mask(weight, found, None, pattern)
    assert bool((mask.reshape(10, -1, m).sum(-1) == n).all())
    assert torch.equal(mask, slow(weight, found, start, 50, 1e-3, m))
    assert not torch.equal(mask, start)


def test_the_scale_of_weights_and_inputs_is_irrelevant():
    x, weight = correlated(200, 30, shift=0.5), gaussian(12, 30)
    mask = dsnot_mask(weight, moments(x), 200)
    assert torch.equal(dsnot_mask(weight * 2.0**-10, moments(x * 2.0**12), 200), mask)


def test_inputs_without_a_mean_leave_wandas_mask():
    x = correlated(100, 20)
    x = torch.cat([x, -x])
    weight = gaussian(6, 20)
    found = moments(x)._replace(mean=torch.zeros(20))
    assert torch.equal(dsnot_mask(weight, found, 60), wanda_mask_counts(weight, found.norm, 60))


@pytest.mark.parametrize("count", [0, 1, 77, 120])
def test_zeros_are_exactly_the_count(count):
    x = correlated(50, 12, shift=1.0)
    x[:, 3], x[:, 4] = 0, 2  # a dead input and a constant one
    for weight in (gaussian(10, 12).half(), torch.full((10, 12), 0.3)):
        assert int((~dsnot_mask(weight, moments(x), count)).sum()) == count


def test_a_width_that_the_pattern_doesnt_divide_is_named():
    with pytest.raises(RequestError, match="`up` has 10 inputs"):
        dsnot_mask(gaussian(4, 10), moments(correlated(9, 10)), None, (2, 4), name="up")
