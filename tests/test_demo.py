"""The demo: equal zeros in every arm, the control is what it says, the verdict is the figures'."""

import json

import pytest

import compress
from compress import demonstration


@pytest.fixture(scope="module")
def seen(tmp_path_factory, demo_model):
    """A demo at one sparsity, on a few windows and one task."""
    place = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstration, "SPARSITIES", (0.7,))
        patch.setattr(demonstration, "TASKS", ("tiny_story",))
        patch.setattr(demonstration, "SAMPLES", 8)
        patch.setattr(demonstration, "LIMIT", 20)
        return compress.demo(place, everything=True), place


def rows(place, arm):
    return json.loads((place / f"s70-{arm}" / "plan.json").read_text())["rows"]


def test_every_arm_has_as_many_zeros(seen):
    _, place = seen
    totals = {arm: sum(r["zeros"] for r in rows(place, arm)) for arm in demonstration.ARMS}
    size = sum(r["size"] for r in rows(place, "alpha-mid"))
    assert set(totals.values()) == {round(0.7 * size)}


def test_the_control_spares_the_first_block_as_alpha_does_and_no_other(seen):
    _, place = seen
    share = {
        arm: {
            block: sum(r["zeros"] for r in rows(place, arm) if r["block"] == block)
            / sum(r["size"] for r in rows(place, arm) if r["block"] == block)
            for block in dict.fromkeys(r["block"] for r in rows(place, arm))
        }
        for arm in demonstration.ARMS
    }
    first, *others = share["alpha-mid"]
    assert share["first-only"][first] == pytest.approx(share["alpha-mid"][first], abs=1e-3)
    alike = [share["first-only"][b] for b in others]
    assert max(alike) - min(alike) < 1e-3
    assert max(share["alpha-mid"].values()) - min(share["alpha-mid"].values()) > 0.01


def test_the_verdict_says_what_the_interval_says(seen):
    found, place = seen
    receipts = {a: json.loads((place / f"s70-{a}" / "receipt.json").read_text())
                for a in demonstration.ARMS}  # fmt: skip
    value = {a: r["after"]["perplexity"]["demo"]["value"] for a, r in receipts.items()}
    verdict, _ = found.verdicts
    for arm, ppl in value.items():
        assert f"{arm} {ppl:.2f}" in verdict
    for arm, after in (("alpha-mid", " uniform, and"), ("alpha-peak", " uniform.")):
        words = verdict.partition(f"{arm} is ")[2].partition(after)[0]
        expected = "better than" if value[arm] < value["uniform"] else "worse than"
        assert words in (expected, "not distinguishable from")


def test_all_of_it_fits_the_screen_and_is_json(seen):
    found, _ = seen
    text = found.render()
    assert max(map(len, text.splitlines())) <= 80
    assert "eigenvalue" in text
    data = json.loads(json.dumps(found.as_dict()))
    assert [run["name"] for run in data["runs"]] == [
        *(f"s70-{arm}" for arm in demonstration.ARMS),
        *demonstration.CONDENSED,
    ]


def test_the_mixture_is_condensed_both_ways(seen):
    found, place = seen
    for name in demonstration.CONDENSED:
        receipt = json.loads((place / name / "receipt.json").read_text())
        assert len(receipt["experts"]["condensed"]) == demonstration.LAYERS
        assert f"{name} {receipt['after']['perplexity']['demo']['value']:.2f}" in found.verdicts[1]
