"""Changed examples: counts and lists against plain counting, what is kept, the tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as functional
from choice_task import TEXT, write_text_and_task

from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.evaluation.accuracy import Accuracy
from compress.evaluation.changed import changes
from compress.evaluation.error_rates import error_rate
from compress.evaluation.evaluate import Evaluation, evaluate
from compress.evaluation.measures import Measures
from compress.evaluation.shown import from_sample, head, tail
from compress.evaluation.tasks import TaskScore
from tiny_models import make_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("changed")
    write_text_and_task(path, "teal", range(0, 168, 7))
    make_checkpoint("llama", path / "one", seed=0)
    make_checkpoint("llama", path / "two", seed=1)
    return path


@pytest.fixture(scope="module")
def found(place):
    return evaluate(
        [place / "one"], against=place / "two", ppl=[str(place / "boat.txt")],
        tasks=["my_choice", "needle"], task_dirs=[place / "tasks"], eval_seqlen=32, device="cpu",
        context_lengths=[126], per_cell=2, haystack=str(place / "boat.txt"), changed=2,
    )  # fmt: skip


def _continuation_score(model, tokenizer, context, ending):
    """The log likelihood of an ending by one plain forward pass."""
    before = tokenizer(context)["input_ids"]
    whole = tokenizer(context + ending)["input_ids"]
    logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(before), len(whole)))


@torch.no_grad()
def test_the_list_is_what_plain_forward_passes_say(place, found):
    entry = found.as_dict()["comparison"]["changed"]["tasks"]["my_choice"]
    outcome, scores = {}, {}
    for name in ("two", "one"):
        source = open_source(place / name)
        model, tokenizer = source.load(), source.tokenizer()
        for i in range(24):
            own = [
                _continuation_score(model, tokenizer, f"number {7 * i} is", f" {color}")
                for color in ("teal", "blue")
            ]
            scores[name, i], outcome[name, i] = own, own[i % 2] > own[1 - i % 2]
    lost = [i for i in range(24) if outcome["two", i] and not outcome["one", i]]
    gained = [i for i in range(24) if outcome["one", i] and not outcome["two", i]]
    assert lost or gained
    assert (entry["lost"], entry["gained"], entry["n"]) == (len(lost), len(gained), 24)
    assert [int(row["item"].partition(":")[0]) for row in entry["items"]] == lost + gained
    for row in entry["items"]:
        i = int(row["item"].partition(":")[0])
        assert row["question"] == f"number {7 * i} is"
        assert row["target"] == ("teal", "blue")[i % 2]
        assert row["choices"] == ["teal", "blue"]
        assert row["scores_before"] == pytest.approx(scores["two", i], rel=1e-4)
        assert row["scores_after"] == pytest.approx(scores["one", i], rel=1e-4)
        right, wrong = ("teal", "blue")[:: 1 if i % 2 == 0 else -1]
        answers = (right, wrong) if i in lost else (wrong, right)
        assert (row["answer_before"], row["answer_after"]) == answers


@torch.no_grad()
def test_windows_that_moved_most_come_first(place, found):
    entry = found.as_dict()["comparison"]["changed"]["perplexity"][str(place / "boat.txt")]
    losses = {}
    for name in ("one", "two"):
        source = open_source(place / name)
        ids = torch.tensor(source.tokenizer()(TEXT)["input_ids"])
        windows = ids[: len(ids) // 32 * 32].reshape(-1, 32)
        logits = source.load()(windows).logits[:, :-1].float()
        losses[name] = functional.cross_entropy(
            logits.transpose(1, 2), windows[:, 1:], reduction="none"
        ).mean(1)
    change = (losses["one"] - losses["two"]).tolist()
    assert [row["window"] for row in entry["windows"]] == sorted(
        range(len(change)), key=lambda i: -abs(change[i])
    )
    assert entry["rose"] == sum(value > 0 for value in change)
    assert entry["fell"] == sum(value < 0 for value in change)
    for row in entry["windows"]:
        assert row["after"] - row["before"] == pytest.approx(change[row["window"]], abs=1e-5)
    (first,) = [row for row in entry["windows"] if row["window"] == 0]
    assert first["text"].startswith("Once there was a small")


def test_long_context_items_bring_their_question(found):
    entry = found.as_dict()["comparison"]["changed"]["tasks"]["needle"]
    for row in entry["items"]:
        assert row["question"]
        assert row["target"] in (row["answer_before"], row["answer_after"])
        assert len(row["scores_before"]) == len(row["choices"]) == 4


def test_the_tables_show_so_many_and_zero_none(found):
    text = found.render()
    assert max(map(len, text.splitlines())) <= 80
    assert "right → wrong" in text
    assert "windows (p " in text
    assert "Once there was" in text or "begins" in text
    block = next(part for part in text.split("\n\n") if "loss rose in" in part)
    assert len(block.splitlines()) == 2 + 2  # heading, header, two rows
    none = Evaluation(found.measures, found.against, changed=0)
    assert "changed" not in none.as_dict()["comparison"]
    assert "right → wrong" not in none.render()
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_model_against_itself_changes_nothing(found):
    own = next(iter(found.measures.values()))
    same = changes(own, own)
    for entries in same.values():
        for entry in entries.values():
            assert not entry.get("items", entry.get("windows"))
            assert entry.get("lost", entry.get("rose")) == 0


def test_journals_keep_no_texts(found):
    own = next(iter(found.measures.values()))
    assert "number 7 is" not in own.to_json()
    assert "Once there was" not in own.to_json()
    again = Measures.from_json(own.to_json())
    assert changes(own, again).keys() == changes(own, own).keys()


def test_changed_needs_another_model(place):
    with pytest.raises(RequestError, match="--changed 3") as error:
        evaluate(place / "one", ppl=[str(place / "boat.txt")], changed=3)
    assert error.value.code == 2


# ---- what is kept of an item


def _sample(arguments, replies, target):
    return {"arguments": arguments, "filtered_resps": replies, "target": target}


def test_choices_behind_one_question():
    asked = [("2 + 2 =", " 3"), ("2 + 2 =", " four")]
    found = from_sample(_sample(asked, [(-1.0, False), (-1.5, True)], 1), "acc")
    assert found["choices"] == ["3", "four"]
    assert (found["target"], found["answer"], found["scores"]) == ("four", "3", [-1.0, -1.5])
    by_length = from_sample(_sample(asked, [(-1.0, False), (-1.5, True)], 1), "acc_norm")
    assert by_length["answer"] == "four"  # -1.5 / 4 > -1.0 / 1


def test_requests_without_a_context_are_no_choices():
    asked = [("q", " a"), ("q", " b"), ("", " a"), ("", " b")]
    found = from_sample(_sample(asked, [(-3, 0), (-2, 0), (-1, 0), (-9, 0)], 0), "acc")
    assert found["choices"] == ["a", "b"]
    assert found["answer"] == "b"


def test_choices_that_are_contexts():
    asked = [("Ann", " fell since she slipped"), ("Bob", " fell since she slipped")]
    found = from_sample(_sample(asked, [(-3, 0), (-2, 0)], 0), "acc")
    assert found["choices"] == ["Ann", "Bob"]
    assert (found["target"], found["answer"]) == ("Ann", "Bob")
    assert found["question"] == "fell since she slipped"


def test_generated_and_last_words():
    found = from_sample(_sample([("Say it:", {"until": ["x"]})], ["12\n"], "13"), "exact_match")
    assert (found["target"], found["answer"]) == ("13", "12")
    last = from_sample(_sample([("The sea is", " wide")], [(-2.5, True)], "wide"), "acc")
    assert (last["target"], last["scores"]) == ("wide", [-2.5])
    assert "answer" not in last


def test_long_texts_are_cut_at_the_right_end():
    assert head("a b " * 100, 10) == "a b a b a…"
    assert tail("x " * 100 + "why?", 10).endswith("x why?")
    assert len(tail("x " * 100, 10)) <= 10


# ---- other measures


def test_utterances_by_word_errors():
    said = ["a b c", "d e", "f"]
    before = error_rate(said, ["a b c", "d x", "f"], "wer")
    after = error_rate(said, ["a x y", "d e", "f"], "wer")
    entry = changes(Measures(wer={"r": before}), Measures(wer={"r": after}))["wer"]["r"]
    assert (entry["rose"], entry["fell"], entry["n"]) == (1, 1, 3)
    assert [(row["item"], row["before"], row["after"]) for row in entry["items"]] == [
        (0, 0, 2),
        (1, 1, 0),
    ]


def test_graded_items_rise_and_fall():
    def score(values):
        return TaskScore(0.0, None, 3, {str(i): v for i, v in enumerate(values)}, metric="f1")

    found = changes(
        Measures(tasks={"t": score([0.5, 0.2, 0.9])}), Measures(tasks={"t": score([0.4, 0.9, 0.9])})
    )
    entry = found["tasks"]["t"]
    assert (entry["rose"], entry["fell"]) == (1, 1)
    assert [row["item"] for row in entry["items"]] == ["1", "0"]


def test_other_items_are_absent():
    one, other = TaskScore(1.0, None, 1, {"a": 1.0}), TaskScore(1.0, None, 1, {"b": 1.0})
    assert changes(Measures(tasks={"t": one}), Measures(tasks={"t": other})) == {}


def test_tables_of_images_and_utterances_fit_the_screen():
    def measured(right, heard):
        places = [
            f"/a/long/directory/of/photographs/class_{i}/picture_number_{i}.png" for i in (1, 2)
        ]
        shown = {
            p: {"target": "cat", "answer": "cat" if r else "dog"} for p, r in zip(places, right)
        }
        images = Accuracy(
            top1=0.5, top5=1.0, stderr=0.3, n=2, items=dict(zip(places, right)), shown=shown
        )
        said = ["the red boat sailed over the sea and came home again late in the evening"]
        rate = error_rate(said, [heard], "wer")
        texts = [{"item": "/a/b/record.wav", "target": said[0], "answer": heard}]
        return Measures(accuracy={"photos": images}, wer={"talk": replace(rate, shown=texts)})

    before = measured([1.0, 0.0], "the red boat sailed over the sea and came home again late in it")
    after = measured([0.0, 1.0], "the bed goat failed over the sea and came home again late in it")
    text = Evaluation({"old": before, "new": after}, "old").render()
    assert max(map(len, text.splitlines())) <= 80
    assert "1 right → wrong, 1 wrong → right of 2" in text
    lost = next(line for line in text.splitlines() if "lost" in line)
    assert lost.split()[-3:] == ["cat", "cat", "dog"]
    assert "errors rose in 1, fell in 0 of 1 items" in text
    assert "record.wav" in text
    assert "the bed goat" in text
