"""Accuracy of image classifiers: the definition, the command, pairing, prompts."""

import json

import image_sets
import pytest
import torch

from compress.checkpoints.source import open_source
from compress.cli.main import call
from compress.data.images import load_evaluation, read_processing
from compress.data.images.prompting import SavedPrompt
from compress.errors import RequestError, RunError
from compress.evaluation.accuracy import accuracy
from compress.evaluation.evaluate import evaluate
from compress.evaluation.measures import Measures


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("accuracy")
    image_sets.write_resnet(path / "one")
    image_sets.write_resnet(path / "two", seed=1)
    image_sets.digit_splits(path / "digits", 30, 20, 50)
    return path


def test_accuracy_is_the_definition(place):
    images = load_evaluation(
        str(place / "digits"), read_processing(place / "one"), image_sets.tiny_resnet().config
    ).images
    assert len(images) == 50  # the test split
    model = image_sets.tiny_resnet()
    found = accuracy(model, images, batch_size=7)
    batch = next(images.batches(50))
    with torch.no_grad():
        ranked = model(batch["pixel_values"]).logits.argsort(-1, descending=True)
    first = sum(int(ranked[n, 0]) == int(batch["labels"][n]) for n in range(50)) / 50
    five = sum(int(batch["labels"][n]) in ranked[n, :5].tolist() for n in range(50)) / 50
    assert (found.top1, found.top5, found.n) == (pytest.approx(first), pytest.approx(five), 50)
    assert found.stderr == pytest.approx((first * (1 - first) / 50) ** 0.5)
    assert sum(found.items.values()) / 50 == pytest.approx(first)
    assert accuracy(model, images, limit=10).n == 10


def test_the_command_compares_on_the_same_images(place, capsys):
    args = [
        *("eval", str(place / "two"), "--against", str(place / "one")),
        *("--accuracy", str(place / "digits"), "--json"),
    ]
    assert call(args) == 0
    report = json.loads(capsys.readouterr().out)
    key = str(place / "digits")
    two, one = (model["accuracy"][key] for model in report["models"])
    compared = report["comparison"]["accuracy"][key]
    assert compared["difference"] == pytest.approx(two["top1"] - one["top1"])
    assert compared["n"] == two["n"] == 50
    assert call(args[:-1]) == 0
    table = capsys.readouterr().out
    assert "accuracy, 50 images" in table
    assert f"{two['top1']:.3f}" in table


def test_measures_keep_every_outcome(place):
    found = evaluate(place / "one", accuracy=[str(place / "digits")])
    (measured,) = found.measures.values()
    again = Measures.from_json(measured.to_json())
    assert again.as_items() == measured.as_items()
    assert again.as_receipt() == measured.as_receipt()


def test_a_prompt_that_the_model_needs_is_measured_too(place, tmp_path):
    import shutil

    shutil.copytree(place / "one", tmp_path / "m")
    values = torch.ones(3, 16, 16)
    SavedPrompt(values, 8, "pad", False).save(tmp_path / "m")
    spec = str(place / "digits")
    (measured,) = evaluate(tmp_path / "m", accuracy=[spec]).measures.values()
    assert list(measured.accuracy) == [spec]
    SavedPrompt(values, 8, "pad", True).save(tmp_path / "m")
    (measured,) = evaluate(tmp_path / "m", accuracy=[spec]).measures.values()
    assert list(measured.accuracy) == [spec, f"{spec} with prompt"]
    white = measured.accuracy[f"{spec} with prompt"]
    assert white.items != measured.accuracy[spec].items  # all white: one class for all


def test_bad_requests(place, tmp_path):
    import tiny_models

    tiny_models.make_checkpoint("llama", tmp_path / "text")
    with pytest.raises(RequestError, match="accuracy needs an image classifier"):
        evaluate(tmp_path / "text", accuracy=[str(place / "digits")])
    with pytest.raises(RequestError, match="holds no labelled images"):
        evaluate(place / "one", accuracy=[str(place / "one" / "config.json")])
    model = open_source(place / "one").load()
    with torch.no_grad():
        model.classifier[1].weight.fill_(float("inf"))
    images = load_evaluation(
        str(place / "digits"), read_processing(place / "one"), model.config
    ).images
    with pytest.raises(RunError, match="logits aren't finite"):
        accuracy(model, images)
