"""Runs that train a part of the model."""

import json

import pytest
import torch
import transformers

import tiny_models
from compress.errors import RequestError
from compress.training.command import train_spam
from compress.training.freezing import train_only


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_models.make_checkpoint("llama", tmp_path_factory.mktemp("llama") / "source")


def weights(place):
    return transformers.AutoModelForCausalLM.from_pretrained(place).state_dict()


@pytest.mark.parametrize(
    ("globs", "moves"),
    [
        (["model.layers.1.mlp"], lambda n: n.startswith("model.layers.1.mlp.")),
        (["*.down_proj.weight", "model.norm"], lambda n: "down_proj" in n or "model.norm" in n),
    ],
    ids=["module", "globs"],
)  # fmt: skip
def test_only_what_is_named_moves(source, options, tmp_path, globs, moves):
    """To the last bit; and the optimizer holds two moments of that alone."""
    train_spam(source, tmp_path / "out", train_only=globs, weight_decay=0.1, **options)
    before, after = weights(source), weights(tmp_path / "out")
    for name, value in before.items():
        assert torch.equal(after[name], value) != moves(name), name
    entry = json.loads((tmp_path / "out" / "receipt.json").read_text())["training"]
    count = sum(value.numel() for name, value in before.items() if moves(name))
    assert entry["trained"]["parameters"] == count
    assert entry["trained"]["of"] == sum(value.numel() for value in before.values())
    assert 8 * count <= entry["optimizer_state_bytes"] < 8 * count + 64 * len(before)


def test_a_tied_table_is_trained_by_either_name():
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    )
    model[1].weight = model[0].weight
    assert train_only(model, ["1"]).parameters == 16
    assert model[0].weight.requires_grad


def test_a_glob_that_names_nothing_is_refused(source, options, tmp_path):
    with pytest.raises(RequestError, match=r"names no parameter") as found:
        train_spam(source, tmp_path / "out", train_only="model.layers.1.mpl", **options)
    assert "did you mean `model.layers.1.mlp`" in found.value.hint
    assert not list(tmp_path.iterdir())
