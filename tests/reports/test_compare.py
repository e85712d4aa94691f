from __future__ import annotations

import csv
import io
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

from compress.errors import RequestError
from compress.numerics.significance import paired
from compress.reports.compare import report
from compress.reports.receipt import Receipt, write_items

TASKS = ("arc", "boolq", "piqa")


def make_run(place: Path, allocation: str, ppl: float, acc: float, **changes) -> Path:
    place.mkdir(parents=True)
    scores = {
        "perplexity": {"wiki.txt": {"value": ppl, "stderr": 0.1, "tokens": 100, "seqlen": 10}},
        "tasks": {name: {"acc": acc, "stderr": 0.006, "n": 5000} for name in TASKS},
    }
    Receipt.build(
        "alpha-prune",
        seed=0,
        argv=[],
        settings={"sparsity": 0.6, "method": "wanda", "allocation": allocation, "samples": 8},
        model={"source": "m", "architecture": "LlamaForCausalLM"},
        before={"perplexity": {"wiki.txt": {"value": 9.76, "stderr": 0.05}}},
        **{"after": scores, "cost": {"seconds": {"apply": 2.0}}, **changes},
    ).write(place)
    return place


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "s60-uniform", "uniform", 14.1, 0.548),
        make_run(tmp_path / "s60-alpha", "alpha", 13.0, 0.571),
        make_run(tmp_path / "s60-atp", "atp", 14.0, 0.549),
    ]


SCREEN = """\
run           allocation            ppl     tasks (mean of 3)
s60-uniform   uniform      14.10 ± 0.10                 0.548
s60-alpha     alpha        13.00 ± 0.10 *               0.571 *
s60-atp       atp          14.00 ± 0.10                 0.549
* better than the first row, 95 %, Holm-corrected (2 comparisons a column); from
  standard errors without pairing, so small differences are missed
before, for all: ppl 9.76 ± 0.05
the same in all: sparsity 0.6, method wanda"""


def test_the_screen_of_a_comparison(three):
    assert report(three).render(width=80, terminal=False) == SCREEN


