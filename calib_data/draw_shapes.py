"""Draw the shipped image set: eight shapes of 16 x 16 pixels, synthetic and called so.

    python calib_data/draw_shapes.py [--output calib_data/shapes]

A disk, a ring, a square, a diamond, a triangle, a cross, bars across, bars down: of any colour on
any other, somewhere, of some size, under noise. Each image has a counter-based generator of its
own, keyed by seed, split and number, from which only uniform numbers are drawn, so that a split
can be longer without changing what it holds. It shows that image commands work; it says nothing of
photographs.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np

CLASSES = ("disk", "ring", "square", "diamond", "triangle", "cross", "bars across", "bars down")
SPLITS = {"train": 800, "validation": 160, "test": 400}  # images, every class equally often
SIDE, FINE, SEED = 16, 4, 0  # pixels, points across a pixel, seed
LEVELS = 15  # steps of a colour: PNG packs few levels well
NOISE = 0.07  # standard deviation, where colours are from 0 to 1


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points belong to a shape of radius 1 around 0; bool of the shape of x and y."""
    far = np.maximum(abs(x), abs(y))
    round_ = np.hypot(x, y)
    bars = {"bars across": y, "bars down": x}
    if shape in bars:
        return (far < 1) & (np.floor((bars[shape] + 1) * 2.5) % 2 == 0)
    return {
        "disk": round_ < 1,
        "ring": (round_ < 1) & (round_ > 0.55),
        "square": far < 0.88,
        "diamond": abs(x) + abs(y) < 1.2,
        "triangle": (y < 0.8) & (abs(x) < 0.5 * (y + 1)),
        "cross": (far < 1) & (np.minimum(abs(x), abs(y)) < 0.33),
    }[shape]


def draw(shape: str, split: int, number: int) -> np.ndarray:
    """One image, uint8 [SIDE, SIDE, 3]."""
    key = (SEED << 40) + (split << 32) + number
    rng = np.random.Generator(np.random.Philox(key=key))
    radius = rng.uniform(3.2, 6.0)
    left, top = rng.uniform(radius, SIDE - radius, 2)
    places = (np.arange(SIDE * FINE) + 0.5) / FINE
    x, y = np.meshgrid((places - left) / radius, (places - top) / radius)
    cover = inside(shape, x, y).reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))
    ground = rng.uniform(0.25, 0.75, 3)
    step = rng.uniform(-1, 1, 3)
    step *= rng.uniform(0.4, 0.8) / np.hypot.reduce(step)
    # The sum of twelve uniform numbers is as good as normal here, and the same in every version.
    noise = rng.random((12, SIDE, SIDE, 3)).sum(0) - 6
    image = ground + cover[..., None] * step + NOISE * noise
    return (np.rint(np.clip(image, 0, 1) * LEVELS) * (255 // LEVELS)).astype(np.uint8)


def draw_split(name: str) -> tuple[np.ndarray, list[int]]:
    """A split's images [N, SIDE, SIDE, 3], and their labels."""
    labels = [number % len(CLASSES) for number in range(SPLITS[name])]
    split = list(SPLITS).index(name)
    return np.stack([draw(CLASSES[c], split, n) for n, c in enumerate(labels)]), labels


def write(place: Path) -> None:
    """Every split as parquet in the Hub's layout."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    place.mkdir(parents=True, exist_ok=True)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    }
    about = json.dumps({"info": {"features": features}})
    for name in SPLITS:
        images, labels = draw_split(name)
        cells = []
        for number, image in enumerate(images):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG", optimize=True)
            cells.append({"bytes": stream.getvalue(), "path": f"{number:04}.png"})
        table = pa.table({"image": cells, "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata({"huggingface": about})
        parquet.write_table(table, place / f"{name}.parquet", compression="zstd")


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description="Draw the shipped image set.")
    reader.add_argument("--output", type=Path, default=Path(__file__).parent / "shapes")
    write(reader.parse_args().output)
