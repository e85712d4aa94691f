"""Answers on grids whose truth is known: who is better, who can't be told apart, controls."""

import numpy as np
import pytest
from scipy import stats

from compress.numerics.significance import holm
from compress.study.answers import answer
from compress.study.cells import BAD_END, MAGNITUDE, REPEAT, Cell
from compress.study.journal import FAILED, Outcome
from compress.study.settings import Setting, StudySettings
from compress.study.verdict import verdict

WAYS = [Setting(m, "uniform", s) for m in ("wanda", "sparsegpt") for s in (0.5, 0.6)]
SPEC = "text"
ITEMS = 40


def outcome(calib, seed, way, losses, control="", digest="sha256:x", **more):
    losses = np.asarray(losses, float)
    scores = {"perplexity": {SPEC: {"value": float(np.exp(losses.mean()))}}}
    cell = Cell("model", calib, seed, way, control)
    items = {"perplexity": {SPEC: losses.tolist()}}
    return Outcome(cell, f"{calib}{seed}{way}{control}", digest=digest, scores=scores, items=items,
                   **more)  # fmt: skip


def grid(effects, seeds=5, spread=0.05, ways=WAYS, rng=None):
    """Outcomes of sets whose loss is `effects` above that of the items and ways."""
    rng = rng or np.random.default_rng(0)
    items = rng.normal(3, 0.5, ITEMS)
    found = []
    for calib, effect in effects.items():
        for seed in range(seeds):
            draw = rng.normal(0, spread)
            for number, way in enumerate(ways):
                noise = rng.normal(0, 0.02, ITEMS)
                found.append(
                    outcome(calib, seed, way, items + effect + 0.3 * number + draw + noise)
                )
    return found


def ask(outcomes, reference="ref", corpus=None):
    names = dict.fromkeys(o.cell.calib for o in outcomes)
    return answer(outcomes, reference, corpus or {n: n for n in names}, resamples=400)


def pooled(found):
    return {row["calib"]: row for row in found["comparison"] if "method" not in row}


def test_comparisons_are_welch_over_pooled_seed_means_with_holm():
    outcomes = grid({"ref": 0.0, "a": 0.3, "b": 0.01, "c": -0.3})
    rows = pooled(ask(outcomes))

    def means(calib):
        own = [o for o in outcomes if o.cell.calib == calib]
        return [
            np.mean([o.items["perplexity"][SPEC] for o in own if o.cell.seed == s])
            for s in range(5)
        ]

    tests = [stats.ttest_ind(means(c), means("ref"), equal_var=False) for c in "abc"]
    adjusted = holm([t.pvalue for t in tests])
    for calib, test, p in zip("abc", tests, adjusted):
        assert rows[calib]["difference"] == pytest.approx(
            np.mean(means(calib)) - np.mean(means("ref"))
        )
        assert rows[calib]["ci95"] == pytest.approx(list(test.confidence_interval(0.95)))
        assert rows[calib]["p_holm"] == pytest.approx(p)
        assert rows[calib]["comparisons"] == 3
    assert [(rows[c]["better"], rows[c]["worse"]) for c in "abc"] == [
        (False, True), (False, False), (True, False)
    ]  # fmt: skip
    low, high = rows["a"]["bootstrap95"]
    assert low < rows["a"]["difference"] < high
    assert rows["a"]["other_items"]


def test_no_difference_is_an_answer():
    rng = np.random.default_rng(3)
    outcomes = grid({"ref": 0.0, "a": 0.0, "b": 0.0}, rng=rng)
    found = ask(outcomes)
    (line,) = verdict(found, found["comparison"], outcomes, StudySettings(), "ref")
    assert line.startswith("loss:text: no difference: no set can be told from `ref`")
    assert "Holm's correction for 2 comparisons" in line
    assert "First: all 3, which can't be told apart" in line


def test_the_false_alarms_of_many_sets_are_held_down():
    """200 studies of six equal sets: some set is called better in at most 5 %, and noise."""
    alarms = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        outcomes = grid(dict.fromkeys(["ref", *"abcde"], 0.0), ways=WAYS[:1], rng=rng)
        found = answer(outcomes, "ref", {}, resamples=0)
        alarms += any(row["better"] or row["worse"] for row in pooled(found).values())
    assert alarms / 200 <= 0.09


def test_formats_of_one_corpus_are_paired_by_seed():
    rng = np.random.default_rng(1)
    outcomes = grid({"ref": 0.0}, spread=0.5, rng=rng)
    twin = [
        outcome("ref@icl", o.cell.seed, o.cell.setting,
                np.array(o.items["perplexity"][SPEC]) + 0.05 + rng.normal(0, 0.02))
        for o in outcomes
    ]  # fmt: skip
    both = outcomes + twin
    paired = pooled(ask(both, corpus={"ref": "ref", "ref@icl": "ref"}))["ref@icl"]
    apart = pooled(ask(both))["ref@icl"]
    assert paired["paired"]
    assert not apart["paired"]
    width = [np.ptp(row["ci95"]) for row in (paired, apart)]
    assert width[0] < width[1] / 5
    assert paired["worse"]
    assert not apart["worse"]


