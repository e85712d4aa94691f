"""A small config, a text, and quick options that the tests of training share."""

import json
import random

import pytest

import tiny_models

CONFIG = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def words(count, seed=0):
    draw = random.Random(seed)
    stock = ["the", "sea", "was", "calm", "and", "a", "gull", "cried", "over", "grey", "stones"]
    return " ".join(draw.choice(stock) for _ in range(count))


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """A directory with a config and a tokenizer of 128 characters, without weights."""
    place = tmp_path_factory.mktemp("config")
    (place / "config.json").write_text(json.dumps(CONFIG))
    tiny_models.tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A .jsonl file of 40 documents, about 7000 tokens; beside it valid.txt, about 200."""
    place = tmp_path_factory.mktemp("text") / "text.jsonl"
    place.write_text("".join(json.dumps({"text": words(35, i)}) + "\n" for i in range(40)))
    place.with_name("valid.txt").write_text(words(40, 99))
    return place


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """A .jsonl file of 12 questions with short and long answers."""
    place = tmp_path_factory.mktemp("sft") / "questions.jsonl"
    rows = [
        {"q": f"Say {i} words", "a": words(2 if i % 3 else 6, i), "more": "x"} for i in range(12)
    ]
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture
def options(text):
    """Options of a run of a few seconds."""
    return {
        "data": str(text),
        "steps": 6,
        "batch_size": 4,
        "micro_batch": 2,
        "seqlen": 24,
        "lr": 1e-2,
        "optimizer": "adamw",
        "log_every": 1,
        "save_every": 2,
        "device": "cpu",
    }
