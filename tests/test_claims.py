"""The page of claims: as its script makes it, every claim on it, moved by every figure."""

import json
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "claims"))

from claim_figures import (  # noqa: E402
    NOT_SEEN,
    PENDING,
    SEEN,
    UNTESTABLE,
    Claim,
    Files,
    Part,
    less,
    more,
    slope,
)
from page import PAGE, page, sections  # noqa: E402
from prune_claims import _blind  # noqa: E402

COUNTS = {"M": 5, "L": 5, "S": 7, "X": 6, "D": 3, "C": 4, "A": 4, "R": 6, "K": 6, "P": 5}
NAMES = [f"{letter}{i}" for letter, count in COUNTS.items() for i in range(1, count + 1)]
CLAIMS = {c.name: c for s in sections(Files(ROOT)) for c in s.claims}


class Recorded(Files):
    """Files that remember what was read."""

    def __init__(self, root):
        super().__init__(root)
        self.read = set()

    def lines(self, name):
        self.read.add(name)
        return super().lines(name)

    def content(self, name):
        self.read.add(name)
        return super().content(name)

    def rows(self, name):
        self.read.add(name)
        return super().rows(name)


def sources():
    files = Recorded(ROOT)
    sections(files)
    return sorted(files.read)


SOURCES = sources()
THERE = [name for name in SOURCES if (ROOT / name).exists()]


@pytest.fixture
def copy(tmp_path):
    for name in THERE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_committed_page_is_what_the_figures_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/claims/page.py --write"


def test_every_claim_has_one_row_with_a_verdict():
    rows = re.findall(r"^\| ([A-Z]\d) \|.*\*\*(.+?)\*\*", page(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(NAMES)
    assert {verdict for _, verdict in rows} <= {SEEN, NOT_SEEN, PENDING, UNTESTABLE}
    assert dict(rows) == {name: claim.verdict for name, claim in CLAIMS.items()}


def test_a_copy_gives_the_same_page(copy):
    assert page(copy) == page()


@pytest.mark.parametrize("name", THERE)
def test_each_file_of_figures_moves_the_page(copy, name):
    (copy / name).unlink()
    assert page(copy) != page()


def test_a_page_without_figures_judges_nothing_as_seen(tmp_path):
    found = {c.name: c.verdict for s in sections(Files(tmp_path)) for c in s.claims}
    assert set(found) == set(NAMES)
    assert set(found.values()) == {PENDING, UNTESTABLE}


def test_a_broken_figure_moves_figure_and_verdict(copy):
    path = copy / "benchmarks/experts/curve.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["arm"] == "CD-MoE-SR" and line["model"] == "deepseek" and line["strength"] == 4:
            line["loss"] += 9
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert CLAIMS["C1"].verdict == SEEN
    after = {c.name: c for s in sections(Files(copy)) for c in s.claims}["C1"]
    assert after.verdict == NOT_SEEN
    assert page(copy) != page()


def grid(kinds, difference):
    """Lines of the norm arms: mix better than both by about the difference."""
    for depth in ("deep12", "deep24"):
        for kind in kinds:
            for seed in range(3):
                loss = 5 + 0.1 * seed - (difference + 0.001 * seed if kind == "mix" else 0)
                yield {"arm": f"{depth}/{kind}", "seed": seed, "held_out": loss,
                       "parameters": 7}  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "difference", "verdict"),
    [
        (("pre", "post", "mix", "lns"), 0.2, SEEN),
        (("pre", "post", "mix", "lns"), -0.2, NOT_SEEN),
        (("pre", "mix"), 0.2, PENDING),
        (("pre", "mix"), -0.2, NOT_SEEN),
    ],
)
def test_verdicts_follow_figures_that_arrive(tmp_path, kinds, difference, verdict):
    place = tmp_path / "benchmarks" / "training"
    place.mkdir(parents=True)
    text = "\n".join(map(json.dumps, grid(kinds, difference)))
    (place / "grid.jsonl").write_text(text, encoding="utf-8")
    found = {c.name: c.verdict for s in sections(Files(tmp_path)) for c in s.claims}
    assert found["X3"] == verdict
    assert found["X6"] == (SEEN if "lns" in kinds else PENDING)


def test_spikes_of_rows_that_were_long_unseen_count_for_nothing(tmp_path):
    place = tmp_path / "benchmarks" / "training"
    place.mkdir(parents=True)
    found = {"model.embed_tokens.weight": 1e16, "model.layers.0.mlp.up_proj.weight": 144.0}
    spikes = {"by_parameter": {name: {"largest_ratio": r} for name, r in found.items()}}
    line = {"arm": "census/llama, wikitext", "seed": 0, "spikes": spikes}
    (place / "grid.jsonl").write_text(json.dumps(line), encoding="utf-8")
    part = {c.name: c for s in sections(Files(tmp_path)) for c in s.claims}["S1"].parts[1]
    assert part == Part("llama, wikitext: largest 12 times", False)


