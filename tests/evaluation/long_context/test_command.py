"""`eval --tasks needle,multidoc,longreason`: the command, its JSON, pairing, pictures, faults."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.evaluation.evaluate import evaluate
from compress.evaluation.measures import Measures, compare
from compress.evaluation.measuring import measure
from tiny_models import make_checkpoint

SMALL = {"per_cell": 2, "depths": (0.0, 1.0), "context_lengths": (123, 126)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("long")
    make_checkpoint("llama", path / "one", seed=0)
    make_checkpoint("llama", path / "two", seed=1)
    make_checkpoint("bert", path / "bert")
    make_checkpoint("bart", path / "bart")
    (path / "hay.txt").write_text("The boat is red. It sails far. " * 40)
    return path


def test_two_models_are_paired_item_by_item(place, tmp_path):
    found = evaluate(
        place / "one", against=place / "two", tasks=["needle"], png=tmp_path / "map.png", **SMALL
    )
    data = found.as_dict()
    json.dumps(data, allow_nan=False)
    one, two = (model["tasks"]["needle"] for model in data["models"])
    assert {"acc", "stderr", "n", "cells", "chance", "exact_match", "answer_loss"} <= set(one)
    assert one["n"] == 8
    assert len(one["cells"]) == 4
    difference = data["comparison"]["tasks"]["needle"]
    assert difference["difference"] == pytest.approx(one["acc"] - two["acc"])
    assert difference["n"] == 8
    moved = difference["answer_loss"]["difference"]
    assert moved == pytest.approx(one["answer_loss"] - two["answer_loss"])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    text = found.render()
    assert max(map(len, text.splitlines())) <= 80
    assert "accuracy by depth (down) and length (across)" in text
    assert "against two" in text


def test_the_same_model_twice_gives_the_same_numbers(place):
    first = evaluate(place / "one", tasks="needle", attention=True, **SMALL).as_dict()
    assert first == evaluate(place / "one", tasks="needle", attention=True, **SMALL).as_dict()
    other = evaluate(place / "one", tasks="needle", seed=1, **SMALL).as_dict()
    key = "answer_loss"
    assert other["models"][0]["tasks"]["needle"][key] != first["models"][0]["tasks"]["needle"][key]


def test_beside_tasks_of_lm_eval_and_perplexity(demo_model):
    found = evaluate(
        demo_model, ppl="demo", tasks="tiny_story,needle,multidoc,longreason", limit=3, per_cell=3
    ).as_dict()
    (entry,) = found["models"]
    assert set(entry["tasks"]) == {"tiny_story", "needle", "multidoc", "longreason"}
    assert all(score["n"] == 3 for score in entry["tasks"].values())
    assert any("longreason: left out" in note for note in found["notes"])


def test_attention_is_paired_too(place):
    found = evaluate(
        place / "one", against=place / "two", tasks=["needle"], attention=True, **SMALL
    )
    data = found.as_dict()
    one, two = (model["tasks"]["needle"]["attention_on_answer"] for model in data["models"])
    moved = data["comparison"]["tasks"]["needle"]["attention_on_answer"]["difference"]
    assert moved == pytest.approx(one - two)
    assert "on the answer, one against two" in found.render()
    assert max(map(len, found.render().splitlines())) <= 80


MEAP = [
    {},
    {"sft": "question:answer", "sft_mode": "separate", "min_response": 5},
    {"sft": "question:answer", "sft_mode": "concat", "min_response": 5},
]


@pytest.mark.parametrize("options", MEAP, ids=["pre-training", "separate", "concat"])
def test_a_model_trained_by_meap_is_paired_with_its_base(place, tmp_path, options):
    from compress.training.command import train_meap

    data = place / "hay.txt"
    if options:
        data = tmp_path / "qa.jsonl"
        rows = [{"question": f"number {i}?", "answer": "the boat is red " * 2} for i in range(12)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_meap(
        place / "one", output=tmp_path / "meap", data=[str(data)], steps=2, batch_size=2,
        seqlen=100, lr=1e-2, **options,
    )  # fmt: skip
    found = evaluate(tmp_path / "meap", against=place / "one", tasks=["needle"], **SMALL).as_dict()
    assert "notes" not in found  # the mask token, new in the tokenizer, changes no prompt
    difference = found["comparison"]["tasks"]["needle"]
    assert difference["n"] == 8
    assert difference["answer_loss"]["difference"] != 0


def test_a_study_scores_them_too(demo_model):
    from compress.progress import silent
    from compress.study.preparing import open_subject
    from compress.study.settings import StudySettings

    settings = StudySettings(
        calib=("demo",), methods=("wanda",), sparsity=(0.5,), tasks=("needle",)
    )
    subject = open_subject(str(demo_model), settings, silent)
    assert subject.request.long is not None
    assert subject.request.token_limit == 256


def test_outcomes_survive_json_and_pair(place):
    source = open_source(place / "one")
    found = measure(source.load(), source.tokenizer(), tasks=["needle"], limit=6)
    again = Measures.from_json(found.to_json())
    assert again.as_receipt() == found.as_receipt()
    assert compare(found, again) == compare(found, found)
    assert set(found.as_items()["tasks"]["needle"]) == set(found.tasks["needle"].items)


def test_models_that_cut_text_apart_are_not_paired(place, demo_model):
    found = evaluate(
        place / "one", against=demo_model, tasks="needle", per_cell=2, context_lengths=(120,)
    ).as_dict()
    assert "needle" not in found["comparison"].get("tasks", {})
    assert any("different tokens" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("one", {"context_lengths": (64, 129)}, "129` is above the limit of .*one.*128"),
        ("one", {"context_lengths": (20, 126)}, "20 tokens, depth 0 doesn't fit"),
        ("one", {"tasks": "longreason", "context_lengths": (126,)}, "`longreason` with 126 tokens"),
        ("one", {"tasks": "multidoc", "documents": (20,)}, "`multidoc` with 20 documents"),
        ("one", {"haystack": "gone.txt"}, "gone.txt"),
        ("one", {"depths": (2.0,)}, "from 0 to 1"),
        ("one", {"png": "gone/map.png"}, "no directory"),
        ("one", {"tasks": "needel"}, "did you mean `needle`"),
        ("one", {"tasks": "tiny_story", "hops": (1,)}, "needs `--tasks longreason`"),
        ("bert", {}, "causal language model"),
        ("bart", {}, "has an encoder"),
    ],
)
def test_bad_requests_before_a_model_is_loaded(place, monkeypatch, model, options, said):
    from compress.checkpoints.source import Source

    monkeypatch.setattr(Source, "load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(RequestError) as error:
        evaluate(place / model, **{"tasks": "needle", **options})
    assert error.value.code == 2
    import re

    assert re.search(said, f"{error.value.message} {error.value.hint}")


def test_the_command(place):
    base = [sys.executable, "-m", "compress", "eval", str(place / "one"), "--tasks", "needle"]
    small = ["--context-lengths", "123,126", "--depths", "0,1", "--per-cell", "2", "--json"]
    hay = ["--haystack", str(place / "hay.txt")]
    done = subprocess.run([*base, *small, *hay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["tasks"]["needle"]["n"] == 8
    bad = subprocess.run(
        [*base, "--context-lengths", "1000"], capture_output=True, text=True, cwd=place
    )
    assert bad.returncode == 2
    assert bad.stdout == ""
    first = bad.stderr.splitlines()[0]
    assert first.startswith("error: `--context-lengths 1000` is above the limit")
    assert "Traceback" not in bad.stderr
    for wrong in (["--depths", "half"], ["--context-lengths", "12.5"]):
        bad = subprocess.run([*base, *wrong], capture_output=True, text=True)
        assert bad.returncode == 2
        assert "numbers with commas" in bad.stderr.splitlines()[0]
