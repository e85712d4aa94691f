"""The shipped checkpoint: loads plainly, is as small as promised, knows every shipped task."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.evaluation.perplexity import perplexity
from compress.evaluation.tasks import TaskSet

TASKS = ("tiny_arithmetic", "tiny_commonsense", "tiny_entailment", "tiny_story")


@pytest.fixture(scope="module")
def model(shipped):
    return AutoModelForCausalLM.from_pretrained(shipped / "tiny-llama", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(shipped):
    return AutoTokenizer.from_pretrained(shipped / "tiny-llama")


def test_sizes(shipped, model):
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert model.config.num_hidden_layers >= 8
    files = [path for path in shipped.rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert sum(f.stat().st_size for f in files if f.parent.name == "tiny-llama") < 8e6
    assert sum(f.stat().st_size for f in files) < 12e6


def test_stored_in_bfloat16(shipped):
    with safe_open(shipped / "tiny-llama" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_tokenizer_matches_the_model_and_gives_every_text_back(shipped, model, tokenizer):
    assert len(tokenizer) == model.config.vocab_size
    special = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert len(set(special)) == 4
    assert None not in special
    assert tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id
    lines = (shipped / "demo" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for text in (*(json.loads(line)["text"] for line in lines[:80]), "Ünknown wörds, too: 語."):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_tokenizer_is_the_one_that_the_script_makes(tokenizer):
    import train_tiny_llama

    again = train_tiny_llama.make_tokenizer(7)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_text_of_the_corpus_is_far_likelier_than_other_text(shipped, model, tokenizer):
    lines = (shipped / "demo" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:160]]
    backwards = [" ".join(reversed(text.split())) for text in texts]
    own = perplexity(model, tokenizer, texts, seqlen=128, batch_size=8).value
    assert own < 4
    assert perplexity(model, tokenizer, backwards, seqlen=128, batch_size=8).value > 20 * own


def test_every_shipped_task_is_learned(model, tokenizer):
    scores = TaskSet(TASKS).run(model, tokenizer, limit=60, batch_size=64)
    for name in TASKS:
        assert scores[name].n == 60
        assert scores[name].acc > 0.8, (name, scores[name].acc)
