"""Small labelled image sets and a tiny classifier that the tests of image work share.

The CIFAR-10 slice where COMPRESS_ASSETS has it; else, and where a few pixels do, scikit-learn's
handwritten digits, which ship with it.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification

from compress.data.images.processing import make_processor


def cifar():
    """The directory of the CIFAR-10 slice, or None."""
    place = Path(os.environ.get("COMPRESS_ASSETS", "/none")) / "images" / "cifar10_slice"
    return place if place.is_dir() else None


def digit_pngs(count, first=0):
    """The files' bytes and labels of some 8 x 8 digits."""
    digits = load_digits()
    pixels = (digits.images[first : first + count] * (255 / 16)).round().astype(np.uint8)
    files = []
    for image in pixels:
        stream = io.BytesIO()
        PIL.Image.fromarray(image).convert("RGB").save(stream, "PNG")
        files.append(stream.getvalue())
    return files, digits.target[first : first + count].tolist()


def write_folders(root, count=120, first=0, names=None):
    """Class folders `root/NAME/7.png`."""
    for number, (data, label) in enumerate(zip(*digit_pngs(count, first))):
        place = root / (names[label] if names else f"digit{label}")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:04}.png").write_bytes(data)
    return root


def write_parquet(path, count=120, first=0, names=True):
    """A parquet file in the Hub's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files, labels = digit_pngs(count, first)
    cells = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(files)]
    table = pa.table({"image": cells, "label": pa.array(labels, pa.int64())})
    if names:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": [f"digit{n}" for n in range(10)], "_type": "ClassLabel"},
        }
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    parquet.write_table(table, path)
    return path


def digit_splits(root, train=400, validation=100, test=200):
    """A directory of parquet files named by split."""
    write_parquet(root / "train-0.parquet", train)
    write_parquet(root / "validation-0.parquet", validation, train)
    write_parquet(root / "test-0.parquet", test, train + validation)
    return root


def tiny_resnet(seed=0, classes=10, widths=(8, 16), layer="basic", depths=(1, 1)):
    """A ResNet of two stages, randomly initialised."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=3, embedding_size=widths[0], hidden_sizes=list(widths), depths=list(depths),
        layer_type=layer, num_labels=classes, id2label={n: f"digit{n}" for n in range(classes)},
        label2id={f"digit{n}": n for n in range(classes)},
    )  # fmt: skip
    return ResNetForImageClassification(config).eval()


def write_resnet(place, side=16, **options):
    """The same as a checkpoint with its image processor."""
    model = tiny_resnet(**options)
    model.save_pretrained(place)
    make_processor(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(place)
    return place
