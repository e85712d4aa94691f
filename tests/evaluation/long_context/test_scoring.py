"""Scoring of long-context items: a slow reference, models that copy or know nothing, attention."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from compress.errors import RequestError, RunError
from compress.evaluation.long_context.attention import (
    PARTS,
    AttentionWatch,
    map_statistics,
    part_of_keys,
)
from compress.evaluation.long_context.items import make_item
from compress.evaluation.long_context.planning import LongTasks
from compress.evaluation.long_context.results import task_score
from compress.evaluation.long_context.running import run_long_tasks
from compress.evaluation.long_context.scoring import score_items
from compress.evaluation.long_context.settings import LongContext
from tiny_models import VOCABULARY, build, tiny_tokenizer


def _items(tokenizer=None, **settings):
    settings = {"tasks": ("needle",), "lengths": (126,), "depths": (0.5,), "per_cell": 5} | settings
    plan = LongTasks(LongContext(**settings)).plan(tokenizer or tiny_tokenizer(), None)
    return [item for planned in plan.values() for item in planned.items]


def _slow(model, item):
    """Losses token by token, without a cache; and whether `generate` writes the answer."""
    losses = []
    for answer in item.answers:
        total, ids = 0.0, item.prompt
        for token in answer:
            logits = model(input_ids=ids[None]).logits[0, -1].double()
            total -= float(logits.log_softmax(-1)[token])
            ids = torch.cat([ids, token[None]])
        losses.append(total)
    written = model.generate(
        item.prompt[None],
        attention_mask=torch.ones_like(item.prompt[None]),
        do_sample=False,
        max_new_tokens=len(item.answers[0]),
        min_new_tokens=len(item.answers[0]),
        pad_token_id=3,
    )
    return losses, written[0, len(item.prompt) :].tolist() == item.answers[0].tolist()


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "gpt2", "qwen2_moe", "mamba"])
@torch.inference_mode()
def test_losses_are_the_definition_however_they_are_computed(arch):
    model = build(arch)
    items = [*_items(per_cell=3), *_items(lengths=(123,), per_cell=2)]
    slow = [_slow(model, item) for item in items]
    for options in ({}, {"cached": False}, {"batch_size": 1}, {"batch_size": 2}):
        found = score_items(model, items, **options)
        for outcome, (losses, greedy) in zip(found, slow):
            assert outcome.losses == pytest.approx(losses, abs=1e-4)
            assert outcome.greedy == greedy
            assert outcome.tokens == 6  # a blank and five digits


@pytest.mark.parametrize("arch", ["llama", "mistral"])
def test_answers_read_one_by_one_are_the_same(arch, monkeypatch):
    from compress.evaluation.long_context import scoring

    model, items = build(arch), _items(per_cell=3)
    together, watch = score_items(model, items), AttentionWatch(model)
    monkeypatch.setattr(scoring, "_COPIES_OF_TOKENS", 1)
    for one, other in zip(score_items(model, items, watch=watch), together):
        assert one.losses == pytest.approx(other.losses, abs=1e-4)
        assert one.greedy == other.greedy
    assert set(watch.found) == {item.key for item in items}


def _short(prompt, answers):
    return make_item((("length", 1),), 0, prompt, answers, [(1, 2)], [(1, 2)], 3)


@torch.inference_mode()
def test_answers_of_several_lengths_and_numbers_stand_in_one_batch():
    model = build("llama")
    items = [
        _short([5, 6, 7, 8], [[9], [10, 11, 12], [13, 14]]),
        _short([9, 6, 7, 8], [[9, 4, 5, 6], [10]]),
    ]
    for cached in (True, False):
        for outcome, item in zip(score_items(model, items, cached=cached), items):
            assert outcome.losses == pytest.approx(_slow(model, item)[0], abs=1e-4)
    assert score_items(model, items)[1].tokens == 4


@torch.inference_mode()
def test_greedy_is_what_decoding_writes():
    model = build("llama")
    prompt = torch.tensor([5, 6, 7, 8])
    ids = prompt
    for _ in range(3):
        ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1:].argmax(-1)])
    written = ids[4:].tolist()
    wrong = [*written[:2], (written[2] + 1) % VOCABULARY]
    good, bad = score_items(
        model, [_short([5, 6, 7, 8], [written, wrong]), _short([5, 6, 7, 8], [wrong, written])]
    )
    assert good.greedy
    assert good.right
    assert not bad.greedy
    assert not bad.right
    model.generation_config.suppress_tokens = [written[0]]  # as for a mask token
    assert not score_items(model, [_short([5, 6, 7, 8], [written, wrong])])[0].greedy


class Copier:
    """Goes on as the text did where the last `order` tokens stood before, the latest first."""

    device = torch.device("cpu")

    def __init__(self, order=18):
        self.order = order

    def __call__(self, input_ids, use_cache=False):
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        for row, ids in enumerate(input_ids.tolist()):
            text = "".join(map(chr, ids))
            for at in range(self.order, len(ids)):
                before = text.rfind(text[at + 1 - self.order : at + 1], 0, at)
                if before >= 0:
                    logits[row, at, ids[before + self.order]] = 20.0
        return SimpleNamespace(logits=logits)

    forward = __call__


@pytest.mark.parametrize("task", ["needle", "multidoc"])
def test_a_model_that_copies_gets_everything_right(task):
    settings = {"tasks": (task,), "lengths": (300, 500), "documents": (4,), "per_cell": 4}
    items = _items(**settings, depths=(0.0, 0.5, 1.0))
    outcomes = score_items(Copier(), items)
    score = task_score(items, outcomes)
    assert score.acc == 1.0
    assert score.others["exact_match"] == 1.0
    assert score.others["answer_loss"] < 1e-3
    assert all(cell["acc"] == 1 and cell["n"] == 4 for cell in score.details["cells"])


def test_copying_is_not_enough_for_chains():
    items = _items(tasks=("longreason",), lengths=(500,), hops=(1,), per_cell=12)
    score = task_score(items, score_items(Copier(order=6), items))
    assert score.others["exact_match"] == 0


@pytest.mark.parametrize("task", ["needle", "multidoc", "longreason"])
def test_a_model_that_knows_nothing_is_at_chance(task):
    items = _items(
        tasks=(task,), lengths=(300,), documents=(3,), hops=(1,), depths=(0.2, 0.8), per_cell=60
    )
    model = build("llama")
    model.config.max_position_embeddings = 512
    score = task_score(items, score_items(model, items, batch_size=32))
    n, p = score.n, score.others["chance"]
    assert p == (1 / 4 if task != "multidoc" else pytest.approx(1 / 4))
    assert abs(score.acc - p) < 3.3 * math.sqrt(p * (1 - p) / n)  # 1 in 1000 by accident
    assert score.others["exact_match"] < 0.05


def test_cells_sum_to_the_whole_and_count_their_items():
    items = _items(lengths=(123, 126), depths=(0.0, 1.0), per_cell=3)
    score = task_score(items, score_items(build("llama"), items))
    cells = score.details["cells"]
    assert [(c["length"], c["depth"]) for c in cells] == [(123, 0), (123, 1), (126, 0), (126, 1)]
    assert sum(cell["n"] for cell in cells) == score.n == 12
    assert sum(cell["acc"] for cell in cells) / 4 == pytest.approx(score.acc)
    means = [cell["answer_loss"] for cell in cells]
    assert sum(means) / 4 == pytest.approx(score.others["answer_loss"])
    one = score.items.values()
    spread = math.sqrt(sum((v - score.acc) ** 2 for v in one) / 11 / 12)
    assert score.stderr == pytest.approx(spread)
    assert set(score.more) == {"exact_match", "answer_loss"}
    assert all(outcomes.keys() == score.items.keys() for outcomes in score.more.values())


def test_a_likelihood_that_is_not_finite_stops_the_run():
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[9] = math.nan
    with pytest.raises(RunError, match=r"needle: .* not finite"):
        score_items(model, _items(per_cell=1), task="needle")


def test_progress_reaches_its_end_and_results_keep_their_order():
    calls = []
    items = _items(lengths=(123, 126), per_cell=2)
    found = score_items(
        build("llama"), items, task="needle", progress=lambda *call: calls.append(call)
    )
    assert calls[-1][:3] == ("needle", 4, 4)
    assert [outcome.losses for outcome in found] != [o.losses for o in reversed(found)]
    alone = [score_items(build("llama"), [item])[0] for item in items]
    for one, other in zip(found, alone):
        assert one.losses == pytest.approx(other.losses, abs=1e-5)


# ---- attention


def _slow_attention(model, item):
    """The definition, from whole maps of one unbatched pass."""
    model.set_attn_implementation("eager")
    ids = torch.cat([item.prompt, item.answers[0][:-1]])
    maps = model(input_ids=ids[None], output_attentions=True).attentions
    rows = []
    for weights in maps:
        own = weights[0, :, len(item.prompt) - 1 :].double()
        places = {name: set() for name in PARTS}
        value = {i for a, b in item.values for i in range(a, b)}
        around = {i for a, b in item.evidence for i in range(a, b)}
        for i in range(len(ids)):
            name = (
                "first" if i == 0
                else "answer" if i in value
                else "evidence" if i in around
                else "question" if i >= item.question
                else "rest"
            )  # fmt: skip
            places[name].add(i)
        shares = [float(own[..., sorted(places[name])].sum(-1).mean()) for name in PARTS]
        entropy = float(-(own * own.clamp_min(1e-300).log()).sum(-1).mean())
        variance = float((own * len(ids)).var(-1, unbiased=False).mean())
        rows.append([*shares, entropy, variance])
    model.set_attn_implementation("sdpa")
    return torch.tensor(rows)


def _hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("arch", ["llama", "mistral", "gpt_neox"])
@torch.inference_mode()
def test_attention_is_the_definition(arch):
    model = build(arch)
    items = _items(per_cell=3)
    for cached in (True, False):
        watch = AttentionWatch(model)
        score_items(model, items, watch=watch, cached=cached)
        assert len(watch.layers) == 4
        for item in items:
            slow = _slow_attention(model, item)
            assert torch.allclose(watch.found[item.key].float(), slow, atol=1e-4)


def test_watching_changes_no_score():
    model, items = build("llama"), _items()
    plain = score_items(model, items)
    watched = score_items(model, items, watch=AttentionWatch(model))
    for one, other in zip(plain, watched):
        assert one.losses == pytest.approx(other.losses, abs=1e-4)


def test_statistics_of_hand_made_maps():
    item = _short([1, 2, 3, 4], [[5, 6], [7]])
    part = part_of_keys(item, 5)
    assert [PARTS[int(p)] for p in part] == ["first", "answer", "rest", "question", "question"]
    even = torch.full((2, 2, 5), 0.2)
    found = map_statistics(even, part, 2)
    assert found.tolist() == pytest.approx([0.2, 0.2, 0, 0.4, 0.2, math.log(5), 0], abs=1e-6)
    sharp = torch.zeros(2, 2, 5)
    sharp[..., 1] = 1
    found = map_statistics(sharp, part, 1)
    assert found.tolist() == pytest.approx([0, 1, 0, 0, 0, 0, 4], abs=1e-6)  # T^2 (1/T - 1/T^2)
    window = torch.full((1, 1, 3), 1 / 3)  # the last three positions alone
    assert map_statistics(window, part, 1)[:5].tolist() == pytest.approx([0, 0, 0, 2 / 3, 1 / 3])


def test_models_without_maps_are_refused():
    model = build("mamba")
    tasks = LongTasks(LongContext(("needle",), lengths=(126,), depths=(0.5,), attention=True))
    with pytest.raises(RequestError, match="no attention map"):
        run_long_tasks(tasks, model, tiny_tokenizer(), token_limit=None)


def test_attention_goes_into_the_score():
    tasks = LongTasks(
        LongContext(("needle",), lengths=(126,), depths=(0.5, 1.0), per_cell=2, attention=True)
    )
    found = run_long_tasks(tasks, build("llama"), tiny_tokenizer(), token_limit=128)["needle"]
    seen = found.as_receipt()["attention"]
    assert sum(seen["share"].values()) == pytest.approx(1, abs=1e-5)
    assert len(seen["layers"]) == 4
    by_layer = [layer["share"]["answer"] for layer in seen["layers"]]
    assert sum(by_layer) / 4 == pytest.approx(seen["share"]["answer"])
    cells = [cell["attention_on_answer"] for cell in found.details["cells"]]
    assert sum(cells) / 2 == pytest.approx(seen["share"]["answer"])
    assert found.others["attention_on_answer"] == pytest.approx(seen["share"]["answer"])
    assert found.more["attention_on_answer"].keys() == found.items.keys()
