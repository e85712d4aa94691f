"""Shortcut baselines: right by hand-made items, and none of them solves a shipped task."""

from __future__ import annotations

import math
from collections import Counter

import baselines
import generate
import pytest
import torch
from generate import Item
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.evaluation.tasks import TaskSet


def made(context: str, choices: tuple[str, ...], gold: int, **parts: str) -> Item:
    return Item("story", context, choices, gold, "key", "group", parts=parts)


def test_ties_share_the_point():
    assert baselines.share_right(0, [1, 1, 0]) == 0.5
    assert baselines.share_right(2, [1, 1, 0]) == 0
    assert baselines.share_right(1, [0, 2, 0]) == 1


def test_heuristics_on_items_made_by_hand():
    one = made("a box, a cup, a boxer", ("cup", "box", "bag"), 0)
    assert baselines.accuracy([one], [baselines.last_mentioned(one)]) == 1  # "boxer" is no "box"
    assert baselines.longest(one) == [3, 3, 3]
    number = made("", ("1", "5", "6", "8"), 1)
    assert baselines.accuracy([number], [baselines.nearest_the_mean(number)]) == 1
    rule = baselines.most_frequent(
        [made("", ("cup", "box"), 0)] * 3 + [made("", ("cup", "box"), 1)]
    )
    assert rule(one) == [3, 1, 0]


def test_naive_bayes_equals_counting_by_hand():
    training = [
        made("big dog", ("x", "y"), 0), made("big cat", ("x", "y"), 0),
        made("dog dog", ("x", "y"), 1),
    ]  # fmt: skip
    scores = baselines.naive_bayes(training, lambda one: one.context)
    asked = made("big dog", ("y", "x"), 1)
    words = Counter(), Counter()
    for one in training:
        words[one.gold].update(one.context.split())
    joint = []
    for prior, counts in zip((2 / 3, 1 / 3), words):
        total = sum(counts.values()) + 3  # three different words, add one to each
        joint.append(
            math.log(prior) + sum(math.log((counts[w] + 1) / total) for w in ("big", "dog"))
        )
    evidence = math.log(sum(map(math.exp, joint)))
    assert scores([asked])[0] == pytest.approx([joint[1] - evidence, joint[0] - evidence])


def test_swapping_changes_the_context_and_nothing_else():
    for domain in generate.DOMAINS:
        items = generate.task_items(domain)
        for name, changed in baselines.swapped_contexts(domain, items).items():
            for before, after in zip(items, changed, strict=True):
                assert (after.choices, after.gold) == (before.choices, before.gold)
            moved = sum(a.context != b.context for a, b in zip(items, changed))
            assert moved > 0.8 * len(items), (domain, name)


def test_a_word_is_swapped_in_its_place():
    assert baselines.with_word_of("Is Ann big?", "Is Ben wise?") == "Is Ann wise?"
    assert baselines.with_word_of("Ann is big.", "Ben was tiny.") == "Ann is tiny."


@pytest.mark.parametrize("domain", generate.DOMAINS)
def test_no_heuristic_on_the_text_solves_a_task(domain):
    items = generate.task_items(domain)
    training = [generate.item(7, domain, n, "train") for n in range(2000)]
    for name, accuracy in baselines.text_baselines(domain, items, training).items():
        assert accuracy < 0.6, (domain, name, accuracy)


def test_the_model_is_scored_as_lm_eval_scores_it(shipped):
    model = AutoModelForCausalLM.from_pretrained(shipped / "tiny-llama", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(shipped / "tiny-llama")
    items = generate.task_items("arithmetic")[:40]
    own = baselines.model_scores(model, tokenizer, items)
    harness = TaskSet(["tiny_arithmetic"]).run(model, tokenizer, limit=40)["tiny_arithmetic"]
    outcomes = sorted((int(key.split(":")[0]), value) for key, value in harness.items.items())
    right = [float(max(s) == s[one.gold]) for one, s in zip(items, own, strict=True)]
    assert [value for _, value in outcomes] == right
