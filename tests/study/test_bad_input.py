"""Wrong requests: one line, exit code 2, nothing written; and what the command prints."""

import importlib.util
import json

import pytest

import compress
from compress.cli.main import call
from compress.errors import RequestError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calib": ()}, "no calibration data to compare"),
        ({"calib": ("demoo",)}, "neither a file nor a corpus"),
        ({"calib": ("demo", "demo")}, "`--calib` names `demo` twice"),
        ({"calib": ("demo@icl",)}, "demo"),
        ({"calib": ("demo@sonnet",)}, "unknown format `sonnet`"),
        ({"calib": ("commonsense_qa@cot",)}, "rationale"),
        ({"methods": ("wonda",)}, "`wonda` isn't a method"),
        ({"methods": ("wanda", "wanda")}, "`--methods` names `wanda` twice"),
        ({"sparsity": (1.5,)}, "`--sparsity 1.5` is outside"),
        ({"patterns": ("4:2",)}, "4:2"),
        ({"allocations": ("atp",)}, "`atp` searches its slope anew"),
        ({"ppl": ()}, "nothing tells good pruning from bad"),
        ({"ppl": ("nowhere.txt",)}, "no such file"),
        ({"seeds": 0}, "`--seeds 0` is less than 1"),
        ({"samples": 10**6}, "too short"),
        ({"seqlen": 10**6}, "above the limit"),
        ({"stats": "guess"}, "`guess` isn't a stats"),
        ({"shard": (3, 2)}, "`--shard 3/2`"),
        ({"shard": (9, 9)}, "`--shard 9/9` is empty"),
        ({"budget": -1.0}, "isn't positive"),
        ({"reference": "nobody"}, "`--reference nobody` is none of the calibration sets"),
        ({"reuse": ("nowhere",)}, "`nowhere` is no study"),
    ],
    ids=str,
)
def test_wrong_requests_are_refused(study, tmp_path, options, words):
    with pytest.raises(RequestError) as raised:
        study(tmp_path / "study", **options)
    assert words in f"{raised.value.message} {raised.value.hint}"
    assert not (tmp_path / "study").exists()


def test_the_evaluation_text_is_no_calibration_text(study, tmp_path, texts):
    score = str(texts / "score.txt")
    with pytest.raises(RequestError, match="both the calibration and the evaluation text"):
        study(tmp_path / "study", calib=(score,))
    options = {"methods": ("wanda",), "sparsity": (0.5,), "seeds": 1, "predictors": False}
    found = study(tmp_path / "study", calib=(score,), allow_leakage=True, **options)
    assert found.receipt.extra["cells"][0]["status"] == "ok"


def test_an_unknown_option_of_the_function_names_near_ones(tiny):
    with pytest.raises(TypeError, match="did you mean `methods`"):
        compress.calib_study(tiny, "out", method="wanda")


def test_ray_is_refused_in_one_line_where_it_is_not_there(study, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs the package ray, which isn't installed"):
        study(tmp_path / "study", backend="ray")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--budget", "soon"], "`--budget soon` isn't a time"),
        (["--shard", "1-2"], "`--shard 1-2` isn't i/n"),
        (["--sparsity", "half"], "numbers with commas are needed"),
        ([], "no output directory"),
    ],
)
def test_the_command_line_is_checked(argv, error, capsys):
    assert call(["calib-study", "model", "--calib", "demo", *argv]) == 2
    captured = capsys.readouterr()
    assert error in captured.err.splitlines()[0]
    assert captured.out == ""


def test_a_dry_run_counts_and_writes_nothing(tiny, texts, tmp_path, capsys):
    argv = ["calib-study", str(tiny), "--calib", f"demo,{texts / 'sums.txt'}", "--samples", "2"]
    argv += ["--seqlen", "16", "--ppl", str(texts / "score.txt"), "--sparsity", "0.5,0.6"]
    argv += ["--seeds", "3", "--dry-run", "--json", "-o", str(tmp_path / "study")]
    assert call(argv) == 0
    found = json.loads(capsys.readouterr().out)
    # 2 sets x 2 sparsities x 3 seeds; magnitude of both, the bad ends' two seeds, one repeated.
    assert found["cells"] == 12 + 2 + 2 * 2 * 2 + 1
    assert found["controls"] == 11
    assert found["walks"] == 6 + 4 + 1

    assert found["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stats", ["exact", "dense"])
def test_the_passes_of_a_dry_run_are_those_of_the_run(study, tmp_path, stats):
    options = {"stats": stats, "seeds": 1, "predictors": False}
    counted = study(dry_run=True, **options).estimate["passes"]
    made = study(tmp_path / "study", **options).receipt.cost.passes
    assert made == pytest.approx(counted)


def test_the_report_reads_a_study(study, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "study", predictors=False, sparsity=(0.5,), methods=("wanda",))
    capsys.readouterr()
    page, picture = tmp_path / "page.html", tmp_path / "forest.png"
    argv = ["report", "study", "--html", str(page), "--png", str(picture)]
    assert call([*argv, "--csv", str(tmp_path / "cells.csv")]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("loss on score.txt", "against boats.txt, 95 %", "verdict", "4 of 4 cells"):
        assert part in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    html = page.read_text()
    assert "://" not in html
    assert "differences from boats.txt" in html
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    assert lines[0].startswith("model,calib,format,method")
    assert call(["report", "study", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "calib-study"
