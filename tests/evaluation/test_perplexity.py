"""Perplexity: against a slow reference, the literature's protocol, strides, faults."""

from __future__ import annotations

import math

import pytest
import torch

from compress.checkpoints.source import open_source
from compress.errors import RequestError, RunError
from compress.evaluation.perplexity import context_limit, perplexity
from tiny_models import make_checkpoint

TEXT = [
    "Once there was a small red boat. It sailed far over the sea.\n",
    "",
    "Tim had 3 apples and got 4 more; now he has 7.",
    "A dog is an animal, so the answer is yes. " * 6,
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    source = open_source(make_checkpoint("llama", tmp_path_factory.mktemp("llama")))
    return source.load(), source.tokenizer()


def _reference(model, tokenizer, documents, seqlen):
    """The published scripts' loop, one window and one token at a time."""
    ids = tokenizer("\n\n".join(documents))["input_ids"]
    means = []
    for start in range(0, len(ids) - seqlen + 1, seqlen):
        window = ids[start : start + seqlen]
        logits = model(torch.tensor([window])).logits[0].double()
        total = 0.0
        for t in range(seqlen - 1):
            scores = logits[t] - logits[t].max()
            total -= float(scores[window[t + 1]] - scores.exp().sum().log())
        means.append(total / (seqlen - 1))
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
    return math.exp(mean), math.exp(mean) * math.sqrt(variance / len(means)), means


@torch.inference_mode()
def test_equals_the_published_loop(loaded):
    model, tokenizer = loaded
    value, stderr, means = _reference(model, tokenizer, TEXT, 32)
    found = perplexity(model, tokenizer, TEXT, seqlen=32)
    assert found.value == pytest.approx(value, rel=1e-5)
    assert found.stderr == pytest.approx(stderr, rel=1e-4)
    assert found.losses.tolist() == pytest.approx(means, rel=1e-5)
    assert found.seqlen == 32
    assert found.tokens == 32 * len(means)


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_the_batch_size_changes_nothing_beyond_rounding(loaded, batch_size):
    one = perplexity(*loaded, TEXT, seqlen=32)
    many = perplexity(*loaded, TEXT, seqlen=32, batch_size=batch_size)
    assert many.value == pytest.approx(one.value, rel=1e-5)
    assert many.digest == one.digest


def test_limit_takes_the_first_windows(loaded):
    every = perplexity(*loaded, TEXT, seqlen=32)
    two = perplexity(*loaded, TEXT, seqlen=32, limit=2)
    assert torch.equal(two.losses, every.losses[:2])
    assert two.tokens == 64


def test_a_last_window_that_is_not_full_is_dropped(loaded):
    model, tokenizer = loaded
    count = len(tokenizer("\n\n".join(TEXT))["input_ids"])
    assert count % 32
    assert len(perplexity(model, tokenizer, TEXT, seqlen=32).losses) == count // 32


def test_a_text_shorter_than_a_window_is_one_window_without_an_error_bar(loaded):
    found = perplexity(*loaded, ["a small red boat"], seqlen=64)
    assert len(found.losses) == 1
    assert found.stderr is None
    assert "stderr" not in found.as_receipt()
    assert found.seqlen < 64


def test_uniform_logits_give_the_vocabulary_size(loaded):
    model, tokenizer = loaded

    def uniform(input_ids, **_):
        logits = torch.zeros(*input_ids.shape, 128, dtype=torch.bfloat16)
        return type("Output", (), {"logits": logits})

    forward, model.forward = model.forward, uniform
    try:
        found = perplexity(model, tokenizer, TEXT, seqlen=32)
    finally:
        model.forward = forward
    assert found.value == pytest.approx(128, rel=1e-6)
    assert found.stderr == pytest.approx(0, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 7, 16])
