"""Leakage: planted passages, the same split, another split of the same data."""

from __future__ import annotations

import json

import pytest

from compress.data import Items, prepare_calibration, relation
from compress.data.overlap import words_of
from compress.errors import RequestError
from tiny_models import tiny_tokenizer

LONG = "Natalia sold clips to 48 of her friends in April, and then half as many in May."
SHORT = "How many eggs do eight hens lay daily?"


def test_words_are_lower_case_without_punctuation():
    assert words_of("It's 3.5%, he SAID!") == ["it", "s", "3", "5", "he", "said"]


def test_a_passage_is_found_whatever_its_case_and_punctuation():
    items = Items({"sums": [LONG], "eggs": [SHORT], "tiny": ["Too short."]})
    middle = "natalia SOLD clips: to 48 of her friends; in April and then half"
    assert items.tasks_of(f"Before it. {middle}! After it.") == ["sums"]
    assert items.tasks_of(LONG.replace("April", "June")) == []  # no 13 words in a row are left
    assert items.tasks_of(f"She asked: {SHORT.lower()}") == ["eggs"]  # 8 words suffice there
    assert items.tasks_of("too short") == []
    assert items.unchecked == {"tiny": 1}
    assert items.counts([LONG, SHORT, LONG, "x"]) == {"sums": 2, "eggs": 1, "tiny": 0}


def test_a_planted_leak_is_dropped_and_drawn_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [f"document {i} says nothing of interest at all to anybody here" for i in range(40)]
    texts[3] = texts[17] = LONG
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    options = {"samples": 8, "seqlen": 200}
    everything, _ = prepare_calibration(str(path), tiny_tokenizer(), samples=10, seqlen=200)
    passage = "Natalia sold clips to 48 of her friends in April, and then"
    held = [passage in tiny_tokenizer().decode(b["input_ids"][0].tolist()) for b in everything]
    assert any(held[:8])
    clean, report = prepare_calibration(
        str(path), tiny_tokenizer(), items={"sums": [LONG], "eggs": [SHORT]}, **options
    )
    assert report.windows == 8
    assert report.as_dict()["leaked"] == report.leaked == {"sums": sum(held)}
    kept = [batch for batch, leak in zip(everything, held) if not leak][:8]
    assert all(a["input_ids"].equal(b["input_ids"]) for a, b in zip(clean, kept, strict=True))
    _, allowed = prepare_calibration(
        str(path), tiny_tokenizer(), items={"sums": [LONG]}, allow_leakage=True, **options
    )
    assert allowed.leaked == {}


def test_calibrating_on_the_evaluated_split_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"some text {i} " * 9}) + "\n" for i in range(40)))
    options = {"samples": 2, "seqlen": 64, "held_out": str(path)}
    with pytest.raises(RequestError, match="both the calibration and the evaluation") as error:
        prepare_calibration(str(path), tiny_tokenizer(), **options)
    assert error.value.code == 2
    assert "--allow-leakage" in error.value.hint
    _, report = prepare_calibration(str(path), tiny_tokenizer(), allow_leakage=True, **options)
    assert report.windows == 2


def test_a_split_that_a_task_is_scored_on_is_refused(tmp_path):
    known = tmp_path / "registry.yaml"
    known.write_text(
        "schema: 1\ncorpora:\n  mine:\n    like: gsm8k\n    hub: openai/gsm8k\n"
        "    config: main\n    splits: {calibration: test}\n"
    )
    with pytest.raises(RequestError, match="split that task `gsm8k` is scored on"):
        prepare_calibration("mine@icl", tiny_tokenizer(), registry=known, items={"gsm8k": [LONG]})
    assert relation("mine", "gsm8k", known) == "same"


@pytest.mark.parametrize(
    ("calib", "evaluated", "expected"),
    [
        ("gsm8k@icl", "gsm8k_cot", "in-domain"),
        ("gsm8k", "anli_r1", "other"),
        ("anli_r1", "anli_r3", "in-domain"),
        ("c4=0.5+gsm8k=0.5", "gsm8k", "in-domain"),
        ("wikitext2", "wikitext2", "in-domain"),
        ("c4", "wikitext2", "other"),
        ("self", "wikitext2", "other"),
        ("demo", "tiny_story", "in-domain"),
    ],
)
def test_how_near_an_evaluation_is(calib, evaluated, expected):
    assert relation(calib, evaluated) == expected


def test_one_file_under_two_names_is_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    assert relation("a.jsonl", str(tmp_path / "a.jsonl")) == "same"
