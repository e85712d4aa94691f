"""`--compare-allocations`: uniform, a line and atp pruned beside, each as in a run of its own."""

import pytest

import compress
from compress.errors import RequestError
from compress.evaluation.compare import compare_windows
from compress.reports.allocation import allocation_text
from compress.reports.receipt import read_items
from compress.reports.validate import check
from tests.sparsity.test_resume import files

ASKED = {"limit": 4, "eval_seqlen": 32, "atp_candidates": 3, "atp_held_out": 2}
OWN = ("alpha", "uniform", "line", "atp")


@pytest.fixture(scope="module")
def compared(checkpoint, text, other_text, tmp_path_factory):
    """A run with the comparison, and where it lies."""
    place = tmp_path_factory.mktemp("compared") / "out"
    options = {"calib": str(text), "samples": 4, "seqlen": 32, "ppl": (str(other_text),), **ASKED}
    done = compress.alpha_prune(
        checkpoint(), place, sparsity=0.6, compare_allocations=True, **options
    )
    return done, place


def told(compared):
    return compared[0].receipt.as_dict()["allocation"]


def test_the_result_is_that_of_a_run_without_it(compared, checkpoint, prune, other_text, tmp_path):
    done, place = compared
    plain = prune(checkpoint(), tmp_path / "o", ppl=(str(other_text),), limit=4, eval_seqlen=32)
    assert files(place)["model.safetensors"] == files(tmp_path / "o")["model.safetensors"]
    assert files(place)["plan.json"] == files(tmp_path / "o")["plan.json"]
    assert done.after.perplexity[str(other_text)].value == (
        plain.after.perplexity[str(other_text)].value
    )
    assert not place.with_name("out.partial").exists()


def test_each_rival_scores_as_in_a_run_of_its_own(
    compared, checkpoint, prune, other_text, tmp_path
):
    done, place = compared
    spec = str(other_text)
    found = told(compared)
    assert tuple(found["shares"]) == tuple(found["scores"]) == OWN
    assert set(found["comparison"]) == {*OWN} - {"alpha"}
    alone = {
        "uniform": {"allocation": "uniform"},
        "line": {"allocation": "atp", "atp_beta": found["line"]["beta"]},
        "atp": {"allocation": "atp", "atp_beta": found["search"]["beta"]},
    }
    kept = read_items(place)["allocations"]
    for name, options in alone.items():
        own = prune(checkpoint(), tmp_path / name, ppl=(spec,), limit=4, eval_seqlen=32, **options)
        score = own.after.perplexity[spec]
        assert found["scores"][name]["perplexity"][spec] == score.as_receipt()
        assert kept[name]["perplexity"][spec] == score.losses.tolist()
        expected = compare_windows(score, done.after.perplexity[spec]).as_receipt()
        entry = dict(found["comparison"][name]["perplexity"][spec])
        assert expected["p"] <= entry["p_holm"] <= 1
        assert entry.pop("distinguishable") == (entry.pop("p_holm") < 0.05)
        del expected["distinguishable"]
        assert entry == expected
    assert found["search"]["searched"]
    assert not found["line"]["searched"]


def test_all_remove_the_same_number(compared):
    found, plan = told(compared), compared[0].plan
    sizes = {}
    for row in plan.rows:
        sizes[row["block"]] = sizes.get(row["block"], 0) + row["size"]
    total = sum(row["zeros"] for row in plan.rows)
    for name, shares in found["shares"].items():
        removed = sum(share * sizes[block] for share, block in zip(shares, found["blocks"]))
        assert removed == pytest.approx(total, abs=len(sizes)), name


def test_the_receipt_keeps_the_contract_and_the_report_shows_it(compared):
    done, place = compared
    assert check(done.receipt.as_dict()) == []
    shown = compress.report(str(place))
    text = shown.render(width=80, terminal=False)
    assert max(map(len, text.splitlines())) <= 80
    for words in ("alpha minus it", "uniform", "line: shares rise by", "held-out windows"):
        assert words in text
    assert shown.as_dict()["runs"][0]["allocation"]["scores"].keys() == set(OWN)
    assert allocation_text(told(compared), width=80, terminal=False) in done.render()


