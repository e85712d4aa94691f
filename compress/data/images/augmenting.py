"""Flips, shifts and mixup that depend on (seed, epoch, row) alone.

So a training image is the same whatever the batch it lies in, the number of processes and workers,
and the interruptions of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.data.images.processing import Processing
from compress.data.images.sets import ImageSet
from compress.errors import RequestError
from compress.numerics.counter import generator

_STREAM = 31


@dataclass(frozen=True)
class Augmentation:
    """What training images go through.

    Attributes:
        flip: mirror half of them.
        crop: shift each by up to this many pixels a side, edges reflected; None is an eighth of
            the side, 0 is off.
        mixup: alpha of Beta(alpha, alpha), the share of a second image; 0 is off.
    """

    flip: bool = True
    crop: int | None = None
    mixup: float = 0.0

    def shift(self, side: int) -> int:
        """The largest shift of an image with `side` pixels."""
        return min(side // 8 if self.crop is None else self.crop, side - 1)


NONE = Augmentation(flip=False, crop=0)


def parse_augmentation(names: Sequence[str], crop: int | None, mixup: float) -> Augmentation:
    """Read `--augment flip,crop,mixup` or `none`.

    Raises:
        RequestError: an unknown name.
    """
    known = ("flip", "crop", "mixup", "none")
    for name in names:
        if name not in known:
            raise RequestError(f"`--augment {name}` isn't known", f"All: {', '.join(known)}.")
    share = (mixup or 0.2) if "mixup" in names else 0.0
    return Augmentation("flip" in names, crop if "crop" in names else 0, share)


def augment(
    pixels: Tensor, how: Augmentation, seed: int, epoch: int, row: int
) -> tuple[Tensor, Tensor]:
    """Augment one image.

    Args:
        pixels: uint8 [3, H, W].
        how: what to do.
        seed, epoch, row: which draw.

    Returns:
        uint8 [3, H, W], and two further numbers in [0, 1) for mixup.
    """
    draws = torch.rand(5, generator=generator(seed, _STREAM, epoch, row), dtype=torch.float64)
    if how.flip and float(draws[0]) < 0.5:
        pixels = pixels.flip(-1)
    most = how.shift(min(pixels.shape[-2:]))
    if most:
        padded = functional.pad(pixels[None].float(), [most] * 4, mode="reflect")[0]
        top, left = (int(float(draw) * (2 * most + 1)) for draw in draws[1:3])
        pixels = padded[:, top : top + pixels.shape[-2], left : left + pixels.shape[-1]]
    return pixels.to(torch.uint8), draws[3:]


class ImageCollator:
    """Makes training batches of examples that carry "row" and "epoch".

    A batch is {"images": float32 [B, 3, H, W] in [0, 1], "labels": int64 [B]}; with mixup also
    "others", the labels of the images mixed in, and "shares" float32 [B], their share.

    Args:
        images: the training set.
        how: its augmentation.
        seed: of all draws.
    """

    def __init__(self, images: ImageSet, how: Augmentation, seed: int) -> None:
        self.images, self.how, self.seed = images, how, seed

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Make a batch."""
        processing: Processing = self.images.processing
        made = [self._image(int(e["row"]), int(e.get("epoch", 0))) for e in examples]
        batch = {
            "images": processing.unit(torch.stack([image for image, _ in made])),
            "labels": self.images.labels[[int(e["row"]) for e in examples]],
        }
        return self._mixed(batch, made, examples) if self.how.mixup > 0 else batch

    def _image(self, row: int, epoch: int) -> tuple[Tensor, Tensor]:
        return augment(self.images.pixels(row), self.how, self.seed, epoch, row)

    def _mixed(
        self,
        batch: dict[str, Tensor],
        made: Sequence[tuple[Tensor, Tensor]],
        examples: Sequence[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Mix each image with another of the whole set, drawn by its own counters."""
        from scipy.special import betaincinv

        rows = [int(float(draws[0]) * len(self.images)) for _, draws in made]
        alpha = self.how.mixup
        drawn = [float(betaincinv(alpha, alpha, float(draws[1]))) for _, draws in made]
        shares = torch.tensor([min(share, 1 - share) for share in drawn], dtype=torch.float32)
        partners = torch.stack([
            self._image(row, int(e.get("epoch", 0)))[0] for row, e in zip(rows, examples)
        ])  # fmt: skip
        weight = shares[:, None, None, None]
        others = self.images.processing.unit(partners)
        batch["images"] = batch["images"] * (1 - weight) + others * weight
        return {**batch, "others": self.images.labels[rows], "shares": shares}