def test_one_seed_says_nothing_of_other_draws():
    outcomes = grid({"ref": 0.0, "a": 0.5}, seeds=1)
    found = ask(outcomes)
    row = pooled(found)["a"]
    assert row["basis"] == "items"
    assert not row["better"]
    assert not row["worse"]
    lines = verdict(found, found["comparison"], outcomes, StudySettings(seeds=1), "ref")
    assert "no verdict" in lines[0]


def test_a_way_that_failed_somewhere_is_left_out_of_what_is_pooled():
    outcomes = grid({"ref": 0.0, "a": 0.1})
    broken = outcomes[-1]
    assert broken.cell.setting == WAYS[3]
    outcomes[-1] = Outcome(broken.cell, broken.key, FAILED, error="NaN")
    found = ask(outcomes)
    rest = [o for o in outcomes if o.cell.setting != WAYS[3]]
    assert pooled(found)["a"]["difference"] == pytest.approx(pooled(ask(rest))["a"]["difference"])
    kept = {(row["method"], row["sparsity"]) for row in found["comparison"] if "method" in row}
    assert len(kept) == 4  # by itself it is still told
    lines = verdict(found, found["comparison"], outcomes, StudySettings(), "ref")
    assert any("sparsegpt 0.6" in line for line in lines)


def test_variance_is_split_by_its_causes():
    found = ask(grid({"ref": 0.0, "a": 1.0, "b": -1.0}, spread=0.01))
    (row,) = found["variance"]
    assert row["one_way"]["data"] > 0.98
    assert sum(row["all"].values()) == pytest.approx(1)
    noise = ask(grid({"ref": 0.0, "a": 0.0, "b": 0.0}, spread=0.5))["variance"][0]
    assert noise["one_way"]["seed"] > 0.8


def test_formats_and_corpora_share_the_variance():
    effects = {"x": 0.0, "x@icl": 0.4, "y": 2.0, "y@icl": 2.4}
    corpus = {name: name[0] for name in effects}
    found = answer(grid(effects, spread=0.01), "x", corpus, resamples=0)
    shares = found["variance"][0]["one_way"]
    # Between corpora (2)² and between formats (0.4)², each over two levels.
    assert shares["data"] / shares["format"] == pytest.approx(25, rel=0.1)


def test_controls_that_hold_and_controls_that_break():
    outcomes = grid({"ref": 0.0, "a": 0.1})
    first = outcomes[0]
    way = Setting("magnitude", "uniform", 0.5)
    same = [outcome(c, 0, way, [3.0] * ITEMS, MAGNITUDE, "sha256:m") for c in ("ref", "a")]
    twin = outcome("ref", 0, WAYS[0], first.items["perplexity"][SPEC], REPEAT)
    bad = [outcome("ellipses", s, w, [9.0] * ITEMS, BAD_END) for s in (0, 1) for w in WAYS]
    found = ask([*outcomes, *same, twin, *bad])
    assert {row["control"]: row["passed"] for row in found["controls"]} == {
        "magnitude": True, "repeat": True, "bad end": True
    }  # fmt: skip
    assert pooled(found).keys() == {"a"}  # controls are no answers

    other = outcome("a", 0, way, [3.0] * ITEMS, MAGNITUDE, "sha256:other")
    moved = outcome("ref", 0, WAYS[0], np.array(first.items["perplexity"][SPEC]) + 1e-12, REPEAT)
    good = [outcome("random", s, w, [0.1] * ITEMS, BAD_END) for s in (0, 1) for w in WAYS]
    every = [*outcomes, same[0], other, moved, *good]
    found = ask(every)
    assert not any(row["passed"] for row in found["controls"])
    lines = verdict(found, found["comparison"], every, StudySettings(), "ref")
    assert any("Controls failed, so nothing above can be trusted" in line for line in lines)
    assert any("Blind to bad data" in line for line in lines)


def test_capabilities_are_averaged_each_by_itself_and_without_the_same_data():
    outcomes = []
    for calib, arithmetic in (("ref", 0.4), ("a", 0.6)):
        for seed in range(3):
            tasks = {"gsm8k": arithmetic, "svamp": 0.5, "boolq": 0.7}
            scores = {"tasks": {t: {"acc": v, "n": 10} for t, v in tasks.items()}}
            cell = Cell("model", calib, seed, WAYS[0])
            outcomes.append(Outcome(cell, "k", scores=scores, items={"tasks": {}}))
    found = answer(outcomes, "ref", {}, resamples=0, domains={("a", "gsm8k"): True})
    rows = {(row["capability"], row["calib"]): row for row in found["capabilities"]}
    assert rows["arithmetic", "a"]["mean"] == pytest.approx(0.55)
    assert rows["arithmetic", "a"]["without_in_domain"] == pytest.approx(0.5)
    assert "without_in_domain" not in rows["arithmetic", "ref"]
    assert rows["commonsense", "a"]["mean"] == pytest.approx(0.7)
    assert next(r for r in found["comparison"] if r["metric"] == "acc:gsm8k")["in_domain"]
