"""Bounds, metrics with their signs and granularity, in every allocation in which they can act."""

import pytest

from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.sparsity.allocators.spectral import share_spectral
from compress.sparsity.allocators.table import ALLOCATORS
from compress.sparsity.settings import AlphaPruneSettings
from compress.spectra.metrics import METRICS

CHEAP = {"atp": {"atp_candidates": 2, "atp_held_out": 1}}
MEASURED = ("spectra", "scores", "threshold", "atp 1/2")


@pytest.mark.parametrize("allocation", ALLOCATORS)
@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"max_sparsity": 0.5}, "bounds 0 to 0.5 reach 0 to 0.5"),
        ({"min_sparsity": 0.7}, "bounds 0.7 to 0.99 reach 0.7 to 0.99"),
    ],
)
def test_bounds_that_cannot_hold_name_the_reach_before_anything_is_measured(
    allocation, bounds, words, checkpoint, prune
):
    seen = []
    with pytest.raises(RequestError) as caught:
        prune(
            checkpoint(),
            dry_run=True,
            allocation=allocation,
            progress=lambda task, done, total, note="": seen.append(task),
            **bounds,
        )
    assert words in caught.value.message
    assert "--sparsity 0.6" in caught.value.message
    assert not {*seen} & {*MEASURED}


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_narrow_bounds_clip_and_what_they_cut_goes_elsewhere(allocation, checkpoint, prune):
    given = {"allocation": allocation, **CHEAP.get(allocation, {})}
    plan = prune(checkpoint(), dry_run=True, min_sparsity=0.59, max_sparsity=0.62, **given).plan
    shares = [row["zeros"] / row["size"] for row in plan.rows]
    room = max(1 / row["size"] for row in plan.rows)
    assert 0.59 - room <= min(shares) <= max(shares) <= 0.62 + room
    assert sum(r["zeros"] for r in plan.rows) == round(0.6 * sum(r["size"] for r in plan.rows))
    if allocation in ("alpha", "farms", "owl", "dlp", "global"):  # these spread further by far
        assert max(shares) > 0.62 - 2 * room


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_each_granularity_is_what_it_says(allocation, checkpoint, prune):
    grains = ALLOCATORS[allocation].grains
    shares = {}
    for grain in grains:
        given = {"allocation": allocation, "granularity": grain, **CHEAP.get(allocation, {})}
        rows = prune(checkpoint(), dry_run=True, **given).plan.rows
        shares[grain] = {row["module"]: row["zeros"] / row["size"] for row in rows}
        blocks = {}
        for row in rows:
            blocks.setdefault(row["block"], []).append(row)
        one_share = [
            max(abs(a["zeros"] / a["size"] - b["zeros"] / b["size"]) for a in part for b in part)
            <= 2 / min(row["size"] for row in part)
            for part in blocks.values()
        ]
        assert all(one_share) if grain == "block" else not all(one_share), grain
    if "mixed" in grains:  # the mean of the others, but for what bounds cut
        for name, share in shares["mixed"].items():
            mean = (shares["block"][name] + shares["matrix"][name]) / 2
            assert share == pytest.approx(mean, abs=0.005), name


@pytest.fixture(scope="module")
def rows_of(checkpoint, text):
    """The plan's rows by a metric and a sign."""
    import compress

    def call(metric, sign):
        options = {"calib": str(text), "samples": 2, "seqlen": 16, "granularity": "matrix"}
        return compress.alpha_prune(
            checkpoint(), sparsity=0.6, metric=metric, metric_sign=sign, dry_run=True, **options
        ).plan.rows

    return call


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_orders_the_shares_by_its_sign_or_the_one_asked_for(metric, rows_of):
    own = rows_of(metric, "auto")
    other = rows_of(metric, str(-METRICS[metric].sign))
    size = sum(row["size"] for row in own)
    for rows, sign in ((own, METRICS[metric].sign), (other, -METRICS[metric].sign)):
        ordered = sorted(rows, key=lambda row: sign * row[metric])
        shares = [row["zeros"] / row["size"] for row in ordered]
        assert all(b >= a - 1 / row["size"] for a, b, row in zip(shares, shares[1:], ordered[1:]))
        assert sum(row["zeros"] for row in rows) == round(0.6 * size)
    values = {row[metric] for row in own}
    if max(values) - min(values) > 1e-9:
        assert own != other
    assert rows_of(metric, METRICS[metric].sign) == own


def test_the_sign_turns_the_map_round_and_nothing_else():
    class Ground:
        sizes, bounds = [10, 10, 10], (0.0, 0.99)
        settings = AlphaPruneSettings(sparsity=0.5, metric_sign="-1")

    turned = share_spectral([2.0, 3.0, 4.0], Ground())
    Ground.settings = AlphaPruneSettings(sparsity=0.5)
    assert turned.tolist() == pytest.approx(share_spectral([4.0, 3.0, 2.0], Ground()).tolist())


def test_a_farms_window_that_some_matrices_lack_room_for_is_cut_and_said(checkpoint, prune):
    done = prune(checkpoint(), dry_run=True, allocation="farms", farms_window=20, farms_grid=2)
    assert len({row["farms"] for row in done.plan.rows}) > 1
    with pytest.raises(RequestError, match="larger than every matrix: the largest has 32 rows"):
        prune(checkpoint(), dry_run=True, allocation="farms", farms_window=33)


def test_a_window_cut_to_fit_is_noted_by_name(checkpoint, prune, tmp_path):
    done = prune(checkpoint(), tmp_path / "out", allocation="farms", farms_window=20)
    narrow = [m for m in open_source(checkpoint()).tensors if m.endswith("k_proj.weight")]
    notes = " ".join(done.receipt.notes)
    assert "FARMS window 20 cut to 16 × 16" in notes
    assert narrow[0].removesuffix(".weight") in notes


def test_a_given_plan_says_which_options_had_no_say(checkpoint, prune, tmp_path):
    file = tmp_path / "plan.json"
    prune(checkpoint(), dry_run=True, plan_out=file, allocation="uniform")
    done = prune(checkpoint(), tmp_path / "a", plan=file, sparsity=0.7, epsilon=0.2)
    note = next(n for n in done.receipt.notes if "had no say" in n)
    assert "`--sparsity 0.7`" in note
    assert "`--epsilon 0.2`" in note
    quiet = prune(checkpoint(), tmp_path / "b", plan=file)
    assert not any("had no say" in n for n in quiet.receipt.notes)