def test_a_terminal_sees_the_same_with_a_bold_header(three, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawn = report(three).render(width=80, terminal=True)
    assert drawn.startswith("\x1b[1mrun ")
    assert drawn.replace("\x1b[1m", "").replace("\x1b[0m", "") == SCREEN


def test_the_first_row_is_the_reference_and_worse_is_marked_too(three):
    text = report([three[1], three[0]]).render(width=80, terminal=False)
    assert "s60-uniform   uniform      14.10 ± 0.10 !" in text
    assert "! worse than the first row, 95 %, Holm-corrected (1 comparison);" in text


def test_outcomes_by_example_are_paired_where_they_were_kept(three):
    rng = np.random.default_rng(0)
    base = rng.normal(2.6, 0.5, 30)
    near = base - 0.01 + rng.normal(0, 0.005, 30)  # far below the spread of the windows
    for place, losses in ((three[0], base), (three[2], near)):
        write_items(place, {"perplexity": {"wiki.txt": losses.tolist()}})
    found = report([three[0], three[2]]).as_dict()["comparison"]
    ppl = next(row for row in found if row["measure"] == "ppl")
    assert ppl["paired"]
    assert ppl["better"]
    assert ppl["p"] == pytest.approx(paired(base.tolist(), near.tolist()).p)
    assert ppl["difference"] == pytest.approx(-0.1)
    text = report([three[0], three[2]]).render(width=80, terminal=False)
    assert "14.00 ± 0.10 *" in text
    assert "paired where outcomes of examples were kept" in " ".join(text.split())


def test_windows_of_another_length_are_not_paired(three, tmp_path: Path):
    short = {"perplexity": {"wiki.txt": {"value": 14.0, "stderr": 0.1, "tokens": 100, "seqlen": 5}}}
    other = make_run(tmp_path / "short", "alpha", 0, 0, after=short)
    for place in (three[0], other):
        write_items(place, {"perplexity": {"wiki.txt": [1.0, 2.0, 3.0]}})
    (row,) = report([three[0], other]).as_dict()["comparison"]
    assert not row["paired"]


def test_one_receipt_is_its_own_table(three, monkeypatch):
    monkeypatch.chdir(three[1].parent)
    assert report("s60-alpha").render(width=80, terminal=False) == textwrap.dedent("""\
                              before   after   change
        perplexity wiki.txt     9.76   13.00   +33 %   (± 0.10)
        arc, acc                       0.571           (± 0.006)
        boolq, acc                     0.571           (± 0.006)
        piqa, acc                      0.571           (± 0.006)

        done in 2.0 s  (apply 2.0 s)
        s60-alpha   loads with AutoModelForCausalLM.from_pretrained""")


def test_evaluations_stand_beside_receipts(three, tmp_path: Path):
    file = tmp_path / "eval.json"
    models = [
        {"source": "/m/dense", "perplexity": {"wiki.txt": {"value": 9.76, "stderr": 0.05}}},
        {"source": "/m/other", "tasks": {"arc": {"acc": 0.5}}},
    ]
    file.write_text(json.dumps({"schema": 1, "models": models}))
    text = report([file, three[1]]).render(width=80, terminal=False)
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["dense", "other", "s60-alpha"]
    assert "13.00 ± 0.10 !" in text


def test_cells_of_a_study_are_rows(tmp_path: Path):
    cells = [
        {"calib": c, "method": "wanda", "seed": s, "status": status, "perplexity": scores}
        for c, s, status, scores in (
            ("c4", 0, "ok", {"w": {"value": 8.0}}),
            ("wiki", 0, "failed", {}),
        )
    ]
    Receipt.build("calib-study", seed=0, argv=[], cells=cells).write(tmp_path)
    assert report([tmp_path]).render(width=80, terminal=False).splitlines()[0] != ""
    rows = report([tmp_path]).as_dict()["runs"]
    assert [row["settings"]["calib"] for row in rows] == ["c4", "wiki"]
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert "after" not in rows[1]


def test_wide_tables_go_on_below_with_the_names_repeated(tmp_path: Path):
    specs = {f"corpus-{i}.txt": {"value": 10.0 + i, "stderr": 0.1} for i in range(7)}
    runs = [
        make_run(tmp_path / f"run-{i}", "alpha", 0, 0, after={"perplexity": specs}) for i in (0, 1)
    ]
    text = report(runs).render(width=80, terminal=False)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("run-1") > 1
    for i in range(7):
        assert text.count(f"{10 + i}.00 ± 0.10") == 2


def test_rows_can_be_sorted(three):
    names = lambda found: [run.name for run in found.runs]
    assert names(report(three, sort="ppl")) == ["s60-alpha", "s60-atp", "s60-uniform"]
    assert names(report(three, sort="allocation")) == ["s60-alpha", "s60-atp", "s60-uniform"]
    assert names(report(three, sort="run")) == ["s60-alpha", "s60-atp", "s60-uniform"]
    with pytest.raises(RequestError, match="`pppl`") as caught:
        report(three, sort="pppl")
    assert "did you mean `ppl`" in caught.value.hint


def test_csv_has_everything_at_full_precision(three, tmp_path: Path):
    file = tmp_path / "t.csv"
    report(three, csv=file)
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    assert [row["run"] for row in rows] == ["s60-uniform", "s60-alpha", "s60-atp"]
    assert rows[1]["after.perplexity.wiki.txt.value"] == "13.0"
    assert rows[1]["settings.samples"] == "8"
    assert rows[0]["p_holm.ppl"] == ""
    assert float(rows[1]["p_holm.ppl"]) < 1e-6


def test_markdown(three, tmp_path: Path):
    file = tmp_path / "t.md"
    report(three[:2], markdown=file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == [
        "| run | allocation | ppl | tasks (mean of 3) |",
        "| --- | --- | ---: | ---: |",
        "| s60-uniform | uniform | 14.10 ± 0.10 | 0.548 |",
        "| s60-alpha | alpha | 13.00 ± 0.10 \\* | 0.571 \\* |",
    ]
    report(three[0], markdown=file)
    assert "| perplexity wiki.txt | 9.76 | 14.10 | +44 % | (± 0.10) |" in file.read_text()


def test_json_is_plain_and_has_no_nulls(three):
    data = report(three).as_dict()
    text = json.dumps(data, allow_nan=False)
    assert "null" not in text
    assert data["schema"] == 1
    assert data["runs"][1]["after"]["tasks"]["arc"]["acc"] == 0.571
    assert {row["run"] for row in data["comparison"]} == {"s60-alpha", "s60-atp"}


def test_directories_of_one_name_are_told_apart(tmp_path: Path):
    runs = [make_run(tmp_path / d / "out", d, 9.0, 0.5) for d in ("a", "b")]
    assert [run.name for run in report(runs).runs] == [str(run) for run in runs]
    assert len({run.name for run in report([runs[0], runs[0] / "receipt.json"]).runs}) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "has no receipt.json"),
        ('{"schema": 1, "models": [1]}', "`models` isn't a list of objects"),
        ('{"schema": 1, "cells": [1]}', "`cells[0]` isn't an object"),
        ('{"schema": 1}', "neither `command` nor `models`"),
        ('{"schema": 9, "command": "x"}', "newer compress"),
        ('{"schema": 1, "comm', "isn't complete JSON"),
        ('{"schema": 1, "command": "x", "after": 3}', "`receipt.after` is 3, not an object"),
    ],
)
def test_bad_receipts_are_named_among_good_ones(three, tmp_path: Path, text, says):
    bad = tmp_path / "bad"
    bad.mkdir()
    if text is not None:
        (bad / "receipt.json").write_text(text)
    with pytest.raises(RequestError) as caught:
        report([*three, bad])
    assert says in caught.value.message
    assert str(bad) in caught.value.message


