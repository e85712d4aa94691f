"""The model card beside a result: what the Hub reads, and how to load what lies there."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from compress.reports.card import FILE_NAME, write_card
from compress.reports.receipt import Receipt


def receipt(**parts):
    given = {
        "model": {"source": "/home/me/llama", "architecture": "LlamaForCausalLM", "digest": "x"},
        "before": {"parameters": 100, "bytes": 200, "perplexity": {
            "/data/wiki.txt": {"value": 5.0, "stderr": 0.1, "tokens": 1000}}},
        "after": {"parameters": 100, "bytes": 200, "perplexity": {
            "/data/wiki.txt": {"value": 6.0, "stderr": 0.1, "tokens": 1000}}},
        "settings": {"sparsity": 0.5, "calib": "/data/seen.txt", "output": "/home/me/out"},
        "notes": ["zeros are stored dense"],
        **parts,
    }  # fmt: skip
    return Receipt.build("alpha-prune", seed=3, argv=["compress"], **given)


def written(place, config=None, base=None, **parts):
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **(config or {})})
    )
    if base is not None:
        (place / FILE_NAME).write_text(base)
    assert write_card(place, receipt(**parts)) == place / FILE_NAME
    return (place / FILE_NAME).read_text()


def test_the_metadata_is_what_the_hub_reads(tmp_path):
    base = (
        "---\nlicense: mit\nlanguage: en\ntags:\n- stories\nbase_model: org/first\n---\nold words"
    )
    text = written(tmp_path, base=base)
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "mit"
    assert data["base_model"] == "org/first"
    assert data["tags"] == ["stories", "compress", "alpha-prune"]
    assert data["library_name"] == "transformers"
    assert "old words" not in text
    assert ModelCard(text).data.to_dict()["license"] == "mit"


def test_a_hub_model_is_the_base_model(tmp_path):
    model = {"source": "org/name", "architecture": "LlamaForCausalLM", "digest": "x"}
    text = written(tmp_path, model=model, base="---\nbase_model: org/older\n---\n")
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "org/name"


def test_no_directory_of_the_machine_is_told(tmp_path):
    text = written(tmp_path)
    assert "/home/me" not in text
    assert "/data" not in text
    assert "`seen.txt`" in text
    assert "| perplexity wiki.txt | 5.00 | 6.00 |" in text


@pytest.mark.parametrize(
    ("config", "told", "untold"),
    [
        ({}, ["AutoModelForCausalLM.from_pretrained"], ["import compress", "trust_remote_code"]),
        ({"quantization_config": {"quant_method": "compress"}}, ["import compress"], ["trust_"]),
        (
            {"auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}},
            ["trust_remote_code=True"],
            ["import compress"],
        ),
    ],
)
def test_it_says_how_to_load_what_lies_there(tmp_path, config, told, untold):
    text = written(tmp_path, config=config)
    assert all(words in text for words in told)
    assert not any(words in text for words in untold)


def test_written_twice_it_is_the_same(tmp_path):
    base = "---\nlicense: mit\n---\n"
    assert written(tmp_path, base=base) == written(tmp_path)


@pytest.mark.parametrize(
    "base", ["", "no metadata", "---\nlicense: [\n---\n", "---\n- a list\n---\n"]
)
def test_a_card_that_cannot_be_read_is_left_out(tmp_path, base):
    assert "license" not in yaml.safe_load(written(tmp_path, base=base).split("---")[1])


def test_without_a_model_there_is_no_card(tmp_path):
    assert write_card(tmp_path, receipt()) is None
    assert list(tmp_path.iterdir()) == []
