"""Text sampled from the model: its distribution, seeds, batches, filters, cache, and packing."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.calibration.sampling import (
    GROUP,
    Drawer,
    Sampler,
    Text,
    distinct_runs,
    kept_of,
    temperature,
)
from compress.calibration.sets import calibration_set
from compress.checkpoints.source import open_source
from compress.data.registry import Sampling, load_registry
from compress.errors import RequestError, RunError
from tiny_models import make_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(make_checkpoint("llama", tmp_path_factory.mktemp("sampling") / "llama"))


def _take(sampler, count):
    texts = sampler.texts()
    return [next(texts) for _ in range(count)]


def _drawn(options, logits, draws):
    """Draw one token for each row of logits [B, V] from numbers [B]."""
    drawer = Drawer(options, draws[:, None].double(), 1)
    out = drawer(torch.zeros(len(logits), 1, dtype=torch.int64), logits)
    assert bool((out.isfinite().sum(1) == 1).all())
    return out.argmax(1), drawer.losses[0]


PLAIN = Sampling(first_temperature=1.0, ramp=0)


def test_draws_follow_the_softmax():
    logits = torch.tensor([[2.0, 0.0, 1.0, -3.0]])
    count = 20_000
    draws = (torch.arange(count) + 0.5) / count
    tokens, losses = _drawn(PLAIN, logits.expand(count, -1), draws)
    shares = torch.bincount(tokens, minlength=4) / count
    assert torch.allclose(shares, logits.softmax(1)[0], atol=1.5 / count * 4)
    assert torch.allclose(losses.exp(), 1 / logits.softmax(1)[0, tokens].double())


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({"top_k": 2}, {0, 2}), ({"top_p": 0.7}, {0, 2}), ({"top_p": 0.6}, {0}), ({}, {0, 1, 2, 3})],
)
def test_cuts_leave_the_likeliest(options, allowed):
    logits = torch.tensor([[2.0, 0.0, 1.0, -3.0]])  # 0.66, 0.09, 0.24, 0.004
    draws = (torch.arange(4000) + 0.5) / 4000
    tokens, _ = _drawn(Sampling(ramp=0, **options), logits.expand(4000, -1), draws)
    assert set(tokens.tolist()) == allowed


def test_a_penalty_lowers_what_was_said():
    drawer = Drawer(Sampling(ramp=0, repetition_penalty=1e6), torch.tensor([[0.5]]).double(), 2)
    out = drawer(torch.tensor([[0, 2]]), torch.tensor([[5.0, 1.0, 4.0, -1e9]]))
    assert int(out.argmax()) == 1


def test_the_temperature_falls_in_a_line():
    assert [temperature(Sampling(), step) for step in (0, 4, 8, 99)] == [2.0, 1.5, 1.0, 1.0]
    assert temperature(Sampling(ramp=0, temperature=0.6), 0) == 0.6


def test_logits_that_are_not_finite_end_the_run():
    with pytest.raises(RunError, match="aren't finite at token 0"):
        _drawn(PLAIN, torch.tensor([[1.0, math.nan]]), torch.tensor([0.5]))


def test_losses_are_those_of_the_model(source, tmp_path):
    text = Sampler(source, PLAIN, length=20, directory=tmp_path).group(0)[3]
    model = source.load(torch.float32)
    begin = 1  # the config's beginning of text
    ended = len(text.ids) < 19
    ids = torch.tensor([[begin, *text.ids, *([2] if ended else [])]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    assert text.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, GROUP])
def test_texts_depend_on_seed_and_number_alone(source, tmp_path, batch_size):
    options = {"length": 24, "seed": 3}
    reference = _take(Sampler(source, Sampling(), directory=tmp_path / "a", **options), 20)
    again = Sampler(source, Sampling(), directory=tmp_path / "b", batch_size=batch_size, **options)
    assert _take(again, 20) == reference
    other = Sampler(source, Sampling(), directory=tmp_path / "a", length=24, seed=4)
    assert _take(other, 20) != reference


def test_a_group_is_sampled_once(source, tmp_path, monkeypatch):
    sampler = Sampler(source, Sampling(), length=16, directory=tmp_path)
    first = _take(sampler, 40)
    assert len(list(tmp_path.rglob("*.json"))) == 2
    monkeypatch.setattr(type(source), "load", lambda *_: pytest.fail("the model was loaded"))
    assert _take(sampler, 40) == first
    # Filters act on what is kept, so they don't ask for other text.
    everything = Sampler(source, Sampling(keep=1.0, distinct=0.0), length=16, directory=tmp_path)
    kept = _take(everything, 2 * GROUP - 8)
    assert {tuple(text) for text in first} <= {tuple(text) for text in kept}
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_damaged_entry_is_sampled_anew(source, tmp_path):
    sampler = Sampler(source, Sampling(), length=16, directory=tmp_path)
    first = _take(sampler, 5)
    (entry,) = tmp_path.rglob("*.json")
    entry.write_text(entry.read_text()[:50])
    assert _take(sampler, 5) == first


def test_another_model_has_its_own_text(source, tmp_path):
    other = open_source(make_checkpoint("llama", tmp_path / "other", seed=1))
    options = {"length": 16, "directory": tmp_path}
    assert _take(Sampler(source, PLAIN, **options), 3) != _take(Sampler(other, PLAIN, **options), 3)


def test_filters_drop_loops_and_the_least_likely():
    loop = [1, 2] * 20
    assert distinct_runs(loop) == 2 / 37
    assert distinct_runs([1, 2, 3]) == 1
    texts = [Text([i] * 3 + list(range(9)), loss) for i, loss in enumerate([5.0, 1.0, 3.0, 2.0])]
    kept = kept_of([*texts, Text(loop, 0.1), Text([], 0.1)], Sampling(keep=0.5))
    assert kept == [texts[1], texts[3]]


def test_text_goes_on_from_a_prefix(source, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcde\n\nfghij\nx\n")
    options = Sampling(prefix=str(path), prefix_tokens=3, ramp=0, keep=1.0, distinct=0.0)
    texts = _take(Sampler(source, options, length=16, directory=tmp_path), 30)
    tokenizer = source.tokenizer()
    assert {tokenizer.decode(text[:3]) for text in texts} == {"abc", "fgh"}
    short = Sampling(prefix=str(path), prefix_tokens=6)
    with pytest.raises(RequestError, match="has 6 tokens to go on from"):
        _take(Sampler(source, short, length=16, directory=tmp_path), 1)


def test_a_model_that_only_loops_is_given_up(tmp_path):
    place = make_checkpoint("llama", tmp_path / "llama")
    tensors = load_file(place / "model.safetensors")
    tensors["lm_head.weight"].zero_()  # all tokens are equally likely: the first is the best
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    source, options = open_source(place), Sampling(top_k=1, ramp=0)
    with pytest.raises(RunError, match="can't be used") as error:
        _take(Sampler(source, options, length=100, directory=tmp_path), 1)
    assert "--calib demo" in error.value.hint


def test_self_as_calibration_set(source):
    options = {"samples": 6, "seqlen": 32, "seed": 1}
    told = []
    batches, report = calibration_set(
        source, "self", progress=lambda *state: told.append(state[:3]), **options
    )
    assert told
    assert all(task == "sample" and 0 <= done <= total == 192 for task, done, total in told)
    assert report.windows == 6
    assert report.tokens == 192
    _, same = calibration_set(source, "self", batch_size=4, **options)
    assert same.digest == report.digest
    few, _ = calibration_set(source, "self", **{**options, "samples": 3})
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(few, batches))
    _, parts = calibration_set(source, "self=0.5+demo=0.5", **options)
    assert [part["windows"] for part in parts.parts] == [3, 3]
    assert load_registry()["self"].sampled == Sampling()


def test_every_architecture_with_a_cache_samples(tmp_path):
    for arch in ("gpt2", "gemma2"):
        place = open_source(make_checkpoint(arch, tmp_path / arch))
        _, report = calibration_set(place, "self", samples=2, seqlen=24)
        assert report.tokens == 48