def test_strided_scores_every_token_once_with_enough_context(loaded, stride):
    model, tokenizer = loaded
    text = TEXT[:3]
    ids = tokenizer("\n\n".join(text))["input_ids"]
    total, seqlen = 0.0, 32
    reached = seqlen
    ends = [seqlen]
    while reached < len(ids):
        reached = min(reached + stride, len(ids))
        ends.append(reached)
    scored = 1
    for end in ends:
        window = torch.tensor([ids[end - seqlen : end]])
        logs = model(window).logits[0].double().log_softmax(-1)
        for position in range(scored, end):
            at = position - (end - seqlen)
            total -= float(logs[at - 1, ids[position]])
        scored = end
    found = perplexity(model, tokenizer, text, seqlen=seqlen, stride=stride)
    assert int(found.weights.sum()) == len(ids) - 1
    assert math.log(found.value) == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert found.as_receipt()["stride"] == stride
    assert found.tokens == len(ids)


def test_progress_reaches_the_end(loaded):
    calls = []
    perplexity(*loaded, TEXT, seqlen=32, progress=lambda *call: calls.append(call[:3]))
    assert calls[-1][1] == calls[-1][2] == len(calls)


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "mixtral", "opt"])
def test_other_families(arch, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path / arch))
    found = perplexity(source.load(), source.tokenizer(), TEXT, seqlen=32, batch_size=4)
    assert found.value > 1
    assert found.stderr > 0


# ---- faults


def test_a_model_that_sees_what_comes_after_is_refused(tmp_path):
    source = open_source(make_checkpoint("bert", tmp_path / "bert"))
    with pytest.raises(RequestError, match="BertForMaskedLM"):
        perplexity(source.load(), source.tokenizer(), TEXT, seqlen=32)


def test_a_bidirectional_model_under_a_causal_name_is_refused(tmp_path):
    import transformers

    source = open_source(make_checkpoint("bert", tmp_path / "bert"))
    config = source.config
    config.is_decoder = False
    model = transformers.BertLMHeadModel(config).eval()
    with pytest.raises(RequestError, match="sees those after it"):
        perplexity(model, source.tokenizer(), TEXT, seqlen=32)


def test_a_length_above_the_models_limit(loaded):
    assert context_limit(loaded[0]) == 128
    with pytest.raises(RequestError, match=r"129.*128"):
        perplexity(*loaded, TEXT, seqlen=129)


@pytest.mark.parametrize(
    "options", [{"seqlen": 1}, {"stride": 0}, {"stride": 32}, {"limit": 0}, {"batch_size": 0}]
)
def test_sizes_out_of_range(loaded, options):
    with pytest.raises(RequestError):
        perplexity(*loaded, TEXT, **{"seqlen": 32, **options})


def test_too_short_a_text(loaded):
    with pytest.raises(RequestError, match="too short"):
        perplexity(*loaded, [""], seqlen=32)


def test_a_tokenizer_of_another_model(loaded):
    class Large:
        def __call__(self, text, **options):
            return {"input_ids": [1, 2, 500, 3]}

    with pytest.raises(RequestError, match=r"id 500.*128 embeddings"):
        perplexity(loaded[0], Large(), TEXT, seqlen=4)


def test_a_loss_that_is_not_finite(loaded):
    model, tokenizer = loaded
    weight = model.get_output_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[5] = float("nan")
        with pytest.raises(RunError, match=r"window 0 .* not finite"):
            perplexity(model, tokenizer, TEXT, seqlen=32)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


# ---- a trained model, where the machine has one


def test_a_trained_model_on_raw_wikitext(assets):
    source = open_source(assets / "models" / "stories260k")
    model, tokenizer = source.load(), source.tokenizer()
    text = (assets / "data" / "wiki.test.raw").read_text(encoding="utf-8")[:60_000]
    found = perplexity(model, tokenizer, [text], seqlen=256, limit=8)
    with torch.inference_mode():
        value, stderr, _ = _reference(model, tokenizer, [text[:8_000]], 256)
    ids = tokenizer(text[:8_000])["input_ids"]
    same = perplexity(model, tokenizer, [text[:8_000]], seqlen=256)
    assert len(same.losses) == len(ids) // 256
    assert same.value == pytest.approx(value, rel=1e-5)
    assert same.stderr == pytest.approx(stderr, rel=1e-4)
    assert 20 < found.value < 500  # a story model on encyclopedia text
    stories = perplexity(model, tokenizer, ["Once upon a time, there was a little girl."])
    assert stories.value < found.value / 3
