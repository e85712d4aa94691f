"""The shipped image set and network: as the committed scripts make them, and of use."""

import importlib.util
import io

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from compress.data.registry import shipped


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_shapes", shipped("draw_shapes.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_shipped_images_are_those_that_the_script_draws(drawing, split):
    table = parquet.read_table(shipped(f"shapes/{split}.parquet"))
    images, labels = drawing.draw_split(split)
    assert table.column("label").to_pylist() == labels
    counts = np.bincount(labels, minlength=8)
    assert counts.min() == counts.max() == len(labels) // 8
    kept = [cell["bytes"] for cell in table.column("image").to_pylist()]
    for data, drawn in list(zip(kept, images, strict=True))[::9]:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), drawn)


def test_no_image_is_in_two_splits(drawing):
    seen = [image.tobytes() for split in drawing.SPLITS for image in drawing.draw_split(split)[0]]
    assert len(seen) == len({*seen}) == sum(drawing.SPLITS.values())


def test_the_shipped_network_knows_the_shapes():
    from transformers import AutoModelForImageClassification

    from compress.data.images import load_images
    from compress.data.images.processing import read_processing
    from compress.evaluation.accuracy import accuracy

    place = shipped("tiny-resnet")
    model = AutoModelForImageClassification.from_pretrained(place).eval()
    data = load_images(str(shipped("shapes")), read_processing(place), model.config)
    assert accuracy(model, data.test).top1 > 0.85  # chance is 0.125
