"""Every allocator from a checkpoint to zeros on disk, and the search on held-out text."""

from itertools import pairwise

import pytest
import torch

from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.numerics.ranked import kth_smallest
from compress.sparsity.allocators.maps import by_density, by_line, dlp_spread, steepest
from compress.sparsity.allocators.search import coarse_slopes, fine_slopes
from compress.sparsity.allocators.table import ALLOCATORS

CHEAP = {"atp": {"atp_candidates": 2, "atp_held_out": 1}}


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_every_allocation_meets_the_request_to_the_last_weight(allocation, checkpoint, prune):
    for grain in ALLOCATORS[allocation].grains:
        given = {"allocation": allocation, "granularity": grain, **CHEAP.get(allocation, {})}
        plan = prune(checkpoint(), dry_run=True, min_sparsity=0.55, max_sparsity=0.66, **given).plan
        size = sum(row["size"] for row in plan.rows)
        assert sum(row["zeros"] for row in plan.rows) == round(0.6 * size)
        for row in plan.rows:
            assert 0.55 * row["size"] - 1 <= row["zeros"] <= 0.66 * row["size"] + 1


def test_the_line_is_atps_and_its_limit_the_steepest():
    shares = by_line(["a", "b", "c"], [5, 5, 5], 0.6, 0.1)
    assert shares.tolist() == pytest.approx([0.5, 0.6, 0.7])
    assert steepest(0.7, 4, (0.0, 1.0)) == pytest.approx(0.2)
    assert steepest(0.3, 4, (0.0, 1.0)) == pytest.approx(0.2)
    assert steepest(0.5, 1) == 0


@pytest.mark.parametrize("count", range(1, 9))
def test_the_search_tries_as_many_slopes_as_asked_and_none_beyond_the_limit(count):
    coarse = coarse_slopes(0.1, count)
    for best in coarse:
        fine = fine_slopes(best, 0.1, coarse, count)
        assert len(coarse) + len(fine) == count
        assert len({*coarse, *fine}) == count
        assert all(0 <= beta <= 0.1 for beta in [*coarse, *fine])


def test_er_keeps_in_proportion_to_the_density():
    keep = 1 - by_density([0.2, 0.1], [10, 30], 0.6)
    assert float(keep[0] / keep[1]) == pytest.approx(2)
    assert float((keep * torch.tensor([10, 30])).sum()) == pytest.approx(16)


def test_dlps_spread_is_the_papers_between_its_points():
    assert [dlp_spread(s) for s in (0.4, 0.5, 0.55, 0.6, 0.7, 0.9)] == pytest.approx(
        [0.04, 0.04, 0.07, 0.1, 0.15, 0.15]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kth_smallest_of_parts_is_that_of_a_sort(dtype):
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, generator=g).abs().to(dtype) for n in (1, 70, 501)]
    ordered = torch.cat(parts).float().sort().values
    for k in (1, 2, 200, 571, 572):
        found = kth_smallest(lambda: parts, k)
        assert found.value == float(ordered[k - 1])
        assert found.below == [int((p.float() < found.value).sum()) for p in parts]
        assert found.equal == [int((p.float() == found.value).sum()) for p in parts]
    with pytest.raises(ValueError, match="no 573-th"):
        kth_smallest(lambda: parts, 573)


def test_global_is_one_threshold(checkpoint, prune):
    plan = prune(checkpoint(), dry_run=True, allocation="global").plan
    weights = dict(open_source(checkpoint()).load().named_parameters())
    values = torch.cat(
        [weights[f"{row['module']}.weight"].detach().abs().flatten() for row in plan.rows]
    )
    limit = float(values.sort().values[round(0.6 * len(values)) - 1])
    for row in plan.rows:
        below = int((weights[f"{row['module']}.weight"].detach().abs() <= limit).sum())
        assert row["zeros"] == below, row["module"]


def test_the_search_never_sees_the_evaluation_and_keeps_the_statistics_text(
    checkpoint, prune, other_text, tmp_path
):
    spec = str(other_text)
    plain = prune(checkpoint(), tmp_path / "a", allocation="uniform").receipt.as_dict()
    found = prune(
        checkpoint(), tmp_path / "b", allocation="atp", ppl=(spec,), limit=2, atp_candidates=3
    ).receipt.as_dict()
    search = found["allocation"]["search"]
    assert found["calibration"]["digest"] == plain["calibration"]["digest"]
    assert search["held_out_windows"] == 4
    assert search["candidates"][0]["beta"] == 0
    least = min(search["candidates"], key=lambda c: c["loss"])
    assert search["beta"] == least["beta"]
    again = prune(checkpoint(), dry_run=True, allocation="atp", atp_candidates=3).plan
    assert again.options["search"] == search  # the evaluation had no part in it


def test_alpha_has_uniform_and_atp_beside_it(checkpoint, prune, tmp_path):
    result = prune(checkpoint(), tmp_path / "out")
    found = result.receipt.as_dict()["allocation"]
    assert list(found["shares"]) == ["alpha", "uniform", "atp"]
    rises = [b - a for a, b in pairwise(found["shares"]["atp"])]
    assert rises == pytest.approx([found["line"]["beta"]] * len(rises), abs=1e-2)
    assert not found["line"]["searched"]
    assert all(len(s) == len(found["blocks"]) for s in found["shares"].values())
    assert "not searched" in result.render()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epsilon": 0.2, "allocation": "owl"}, ["--epsilon", "alpha, farms"]),
        ({"granularity": "matrix", "allocation": "atp"}, ["--granularity matrix", "block"]),
        ({"metric_sign": "2"}, ["--metric-sign 2"]),
        ({"dlp_mean": "mode", "allocation": "dlp"}, ["--dlp-mean mode", "median"]),
        ({"dlp_spread": 2.0, "allocation": "dlp"}, ["--dlp-spread 2"]),
        ({"atp_beta": "x", "allocation": "atp"}, ["--atp-beta x"]),
        ({"atp_beta": 0.9, "allocation": "atp"}, ["--atp-beta 0.9", "can be reached"]),
        ({"atp_candidates": 0, "allocation": "atp"}, ["--atp-candidates 0"]),
        ({"farms_window": 1, "allocation": "farms"}, ["FARMS windows of 1 rows"]),
        ({"farms_window": 5000, "allocation": "farms"}, ["larger than every matrix"]),
        ({"sparsity": 0.9, "max_sparsity": 0.8, "allocation": "er"}, ["0 to 0.8"]),
    ],
)
def test_a_wrong_option_is_named(given, words, checkpoint, prune):
    with pytest.raises(RequestError) as caught:
        prune(checkpoint(), dry_run=True, **given)
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"
