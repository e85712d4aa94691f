"""A split of a data set as a model takes it: pixels, and labels that are the head's outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress.data.images.matching import Matched, class_names, match_classes
from compress.data.images.pictures import WHOLE, Pictures
from compress.data.images.processing import Processing
from compress.data.images.reading import open_pictures
from compress.data.images.splits import three_splits
from compress.data.specs import DataSpec, parse_spec
from compress.errors import RequestError, RunError
from compress.progress import Progress, silent

_HELD = 2 << 30  # bytes of pixels that are held in memory; more are decoded when asked
_BAD = "`--skip-bad` leaves such images out and says how many"


class ImageSet:
    """Images by row.

    Args:
        pictures: where they come from.
        processing: how they become input.
        labels: int64 [n], each the head's output.
        held: uint8 [n, 3, H, W] of all of them, or None where they don't fit in memory.

    Attributes:
        side: the smaller side of an image, in pixels.
    """

    def __init__(
        self, pictures: Pictures, processing: Processing, labels: Tensor, held: Tensor | None
    ) -> None:
        self.pictures, self.processing, self.labels = pictures, processing, labels
        self._held = held
        self.side = min(self.pixels(0).shape[-2:])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return a row's label; the collator takes the pixels, which it augments."""
        return {"label": int(self.labels[row])}

    def pixels(self, row: int) -> Tensor:
        """Return uint8 [3, H, W].

        Raises:
            RunError: an image that isn't held in memory has become unreadable.
        """
        if self._held is not None:
            return self._held[row]
        try:
            return self.processing.pixels(self.pictures.read(row))
        except (ValueError, OSError) as error:
            raise RunError(f"{_place(self.pictures, row)}: {error}", _BAD) from error

    def batches(
        self,
        size: int,
        *,
        limit: int | None = None,
        rows: Sequence[int] | None = None,
        normalised: bool = True,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield {"pixel_values" float32 [B, 3, H, W], "labels" int64 [B]}, not augmented.

        Args:
            size: images in a batch.
            limit: at most so many images.
            rows: which, in this order; None takes all.
            normalised: False yields "images" in [0, 1] instead of "pixel_values".
        """
        chosen = list(range(len(self)) if rows is None else rows)[:limit]
        for first in range(0, len(chosen), size):
            some = chosen[first : first + size]
            unit = self.processing.unit(torch.stack([self.pixels(row) for row in some]))
            name, made = ("pixel_values", self.processing.normalise(unit)) if normalised else (
                "images", unit
            )  # fmt: skip
            yield {name: made, "labels": self.labels[some]}

    def normalised_by(self, processing: Processing) -> ImageSet:
        """The same pixels, normalised by other numbers; geometry must be the same."""
        return ImageSet(self.pictures, processing, self.labels, self._held)

    def digest(self) -> str:
        """Return "sha256:…" of the labels and pixels; of labels and places where not in memory."""
        whole = hashlib.sha256(self.labels.numpy().astype("<i8").tobytes())
        if self._held is not None:
            whole.update(self._held.numpy().tobytes())
        else:
            whole.update("\n".join(self.pictures.places).encode())
        return f"sha256:{whole.hexdigest()}"


@dataclass(frozen=True)
class ImageData:
    """Train, validation and test of one data set.

    Attributes:
        name: of the data, as the user wrote it.
        classes: names by output.
        skipped: images left out because they can't be read.
        notes: plain sentences for the receipt.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    processing: Processing
    classes: tuple[str, ...]
    skipped: int = 0
    notes: tuple[str, ...] = field(default=())

    def normalised_by(self, processing: Processing) -> ImageData:
        """The same pixels, normalised by other numbers."""
        parts = (self.train, self.validation, self.test)
        train, validation, test = (part.normalised_by(processing) for part in parts)
        return replace(self, train=train, validation=validation, test=test, processing=processing)

    def digest(self) -> str:
        """Return one digest of all three splits."""
        parts = (self.train, self.validation, self.test)
        whole = hashlib.sha256("".join(part.digest() for part in parts).encode())
        return f"sha256:{whole.hexdigest()}"


def load_images(
    name: str,
    processing: Processing,
    config: Any = None,
    *,
    skip_bad: bool = False,
    least: int = 1,
    progress: Progress = silent,
) -> ImageData:
    """Read a data set for search, choice and report.

    Args:
        name: a data spec: a path or Hub id, with `:COLUMN` for the image column of a table.
        processing: of the model.
        config: of the model whose head must know the classes; None for a head that is yet to be
            made, which gets the data's classes in their order.
        skip_bad: leave out images that can't be read.
        least: side below which an image is too small for the network.
        progress: called along the way.

    Raises:
        RequestError: see open_pictures, three_splits and match_classes; an unreadable image, whose
            place is named; images smaller than the network's stride.
    """
    spec = _one(name)
    splits = three_splits(open_pictures(spec.name, spec.column), spec.name)
    parts = (splits.train, splits.validation, splits.test)
    names = class_names(splits.train, parts)
    matched = Matched(np.arange(len(names)))
    if config is not None:
        for part in parts:  # a label outside the head's range may lie in any of them
            matched = match_classes(part, config, spec.name)
        if len(names) < int(config.num_labels) or splits.train.names is None:
            names = tuple(str(config.id2label[k]) for k in sorted(config.id2label))
    sets, skipped = [], 0
    for part, label in zip(parts, ("train", "validation", "test")):
        made, bad = make_set(part, processing, matched.outputs, skip_bad, f"{label} images",
                             progress)  # fmt: skip
        _check_size(made, least, processing)
        sets.append(made)
        skipped += bad
    notes = [*splits.notes, *([matched.note] if matched.note else [])]
    if skipped:
        notes.append(f"{skipped} images that can't be read were left out")
    train, validation, test = sets
    return ImageData(spec.text, train, validation, test, processing, names, skipped, tuple(notes))


class Evaluated(NamedTuple):
    """What an accuracy is measured on.

    Attributes:
        images: the test split, or the validation split, or all there is.
        skipped: images left out because they can't be read.
        notes: plain sentences.
    """

    images: ImageSet
    skipped: int
    notes: tuple[str, ...]


def load_evaluation(
    name: str,
    processing: Processing,
    config: Any,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Evaluated:
    """Read what a model's accuracy is measured on; see load_images.

    Raises:
        RequestError: as load_images.
    """
    spec = _one(name)
    found = open_pictures(spec.name, spec.column)
    split = next(s for s in ("test", "validation", WHOLE, "train") if s in found)
    pictures = found[split]
    matched = match_classes(pictures, config, spec.name)
    images, skipped = make_set(pictures, processing, matched.outputs, skip_bad, "images", progress)
    notes = [matched.note] if matched.note else []
    if split == "train":
        notes.append(f"`{spec.name}` has a train split alone, and that is what was measured")
    if skipped:
        notes.append(f"{skipped} images of `{spec.name}` can't be read and were left out")
    return Evaluated(images, skipped, tuple(notes))


def make_set(
    pictures: Pictures,
    processing: Processing,
    outputs: np.ndarray,
    skip_bad: bool,
    task: str = "images",
    progress: Progress = silent,
) -> tuple[ImageSet, int]:
    """Decode a split once; returns the set and how many unreadable images were left out.

    Raises:
        RequestError: an unreadable image without `skip_bad`, none left, or images of several sizes.
    """
    held: list[Tensor] | None = []
    good: list[int] = []
    shape: torch.Size | None = None
    total = len(pictures)
    for row in range(total):
        try:
            pixels = processing.pixels(pictures.read(row))
        except (ValueError, OSError) as error:
            if skip_bad:
                continue
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"{_place(pictures, row)}: {reason}", _BAD) from error
        if shape is not None and pixels.shape != shape:
            raise RequestError(
                f"{_place(pictures, row)} is {_size(pixels.shape)} after processing, others are "
                f"{_size(shape)}",
                "give --image-size N, so that all become N x N",
            )
        shape = pixels.shape
        good.append(row)
        if held is not None:
            held.append(pixels)
            if len(held) == 1 and pixels.numel() * total > _HELD:
                held = None
        if row % 64 == 0:
            progress(task, row, total)
    progress(task, total, total)
    if not good:
        raise RequestError(f"none of {total} images can be read", f"the first: {_first(pictures)}")
    rows = np.array(good, np.int64)
    kept = pictures if len(good) == total else pictures.select(rows)
    labels = torch.from_numpy(np.ascontiguousarray(outputs[kept.labels]))
    stacked = None if held is None else torch.stack(held)
    return ImageSet(kept, processing, labels, stacked), total - len(good)


def _place(pictures: Pictures, row: int) -> str:
    place = pictures.places[row]
    return place if place.startswith("`") else f"`{place}`"


def _first(pictures: Pictures) -> str:
    return _place(pictures, 0)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-1]} x {shape[-2]}"


def _check_size(images: ImageSet, least: int, processing: Processing) -> None:
    if images.side < least:
        raise RequestError(
            f"images of {images.side} pixels are smaller than the network's stride of {least}",
            f"give --image-size {max(least, 2 * images.side)} or more",
        )


def _one(name: str) -> DataSpec:
    specs = parse_spec(name)
    if len(specs) != 1 or specs[0].format != "raw":
        raise RequestError(
            f"`{name}`: images come from one source",
            "NAME_OR_PATH or NAME_OR_PATH:COLUMN",
        )
    return specs[0]
