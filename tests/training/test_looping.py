"""Any module on the Trainer: it learns, and a killed run resumes to the same bits."""

import image_sets
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from compress.data.images import Augmentation, ImageCollator, load_images, read_processing
from compress.errors import RequestError, RunError
from compress.training.looping import LoopSettings, loop


class Classifier(nn.Module):
    """A net with batch norm, whose running statistics must come back too."""

    def __init__(self, processing, seed=0):
        super().__init__()
        self.net, self.processing = image_sets.tiny_resnet(seed), processing

    def forward(self, images, labels):
        logits = self.net(pixel_values=self.processing.normalise(images)).logits
        return {"loss": nn.functional.cross_entropy(logits, labels)}


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    place = image_sets.digit_splits(tmp_path_factory.mktemp("digits"), 200, 20, 20)
    return load_images(str(place), read_processing(None, 16), image_sets.tiny_resnet().config).train


def _run(images, place, settings, callbacks=()):
    module = Classifier(images.processing)
    collate = ImageCollator(images, Augmentation(flip=False, crop=1), settings.seed)
    done = loop(module, images, collate, settings, place, callbacks=callbacks)
    return module, done


def _equal(one, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, images, optimizer):
    rate = {"sgd": 0.1, "adamw": 2e-2}[optimizer]
    settings = LoopSettings(12, batch_size=40, lr=rate, optimizer=optimizer, save_every=4)
    whole, done = _run(images, tmp_path / "a", settings)
    assert done.losses[-1][1] < 0.8 * done.losses[0][1]
    with pytest.raises(Killed):
        _run(images, tmp_path / "b", settings, [Kill(7)])
    again, resumed = _run(images, tmp_path / "b", settings)
    assert resumed.resumed == 4
    assert resumed.losses == done.losses
    assert _equal(whole, again)
    assert int(whole.state_dict()["net.resnet.embedder.embedder.normalization.num_batches_tracked"])


def test_seeds_differ(tmp_path, images):
    one, _ = _run(images, tmp_path / "a", LoopSettings(3, batch_size=20, seed=1))
    two, _ = _run(images, tmp_path / "b", LoopSettings(3, batch_size=20, seed=2))
    assert not _equal(one, two)


def test_mixed_precision_trains(tmp_path, images):
    _, done = _run(images, tmp_path, LoopSettings(6, batch_size=40, lr=0.1, precision="bf16"))
    assert done.losses[-1][1] < done.losses[0][1]


def test_faults(tmp_path, images):
    with pytest.raises(RequestError, match="fp16` needs a GPU"):
        _run(images, tmp_path, LoopSettings(2, precision="fp16"))
    with pytest.raises(RunError, match="isn't finite in step"):
        _run(images, tmp_path, LoopSettings(20, batch_size=20, lr=1e30))
