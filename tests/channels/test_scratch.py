"""Networks from a random start, and heads for other classes."""

import image_sets
import pytest
import torch

from compress.channels import tuning
from compress.channels.heads import replace_head
from compress.channels.scratch import train_preset
from compress.channels.tuning import TuneSettings
from compress.data.images import Augmentation
from compress.errors import RequestError
from compress.evaluation.evaluate import evaluate
from compress.reports.receipt import Receipt
from compress.training import looping

STILL = Augmentation(flip=False, crop=1)
QUICK = TuneSettings(epochs=6, lr=0.1, batch_size=50, warmup=0.1, save_every=8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return str(image_sets.digit_splits(tmp_path_factory.mktemp("digits"), 300, 60, 100))


def _train(digits, place, **options):
    return train_preset(
        "resnet-8-slim", digits, place, settings=QUICK, image_size=8, augmentation=STILL, **options
    )


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """What an uninterrupted training makes."""
    return _train(digits, tmp_path_factory.mktemp("whole") / "dense")


def test_a_preset_becomes_a_checkpoint_with_its_processor(digits, whole):
    place = whole
    receipt = Receipt.read(place)
    (measured,) = evaluate(place, accuracy=[digits]).measures.values()
    found = measured.accuracy[digits]
    assert found.top1 > 0.5  # far above chance: the saved normalisation is the one it learned with
    assert receipt.after.extra["accuracy"][digits]["top1"] == pytest.approx(found.top1)
    said = []
    assert _train(digits, place, say=said.append) == place  # taken as it is
    assert "already" in said[0]
    with pytest.raises(RequestError, match="is not empty"):
        _train(digits, place, seed=1)


def test_a_killed_training_resumes_to_the_same_bytes(digits, whole, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 13:
                raise KeyboardInterrupt

    real = looping.loop
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "loop", lambda *args, callbacks=(), **options: real(
            *args, callbacks=(*callbacks, Kill()), **options))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            _train(digits, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    said = []
    killed = _train(digits, tmp_path / "killed", resume=True, say=said.append)
    assert any("resumed" in line and "step 8" in line for line in said)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("family", ["resnet", "vit", "deit"])
def test_a_new_head_has_the_datas_classes(family, tmp_path):
    if family == "resnet":
        model = image_sets.tiny_resnet(classes=3)
    else:
        from transformers import (
            DeiTConfig,
            DeiTForImageClassification,
            ViTConfig,
            ViTForImageClassification,
        )

        sizes = {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "image_size": 16, "patch_size": 8, "num_labels": 3,
        }  # fmt: skip
        model = (
            ViTForImageClassification(ViTConfig(**sizes))
            if family == "vit"
            else DeiTForImageClassification(DeiTConfig(**sizes))
        )
    body = {k: v.clone() for k, v in model.base_model.state_dict().items()}
    assert len(replace_head(model, tuple("abcde"))) == 1
    assert all(torch.equal(v, body[k]) for k, v in model.base_model.state_dict().items())
    assert model(torch.rand(2, 3, 16, 16)).logits.shape == (2, 5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.id2label == dict(enumerate("abcde"))
    assert again(torch.rand(2, 3, 16, 16)).logits.shape == (2, 5)


def test_without_a_linear_head():
    model = image_sets.tiny_resnet()
    model.classifier = torch.nn.Identity()
    with pytest.raises(RequestError, match="no linear classifier"):
        replace_head(model, tuple("ab"))