def test_a_text_on_which_dots_prune_as_well_is_blind():
    sets = {"gsm8k": {0: 1.0, 1: 1.2}, "mawps": {0: 1.5, 1: 1.7}, "ellipses": {0: 1.55, 1: 1.75}}
    assert _blind(sets) is False
    assert _blind({**sets, "random": {0: 1.4, 1: 1.6}}) is True
    assert "blind" in CLAIMS["K4"].parts[0].text


# The rule


def test_the_interval_is_the_textbook_one():
    first, second = {0: 1.0, 1: 2.0, 2: 4.0}, {0: 2.0, 1: 4.0, 2: 7.0, 5: 100.0}
    # Differences −1, −2, −3: mean −2, standard error 1 / √3, t(2, 97.5 %) = 4.302653.
    part = less("x", first, second)
    half = 4.302653 / 3**0.5
    assert part.text == f"x −2.000 (−{2 + half:.3f} to +{half - 2:.3f}, 3 seeds)"
    assert part.holds is False  # it includes 0
    assert less("x", first, second, margin=0.5).holds is True
    assert more("x", second, first).holds is False
    assert more("x", second, first, margin=0.5).holds is True


def test_one_seed_or_none_gives_no_verdict():
    assert less("x", {0: 1.0}, {0: 2.0}) == Part("x −1.000 (1 seed)", None)
    assert less("x", {0: 1.0}, {1: 2.0}).holds is None
    same = less("x", {0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0})
    assert same.holds is None
    assert "the same in all" in same.text


@pytest.mark.parametrize(
    ("parts", "needs", "verdict"),
    [
        ((True, True), "", SEEN),
        ((True, None), "", PENDING),
        ((False, None), "", NOT_SEEN),
        ((True, False), "", NOT_SEEN),
        ((), "", PENDING),
        ((True,), "a large model", UNTESTABLE),
    ],
)
def test_the_verdict_of_parts(parts, needs, verdict):
    claim = Claim("Z1", "", "", "", [Part("", holds) for holds in parts], needs=needs)
    assert claim.verdict == verdict


def test_the_slope_of_a_line():
    assert slope([1.0, 3.0, 5.0, 7.0]) == pytest.approx(2.0)


# Against the tables that are committed beside the figures


def test_figures_agree_with_the_benchmarks_own_tables():
    drought = (ROOT / "benchmarks/drought/results.md").read_text(encoding="utf-8")
    california = drought.partition("## California")[2].partition("## SIM")[0]
    row = next(x for x in california.splitlines() if x.startswith("| **SIDE** | −"))
    shown = re.findall(r"([−+][\d.]+) \(([−+][\d.]+) … ([−+][\d.]+)\)", row)
    assert len(shown) == 5
    for (middle, low, high), part in zip(shown, CLAIMS["D3"].parts):
        assert part.text.endswith(f"{middle} ({low} to {high})")

    curve = (ROOT / "benchmarks/experts/curve.md").read_text(encoding="utf-8")
    assert "| original + tuned | 0 | 1.00 | 0.850 ± 0.004" in curve
    assert "tuned 0.850 ± 0.004" in CLAIMS["C3"].beside

    channels = (ROOT / "benchmarks/channels/README.md").read_text(encoding="utf-8")
    for share, part in zip(("0.5", "0.35", "0.2"), CLAIMS["P3"].parts):
        line = re.search(rf"^\| {share} \| taylor \|.*\| ([-\d.]+) ± [\d.]+ \|$", channels, re.M)
        assert f"against taylor −{line[1]} (" in part.text


def test_means_agree_with_the_pruning_table():
    table = (ROOT / "benchmarks/prune/quality.md").read_text(encoding="utf-8")
    means = re.findall(r"\d\.\d{3} ± \d\.\d{3}", CLAIMS["A4"].beside)
    assert len(means) == 3
    for shown in means:
        assert shown in table.replace("*", "")


# What is named exists


def test_commands_and_recipes_that_are_named_exist():
    text = page()
    scripts = set(re.findall(r"python ((?:benchmarks|examples)/[\w/]+\.py)", text))
    recipes = set(re.findall(r"compress run ([\w.-]+)`", text))
    assert len(scripts) > 8
    assert len(recipes) > 8
    for script in scripts:
        assert (ROOT / script).is_file(), script
    for recipe in recipes:
        assert (ROOT / "recipes" / f"{recipe}.yaml").is_file(), recipe


def test_seeds_are_paired_not_pooled():
    # A spread over seeds that both arms share mustn't widen the interval.
    first = {s: 10.0 * s + 0.01 * (s % 2) for s in range(4)}
    second = {s: 10.0 * s + 1 for s in range(4)}
    assert less("x", first, second).holds is True
    assert statistics.stdev(first.values()) > 10
