"""Patterns: the words, and mixed N:M against all choices tried one by one."""

import itertools
import json

import pytest
import torch

import compress
from compress.errors import RequestError
from compress.sparsity import patterns
from compress.sparsity.patterns import mixed_bounds, mixed_removed, parse_pattern, row_pattern


@pytest.mark.parametrize("text", ["mixed:8", "mixed N:8", "Mixed n:8", "mixed 8"])
def test_mixed_may_be_said_in_several_ways(text):
    assert parse_pattern(text) == (None, 8)


@pytest.mark.parametrize("text", ["mixed", "mixed:1", "mixed:x", "8", "mixed4:8", "0:4", "4:4"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(RequestError, match="--pattern"):
        parse_pattern(text)
    with pytest.raises(RequestError):
        row_pattern("mixed:8")


def drawn(seed, n=7):
    g = torch.Generator().manual_seed(seed)
    sizes = [int(64 * 2 ** int(k)) * 3 for k in torch.randint(0, 4, (n,), generator=g)]
    shares = (0.2 + 0.7 * torch.rand(n, generator=g, dtype=torch.float64)).tolist()
    return shares, sizes, sum(s * d for s, d in zip(shares, sizes)) / sum(sizes)


@pytest.mark.parametrize("of", [4, 8])
@pytest.mark.parametrize("seed", range(8))
def test_the_total_is_the_nearest_of_all_choices(seed, of):
    shares, sizes, asked = drawn(seed)
    removed = mixed_removed(shares, sizes, of, asked)
    steps = [d // of for d in sizes]
    wanted = asked * sum(sizes)
    both = [sorted({int(s * of), min(-int(-s * of // 1), of - 1)}) for s in shares]
    best = min(abs(sum(u * s for u, s in zip(c, steps)) - wanted) for c in itertools.product(*both))
    found = abs(sum(u * s for u, s in zip(removed, steps)) - wanted)
    assert found == pytest.approx(best, abs=1e-6)
    assert all(u in options for u, options in zip(removed, both))
    assert found <= max(steps)
    quick = mixed_removed_by_rounding(shares, sizes, of, asked)
    assert abs(sum(u * s for u, s in zip(quick, steps)) - wanted) <= max(steps)


def mixed_removed_by_rounding(shares, sizes, of, asked):
    before, patterns._STATES = patterns._STATES, 1
    try:
        return mixed_removed(shares, sizes, of, asked)
    finally:
        patterns._STATES = before


def test_equal_matrices_round_up_by_their_remainders_in_order():
    assert mixed_removed([0.5, 0.6, 0.7, 0.6], [80] * 4, 8, 0.6) == [4, 5, 5, 5]
    assert mixed_removed([0.6] * 4, [80] * 4, 8, 0.6) == [5, 5, 5, 4]
    assert mixed_removed([0.5] * 3, [80] * 3, 8, 0.5) == [4] * 3  # whole shares stay
    assert mixed_removed([0.98, 0.5], [80] * 2, 8, 0.74)[0] == 7  # some weight is always kept


def test_bounds_hold_and_what_they_reach_is_named():
    assert mixed_removed([0.7, 0.6], [80, 80], 8, 0.65, (0.0, 0.7)) == [5, 5]
    with pytest.raises(RequestError, match=r"reaches 0\.5 to 0\.5"):
        mixed_removed([0.7] * 40, [80] * 40, 8, 0.7, (0.0, 0.6))
    with pytest.raises(RequestError, match=r"no N:4 removes between 0\.55 and 0\.7"):
        mixed_removed([0.6], [80], 4, 0.6, (0.55, 0.7))
    assert mixed_bounds(8, (0.3, 0.99)) == (0.375, 0.875)


def test_shares_above_what_m_can_hold_move_to_other_matrices(checkpoint, prune):
    options = {"pattern": "mixed:4", "allocation": "alpha", "granularity": "matrix"}
    result = prune(
        checkpoint(), sparsity=0.7, epsilon=0.9, metric="alpha_mid", dry_run=True, **options
    )
    assert {row["pattern"] for row in result.plan.rows} >= {"1:4"}
    assert result.plan.options["reached"] == pytest.approx(0.7, abs=0.002)
    with pytest.raises(RequestError, match=r"reach 0 to 0\.75"):
        prune(checkpoint(), sparsity=0.8, dry_run=True, **options)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps"])
def test_a_model_gets_an_n_for_each_matrix_and_says_what_it_reached(
    method, checkpoint, prune, tmp_path
):
    said = []
    result = prune(
        checkpoint("llama"),
        tmp_path / "out",
        sparsity=0.6,
        pattern="mixed N:8",
        allocation="alpha",
        granularity="matrix",
        method=method,
        say=said.append,
    )
    rows, weights = result.plan.rows, compress.load(tmp_path / "out").state_dict()
    assert len({row["pattern"] for row in rows}) > 2
    for row in rows:
        kept, of = row_pattern(row["pattern"])
        groups = (weights[f"{row['module']}.weight"] != 0).unflatten(1, (-1, of)).sum(2)
        assert bool((groups == kept).all())
    total = sum(row["size"] for row in rows)
    reached = sum(row["zeros"] for row in rows) / total
    assert abs(reached - 0.6) * total <= max(row["size"] for row in rows) / 8
    written = json.loads((tmp_path / "out" / "plan.json").read_text())["options"]
    assert (written["sparsity"], written["reached"]) == (0.6, reached)
    both = f"sparsity 0.6 asked, {reached:.6g} reached"
    assert any(both in note for note in result.receipt.notes)
    assert both in " ".join(" ".join(said).split())
    again = prune(checkpoint("llama"), tmp_path / "again", plan=result.plan, method=method)
    assert again.plan.rows == rows


def test_a_width_that_mixed_does_not_divide_is_named(checkpoint, prune):
    with pytest.raises(RequestError, match=r"32 inputs, which 5 doesn't divide.*mixed:5"):
        prune(checkpoint("llama"), pattern="mixed:5", dry_run=True)
