"""The corpus: same bytes every time, splits apart, labels right by an independent reading."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter

import generate
import lexicon as lex
import pytest

DOMAINS = generate.DOMAINS


def many(domain: str, split: str, count: int = 600) -> list[generate.Item]:
    return [generate.item(3, domain, number, split) for number in range(count)]


def test_regenerating_gives_the_committed_bytes(shipped, tmp_path):
    # Another hash seed: no draw may depend on the order of a set.
    environment = {**os.environ, "PYTHONHASHSEED": "11"}
    command = [sys.executable, str(shipped / "generate.py"), str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(made) == 2 + len(DOMAINS)
    for path in made:
        assert (shipped / path).read_bytes() == (tmp_path / path).read_bytes(), path


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_share_no_item(domain):
    contexts = {s: {one.context for one in many(domain, s)} for s in generate.SPLITS}
    keys = {s: {one.key for one in many(domain, s)} for s in generate.SPLITS}
    for first, second in (("train", "calibration"), ("train", "test"), ("calibration", "test")):
        assert not contexts[first] & contexts[second]
        assert not keys[first] & keys[second]


def test_calibration_and_test_files_share_no_line(shipped):
    texts = {}
    for split in ("calibration", "test"):
        lines = (shipped / "demo" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert {row["domain"] for row in rows} == set(DOMAINS)
        texts[split] = {row["text"] for row in rows}
    assert not texts["calibration"] & texts["test"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_item_of_a_task_is_in_the_training_text(domain, shipped):
    lines = (shipped / "tasks" / "data" / f"tiny_{domain}.jsonl").read_text().splitlines()
    asked = {json.loads(line)["context"] for line in lines}
    per = generate.PER_DOCUMENT[domain]
    seen = {generate.item(7, domain, n, "train").context for n in range(1500 * per)}
    assert len(asked) == len(lines) >= 120
    assert not asked & seen


@pytest.mark.parametrize("domain", DOMAINS)
def test_choices_differ_and_the_right_one_stands_anywhere(domain):
    items = many(domain, "test")
    for one in items:
        assert len(set(one.choices)) == len(one.choices)
        assert one.answer == one.choices[one.gold]
    share = Counter(one.gold for one in items)
    expected = len(items) / len(items[0].choices)
    assert all(abs(share[g] - expected) < 0.25 * expected for g in range(len(items[0].choices)))


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_hold_their_answers_as_odd_pieces(domain):
    for number in range(50):
        document = generate.document(5, domain, number, "train")
        items = range(
            number * generate.PER_DOCUMENT[domain], (number + 1) * generate.PER_DOCUMENT[domain]
        )
        answers = [f" {generate.item(5, domain, i, 'train').answer}" for i in items]
        odd = list(document.pieces[1::2])
        assert set(answers) <= set(odd)
        assert document.text.endswith(".")
        assert ".." not in document.text
        assert "  " not in document.text


def test_a_document_depends_on_its_number_alone():
    later = generate.document(5, "story", 40, "train")
    assert [d for d in generate.documents(5, "train", 41) if d.domain == "story"][40] == later
    assert generate.document(6, "story", 40, "train") != later


def test_every_shown_sum_is_right_and_the_story_tells_it():
    for one in many("arithmetic", "test"):
        question, *_ = re.split(r" (?=\d+ [+-] \d+ =)", one.context)
        sums = re.findall(r"(\d+) ([+-]) (\d+) = ?(\d*)", one.context + f" {one.answer}")
        results = [int(a) + int(b) * (1 if sign == "+" else -1) for a, sign, b, _ in sums]
        assert results == [int(found) for *_, found in sums]
        assert len(sums) == 2
        assert int(sums[1][0]) == results[0]
        numbers = re.findall(r"\d+", question)
        assert numbers == [sums[0][0], sums[0][2], sums[1][2]]
        grows = [word in question for word in ("more",)]
        assert grows[0] == ("+" in sums[0][1] + sums[1][1])


def test_the_right_number_has_every_rank_equally_often():
    items = generate.task_items("arithmetic")
    ranks = Counter(sorted(map(int, one.choices)).index(int(one.answer)) for one in items)
    assert set(ranks.values()) == {len(items) // 4}


def test_entailment_follows_the_word_list():
    place = {
        w: (r, p)
        for r, poles in enumerate(lex.PROPERTIES)
        for p, ws in enumerate(poles)
        for w in ws
    }
    for one in many("entailment", "test"):
        premise, hypothesis = (
            re.findall(r"\w+", one.parts[p])[-1] for p in ("premise", "hypothesis")
        )
        (row, pole), (other, opposite) = place[premise], place[hypothesis]
        expected = "maybe" if row != other else "yes" if pole == opposite else "no"
        assert one.answer == expected


def test_pairs_kept_for_the_test_are_never_trained_on():
    trained = {
        tuple(re.findall(r"\w+", one.parts[p])[-1] for p in ("premise", "hypothesis"))
        for one in many("entailment", "train", 6000)
    }
    for one in generate.task_items("entailment"):
        pair = tuple(re.findall(r"\w+", one.parts[p])[-1] for p in ("premise", "hypothesis"))
        assert (pair in trained) <= (one.parts["pair"] == "seen")


def test_wrong_choices_of_a_fact_are_wrong():
    true = {(relation, subject, answer) for relation, subject, answer in generate.facts()}
    for one in many("commonsense", "test"):
        relation, subject, _ = one.key.split("|")
        right = [c for c in one.choices if (relation, subject, c) in true]
        assert right == [one.answer]


def test_tasks_hold_every_group_equally_often():
    for domain in ("story", "arithmetic", "entailment"):
        counts = Counter(one.group for one in generate.task_items(domain))
        assert len(set(counts.values())) == 1
        assert sum(counts.values()) >= 200