def test_bars_stand_on_a_terminal_only_and_fit(compared):
    found = told(compared)
    for width in (60, 80):
        text = allocation_text(found, width=width, terminal=True)
        assert max(len(line.replace("\x1b[1m", "").replace("\x1b[0m", "")) for line in
                   text.splitlines()) <= width  # fmt: skip
    assert "█" in allocation_text(found, width=80, terminal=True)
    assert "█" not in allocation_text(found, width=80, terminal=False)


def test_without_data_and_with_an_own_line(checkpoint, prune, other_text, tmp_path):
    spec = (str(other_text),)
    given = {"method": "magnitude", "allocation": "atp", "atp_beta": "0.01"}
    given |= {"limit": 2, "eval_seqlen": 32}
    done = prune(checkpoint(), tmp_path / "o", ppl=spec, compare_allocations=True, **given)
    found = done.receipt.as_dict()["allocation"]
    assert tuple(found["scores"]) == ("atp", "uniform", "line")
    assert done.receipt.as_dict().get("calibration") is None


@pytest.mark.parametrize(
    "given",
    [
        {"rows": "trim"},
        {"pattern": "mixed:8", "allocation": "er", "granularity": "block"},
        {"propagate": "dense", "allocation": "uniform"},
        {"method": "sparsegpt", "damp": 0.5, "block_size": 16, "allocation": "uniform"},
        {"refit": "exact", "allocation": "uniform"},
    ],
)
def test_with_other_options(given, checkpoint, prune, other_text, tmp_path):
    asked = {"ppl": (str(other_text),), "limit": 2, "eval_seqlen": 32, "atp_candidates": 1}
    done = prune(checkpoint(), tmp_path / "o", compare_allocations=True, **asked, **given)
    plain = prune(checkpoint(), tmp_path / "p", **given)
    assert files(tmp_path / "o")["model.safetensors"] == files(tmp_path / "p")["model.safetensors"]
    assert done.plan.rows == plain.plan.rows
    assert len(done.receipt.as_dict()["allocation"]["scores"]) == (
        3 if given.get("allocation") == "uniform" else 4
    )


def test_a_dry_run_shows_the_searched_line(checkpoint, prune, other_text):
    plan = prune(
        checkpoint(), dry_run=True, compare_allocations=True, ppl=(str(other_text),), **ASKED
    )
    assert tuple(plan.beside["shares"]) == OWN
    assert "held-out windows" in plan.render()


@pytest.mark.parametrize("at", ["walk", "score"])
def test_an_interrupted_run_resumes_to_the_same(
    at, checkpoint, prune, other_text, compared, tmp_path
):
    given = {"ppl": (str(other_text),), "compare_allocations": True, **ASKED}
    scored = []

    def stop(task, done, total, note=""):
        if at == "walk" and task == "prune" and done == 2:
            raise KeyboardInterrupt
        if at == "score" and task.startswith("perplexity") and done == total:
            scored.append(task)
            if len(scored) == 4:  # before, after, and the second of the others
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(checkpoint(), tmp_path / "out", progress=stop, **given)
    assert not (tmp_path / "out").exists()
    done = prune(checkpoint(), tmp_path / "out", resume=True, **given)
    assert files(tmp_path / "out") == files(compared[1])
    assert done.receipt.as_dict()["allocation"] == told(compared)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ppl": ()}, "nothing to compare by"),
        ({"refit": "block"}, "`--refit block` can't"),
        ({"propagate": "true-sequential"}, "`--propagate true-sequential` can't"),
        ({"pattern": "2:4", "sparsity": None}, "`--pattern 2:4`"),
        ({"plan": {"rows": []}}, "`--plan`"),
    ],
)
def test_what_it_cannot_go_with_is_named(given, words, checkpoint, prune, other_text, tmp_path):
    given = {"ppl": (str(other_text),), **given}
    if "plan" in given:
        file = tmp_path / "plan.json"
        prune(checkpoint(), dry_run=True, plan_out=file)
        given["plan"] = file
    with pytest.raises(RequestError, match=words):
        prune(checkpoint(), tmp_path / "out", compare_allocations=True, **given)
    assert not (tmp_path / "out").exists()
