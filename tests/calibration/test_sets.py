"""Calibration sets of a model: padding and isolation don't show in statistics; COLA; predictors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from compress.calibration.cola import nearest_to_centres, window_features
from compress.calibration.predict import (
    mask_overlaps,
    predict,
    profile,
    similarity,
    token_divergence,
    token_losses,
)
from compress.calibration.sets import calibration_set
from compress.checkpoints.source import open_source
from compress.errors import RequestError
from tiny_models import make_checkpoint

WORDS = "the old boat lay by the pier and nobody came to mend it before winter"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(make_checkpoint("llama", tmp_path_factory.mktemp("sets") / "llama"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    place = tmp_path_factory.mktemp("registry")
    rows = [{"question": f"{WORDS[: 5 + i % 30]}?", "answer": f"{i} of them\n#### {i}"}
            for i in range(150)]  # fmt: skip
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = place / "registry.yaml"
    path.write_text("schema: 1\ncorpora:\n  gsm8k: {like: gsm8k, local: {calibration: a.jsonl}}\n")
    return path


def _padded(batches, length, left=False, pad=0):
    """The same windows with masked padding up to a length, on either side."""
    made = []
    for batch in batches:
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        fill = torch.full((len(ids), length - ids.shape[1]), pad)
        none = torch.zeros_like(fill)
        parts = [(fill, ids), (none, mask)] if left else [(ids, fill), (mask, none)]
        both = {"input_ids": torch.cat(parts[0], 1), "attention_mask": torch.cat(parts[1], 1)}
        if left:  # positions from the first real token
            both["position_ids"] = (both["attention_mask"].cumsum(1) - 1).clamp(min=0)
        made.append(both)
    return made


def _same(first, second, rtol=1e-5):
    assert first.norms.keys() == second.norms.keys()
    for name in first.norms:
        torch.testing.assert_close(first.norms[name], second.norms[name], rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pad", [0, 77])
def test_padding_shows_in_no_statistic(source, registry, left, pad):
    batches, _ = calibration_set(
        source, "gsm8k@icl", samples=5, seqlen=64, registry=registry, batch_size=1
    )
    reference = profile(source, batches)
    long = profile(source, _padded(batches, 128, left, pad))
    _same(reference, long)
    assert long.tokens == reference.tokens or left  # the first token may be predicted from padding
    if not left:
        assert long.loss == pytest.approx(reference.loss, rel=1e-5)


def test_the_batch_size_shows_in_no_statistic(source, registry):
    options = {"samples": 6, "seqlen": 64, "registry": registry}
    one, first = calibration_set(source, "gsm8k@icl", batch_size=1, **options)
    many, second = calibration_set(source, "gsm8k@icl", batch_size=4, **options)
    assert first == second
    assert any("attention_mask" in batch for batch in many)
    _same(profile(source, one), profile(source, many))


def test_unmasked_padding_would_show(source, registry):
    # Else the two tests above could not fail.
    batches, _ = calibration_set(source, "gsm8k@icl", samples=5, seqlen=64, registry=registry)
    bare = [{"input_ids": b["input_ids"]} for b in _padded(batches, 128)]
    with pytest.raises(AssertionError):
        _same(profile(source, batches), profile(source, bare), rtol=1e-2)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2"])
def test_isolated_documents_are_those_run_one_by_one(tmp_path, arch):
    source = open_source(make_checkpoint(arch, tmp_path / arch))
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"{i}: {WORDS[: 9 + i % 40]}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"samples": 4, "seqlen": 96}
    batches, _ = calibration_set(source, str(path), doc_sampling="isolated", **options)
    alone = []
    for batch in batches:
        starts = (batch["position_ids"][0] == 0).nonzero().squeeze(1).tolist()
        ends = [*starts[1:], batch["input_ids"].shape[1]]
        alone += [{"input_ids": batch["input_ids"][:, a:b]} for a, b in zip(starts, ends)]
    assert len(alone) > 8
    isolated, separate = profile(source, batches), profile(source, alone)
    _same(isolated, separate, rtol=2e-4)
    assert isolated.loss == pytest.approx(separate.loss, rel=1e-4)
    joined, _ = calibration_set(source, str(path), **options)
    with pytest.raises(AssertionError):
        _same(isolated, profile(source, joined), rtol=2e-4)


def test_isolated_needs_a_model_with_positions(source, monkeypatch):
    monkeypatch.setattr(
        source.model_class(), "forward", lambda self, input_ids, attention_mask=None: None
    )
    with pytest.raises(RequestError, match="needs positions"):
        calibration_set(source, "demo", doc_sampling="isolated")


def test_statistics_of_two_sets_add_up(source, registry):
    options = {"seqlen": 64, "registry": registry, "samples": 4}
    a, one = calibration_set(source, "gsm8k@icl", **options)
    b, two = calibration_set(source, "demo", **options)
    whole, first, second = (profile(source, batches) for batches in (a + b, a, b))
    for name, norms in whole.norms.items():
        squares = first.norms[name] ** 2 * one.tokens + second.norms[name] ** 2 * two.tokens
        expected = (squares / (one.tokens + two.tokens)).sqrt()
        torch.testing.assert_close(norms, expected, rtol=1e-5, atol=1e-7)


# ---- predictors


def test_losses_are_those_of_the_tokens_alone():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 9, generator=generator)
    ids = torch.randint(0, 9, (2, 6), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    places = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3]])
    sums, counts = token_losses(
        logits, {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    )
    log = logits.log_softmax(-1)
    wanted = [[1, 2, 3], [1, 3, 4, 5]]  # of the second row, 2 begins a document
    expected = [-sum(float(log[r, t - 1, ids[r, t]]) for t in at) for r, at in enumerate(wanted)]
    assert sums.tolist() == pytest.approx(expected, rel=1e-6)
    assert counts.tolist() == [3, 4]


def test_a_profile_is_the_models_own_perplexity_and_inputs(source):
    batches, _ = calibration_set(source, "demo", samples=4, seqlen=48)
    found = profile(source, batches)
    model = source.load(torch.float32)
    seen = []
    layer = model.get_submodule("model.layers.2.mlp.down_proj")
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double().flatten(0, 1)))
    losses = []
    with torch.no_grad():
        for batch in batches:
            ids = batch["input_ids"]
            logits = model(input_ids=ids).logits
            losses.append(torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]))
    rms = torch.cat(seen).square().mean(0).sqrt().float()
    torch.testing.assert_close(found.norms["model.layers.2.mlp.down_proj"], rms, rtol=1e-5, atol=0)
    assert found.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    expected = torch.stack(losses).std() / 2  # of four windows of equal length
    assert found.stderr == pytest.approx(float(expected), rel=1e-4)


def test_measures_of_a_text_with_itself(source):
    batches, _ = calibration_set(source, "demo", samples=3, seqlen=48)
    own = profile(source, batches)
    assert similarity(own, own) == pytest.approx(1)
    assert mask_overlaps(source, [own], own) == [1.0]
    assert token_divergence(batches, batches) == 0


def test_divergence_is_the_definition_and_one_for_nothing_in_common():
    one = [{"input_ids": torch.tensor([[0, 0, 1, 2]])}]
    other = [{"input_ids": torch.tensor([[1, 3, 9]]), "attention_mask": torch.tensor([[1, 1, 0]])}]
    p, q = [0.5, 0.25, 0.25, 0], [0, 0.5, 0, 0.5]
    middle = [(a + b) / 2 for a, b in zip(p, q)]
    expected = sum(a * math.log2(a / m) / 2 for own in (p, q) for a, m in zip(own, middle) if a)
    assert token_divergence(one, other) == pytest.approx(expected)
    assert token_divergence(one, [{"input_ids": torch.tensor([[5]])}]) == pytest.approx(1)


def test_overlap_is_counted_over_the_masks(source):
    a, b = (profile(source, calibration_set(source, name, samples=3, seqlen=48)[0])
            for name in ("demo", "random"))  # fmt: skip
    from compress.sparsity import wanda_mask

    model = source.load(torch.float32)
    both = either = 0
    for name in a.norms:
        weight = model.get_submodule(name).weight.detach()
        first, second = (~wanda_mask(weight, p.norms[name], 0.5) for p in (a, b))
        both, either = both + int((first & second).sum()), either + int((first | second).sum())
    assert mask_overlaps(source, [a], b) == [both / either]
    with pytest.raises(ValueError, match="between 0 and 1"):
        mask_overlaps(source, [a], b, sparsity=1.0)


def test_the_texts_own_kind_is_predicted_best(source):
    texts = {
        name: calibration_set(source, name, samples=6, seqlen=64, seed=0)[0]
        for name in ("demo", "random", "ellipses")
    }
    target, _ = calibration_set(source, "demo", samples=6, seqlen=64, seed=1)
    found = predict(source, texts, target)
    assert list(found) == list(texts)
    for name in ("random", "ellipses"):
        assert found["demo"].similarity > found[name].similarity
        assert found["demo"].overlap > found[name].overlap
        assert found["demo"].divergence < found[name].divergence


# ---- COLA


def test_features_are_means_of_the_real_tokens_of_every_block(source, registry):
    batches, _ = calibration_set(source, "gsm8k@icl", samples=4, seqlen=64, registry=registry)
    one = window_features(source, batches)
    padded = window_features(source, _padded(batches, 128))
    torch.testing.assert_close(one, padded, rtol=1e-4, atol=1e-6)
    assert one.shape == (4, 64)
    assert not torch.allclose(one, window_features(source, batches, seed=1))


def test_the_projection_keeps_distances(source):
    batches, _ = calibration_set(source, "demo", samples=8, seqlen=48)
    found = window_features(source, batches)
    model = source.load(torch.float32)
    joined = []
    with torch.no_grad():
        for batch in batches:
            states = []
            hooks = [
                layer.register_forward_hook(lambda *a, s=states: s.append(a[2]))
                for layer in model.model.layers
            ]
            model(**batch)
            for hook in hooks:
                hook.remove()
            outputs = [s[0] if isinstance(s, tuple) else s for s in states]
            means = [o.reshape(48, -1).double().mean(0) for o in outputs]
            joined.append(torch.cat([m / m.norm() for m in means]))
    exact = torch.cdist(torch.stack(joined), torch.stack(joined))
    near = torch.cdist(found, found)
    upper = torch.ones(8, 8).triu(1).bool()
    # 64 random directions keep a distance to about 1 / sqrt(2 * 64) = 9 %.
    assert ((near / exact)[upper] - 1).abs().mean() < 0.15


def test_one_of_each_cluster_is_taken():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(5, 8)) * 20
    rows = np.concatenate([centre + generator.normal(size=(7, 8)) for centre in centres])
    chosen = nearest_to_centres(rows, 5, seed=0)
    assert sorted(i // 7 for i in chosen) == [0, 1, 2, 3, 4]
    for i in chosen:
        own = rows[i // 7 * 7 : i // 7 * 7 + 7]
        distances = np.square(own - own.mean(0)).sum(1)
        assert np.argmin(distances) == i % 7
    assert nearest_to_centres(np.ones((6, 3)), 4, seed=0) == [0, 1, 2, 3]  # all rows equal


def test_cola_chooses_among_candidates(source):
    options = {"samples": 4, "seqlen": 48, "pool": 3}
    chosen, report = calibration_set(source, "demo", select="cola", **options)
    _, same = calibration_set(source, "demo", select="cola", **options)
    assert report.digest == same.digest
    pool, _ = calibration_set(source, "demo", samples=12, seqlen=48)
    rows = [tuple(b["input_ids"][0].tolist()) for b in pool]
    found = [tuple(b["input_ids"][0].tolist()) for b in chosen]
    assert set(found) <= set(rows)
    assert found != rows[:4]