def test_the_directory_above_the_runs_is_told_from_an_empty_one(three):
    with pytest.raises(RequestError) as caught:
        report(three[0].parent)
    assert caught.value.hint == f"its subdirectories have: `{three[0].parent}/*`"


def test_nothing_to_report_and_nowhere_to_write(three, tmp_path: Path):
    with pytest.raises(RequestError, match="no receipt"):
        report([])
    with pytest.raises(RequestError, match="there is no"):
        report([tmp_path / "none"])
    with pytest.raises(RequestError, match="can't be written"):
        report(three, csv=tmp_path / "none" / "t.csv")


def test_word_error_rates_are_paired_by_utterance(tmp_path):
    """Six utterances of two words; the second run hears one word less in each of five."""
    for name, errors in (("a", [0] * 6), ("b", [1, 1, 1, 1, 1, 0])):
        place = tmp_path / name
        place.mkdir()
        value = sum(errors) / 12
        after = {"wer": {"test": {"value": value, "stderr": 0.2, "words": 12}}}
        Receipt.build("lowrank-svd", seed=0, argv=[], after=after).write(place)
        write_items(place, {"wer": {"test": [[error, 2] for error in errors]}})
    pair = [tmp_path / "a", tmp_path / "b"]
    text = report(pair).render(width=80, terminal=False)
    assert "0.417 ± 0.200 !" in text  # worse, beyond the noise, by the pairs
    assert "paired on" in text
    (tmp_path / "b" / "items.json").unlink()
    assert "!" not in report(pair).render(width=80, terminal=False)  # by two standard errors


def test_rows_and_columns_are_chosen(three):
    names = [run.name for run in report(three).runs]
    found = report(three, rows=[names[2], names[0]], columns=["ppl", "allocation"])
    header, rows, _ = found.cells()
    assert [title.strip() for title in header] == ["run", "ppl", "allocation"]
    assert [row[0] for row in rows] == [names[2], names[0]]  # the first is the reference
    assert len(report(three, rows=["*"]).runs) == 3
    with pytest.raises(RequestError, match="no row is called `nothing`"):
        report(three, rows=["nothing"])
    with pytest.raises(RequestError, match="no column is called `pp`") as caught:
        report(three, columns=["pp"])
    assert "`ppl`" in str(caught.value.hint)


def test_latex_is_a_tabular_with_everything_escaped(three, tmp_path: Path):
    report(three, latex=tmp_path / "t.tex")
    lines = (tmp_path / "t.tex").read_text().splitlines()
    header, rows, align = report(three).cells()
    assert lines[0] == f"\\begin{{tabular}}{{{align}}}"
    assert lines[-1].startswith("%")
    body = [line for line in lines if line.endswith("\\\\")]
    assert len(body) == len(rows) + 1
    assert all(line.count(" & ") == len(header) - 1 for line in body)
    assert "±" not in "".join(body)
    from compress.reports.formats import latex

    assert "a\\_b & 50 \\% \\\\" in latex(["x", "y"], [["a_b", "50 %"]], "lr")
