"""The shipped recipes: each is right in both forms, says what it needs, and three are run."""

import json

import pytest

import compress
from compress.cli.main import call
from compress.recipes.listing import shipped_list
from compress.recipes.marks import read_file
from compress.recipes.reading import find_recipe, shipped_recipes

NAMES = sorted(shipped_recipes())
# The cheapest of those that chain commands, hold a grid, and train.
RUN = ["low-rank-then-2-4", "stable-spam-4bit", "calibration-study"]


def test_there_is_one_for_each_result():
    results = ("alpha-pruning-s70", "alpha-pruning-s80", "owl-comparison", "calibration-study",
               "cd-moe-deepseek-16b", "cd-moe-qwen1.5", "svd-llm-ratios", "lr-sms", "spam-60m-1b",
               "stable-spam-4bit", "meap-pretrain", "meap-finetune", "mix-ln-71m-1b", "lns-130m-1b",
               "prune-recover-evaluate", "condense-then-prune", "mix-ln-then-prune",
               "low-rank-then-2-4", "pass-six-datasets")  # fmt: skip
    assert set(results) <= set(NAMES)


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_right(name, quick, tmp_path):
    plan = compress.run(name, tmp_path / "out", set={"quick": quick}, dry_run=True).summary
    assert plan["steps"]
    if quick:
        assert len(plan["steps"]) <= 10  # a minute's worth
        words = [word for step in plan["steps"] for word in step["argv"]]
        assert not {"--calib=c4", "--data=c4", "--ppl=wikitext2"} & set(words)  # no network


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_reproduces_and_how_to_call_it(name):
    text = find_recipe(name).read_text(encoding="utf-8")
    head = text[: text.index("about:")] if "include:" not in text else text
    assert f"compress run {name}" in head or "include:" in text
    about = read_file(find_recipe(name)).value["about"].value
    assert len(f"{name:<26}{about}") <= 100


def test_the_list_names_them(capsys):
    assert call(["run", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)
    assert max(map(len, out.splitlines())) <= 80
    assert all(recipe["quick"] for recipe in shipped_list().recipes)


@pytest.mark.parametrize("name", RUN)
def test_quick_forms_run(name, tmp_path, capsys):
    assert call(["run", name, "--set", "quick=true", "-o", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "ok"
    assert told["recipe"]["quick"]
    rows = told["table"].get("runs") or told["table"]["cells"]
    assert len(rows) >= 1
