"""A checkpoint's own image processor, cut in two: geometry, then numbers.

Resizing and cropping are the processor's own code (its PIL form; torchvision isn't needed). Its
scaling and normalisation are redone here on tensors, since a prompt goes between them: after the
first half an image is a uint8 [3, H, W], and `unit` and `normalise` make of it what the processor
would have made.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.errors import RequestError

FILE = "preprocessor_config.json"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Processing:
    """How an image becomes a model's input.

    Attributes:
        processor: of transformers, whose geometry is used.
        factor: pixels times this are in [0, 1].
        mean, std: of the channels, in [0, 1].
    """

    processor: Any
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, data: bytes) -> Tensor:
        """Decode a picture's file and bring it to size: uint8 [3, H, W].

        Raises:
            ValueError: it is no image, or a damaged one; the text says which.
        """
        image = decode(data)
        made = self.processor(
            images=[image], do_rescale=False, do_normalize=False, return_tensors="np"
        )["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(np.clip(np.rint(made), 0, 255), np.uint8))

    def unit(self, pixels: Tensor) -> Tensor:
        """Pixels as float32 in [0, 1], any shape."""
        return pixels.to(torch.float32) * self.factor

    def normalise(self, unit: Tensor) -> Tensor:
        """Images in [0, 1], [B, 3, H, W] -> what the model takes."""
        mean = unit.new_tensor(self.mean)[:, None, None]
        std = unit.new_tensor(self.std)[:, None, None]
        return (unit - mean) / std

    def as_receipt(self) -> dict[str, Any]:
        """What decides the numbers, for digests and receipts."""
        known = ("size", "crop_size", "crop_pct", "resample", "do_resize", "do_center_crop")
        parts = {key: getattr(self.processor, key, None) for key in known}
        shown = {key: _plain(value) for key, value in parts.items() if value is not None}
        return {**shown, "factor": self.factor, "mean": list(self.mean), "std": list(self.std)}

    def save(self, directory: Path) -> None:
        """Write the processor's file."""
        self.processor.save_pretrained(directory)


def decode(data: bytes) -> Any:
    """Decode a picture's file as RGB.

    Raises:
        ValueError: it is no image, or a damaged one.
    """
    import PIL.Image

    if not data:
        raise ValueError("an empty file")
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except PIL.UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, …
        text = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise ValueError(f"a damaged image: {text}") from error


def read_processing(
    directory: Path | None, image_size: int | None = None, model_type: str | None = None
) -> Processing:
    """Read a checkpoint's image processor.

    Args:
        directory: of the checkpoint; None for a model that has none yet.
        image_size: side to which images are brought instead of the processor's own; needed where
            the checkpoint has no processor.
        model_type: of the config, whose processor class is taken where there is no file.

    Raises:
        RequestError: no processor and no size, or one whose file can't be used.
    """
    if directory is not None and (directory / FILE).is_file():
        processor = _read(directory)
    elif image_size is not None:
        processor = make_processor(image_size)
    else:
        raise RequestError(
            f"`{directory}` has no {FILE}, which says how images become its input",
            "copy that of the original model there, or give --image-size N: images are then "
            "resized to N x N and normalised as ImageNet's",
        )
    if image_size is not None:
        _resize_to(processor, image_size)
    rescaled = bool(getattr(processor, "do_rescale", True))
    factor = float(processor.rescale_factor) if rescaled else 1 / 255
    if abs(factor * 255 - 1) > 1e-6 or not rescaled or getattr(processor, "rescale_offset", False):
        raise RequestError(
            f"the image processor in `{directory}` doesn't scale pixels to [0, 1]",
            "set do_rescale to true and rescale_factor to 1/255 in its file if that is right",
        )
    normalised = bool(getattr(processor, "do_normalize", False))
    mean = tuple(map(float, processor.image_mean)) if normalised else (0.0, 0.0, 0.0)
    std = tuple(map(float, processor.image_std)) if normalised else (1.0, 1.0, 1.0)
    return Processing(processor, factor, mean, std)


def make_processor(
    size: int, mean: tuple[float, ...] = IMAGENET[0], std: tuple[float, ...] = IMAGENET[1]
) -> Any:
    """Make a processor that resizes to size x size."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=list(mean), image_std=list(std)
    )


def _read(directory: Path) -> Any:
    import transformers

    # Every call says that torchvision is absent, and that the PIL form is taken: that is meant.
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return transformers.AutoImageProcessor.from_pretrained(directory)
    except Exception as error:
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RequestError(
            f"the image processor in `{directory}` can't be used: {text}",
            f"copy {FILE} of the original model into the directory",
        ) from error
    finally:
        log.setLevel(level)


def _resize_to(processor: Any, side: int) -> None:
    """Let a processor make side x side images, in its own way of cropping."""
    size = getattr(processor, "size", None)
    fraction = 1.0
    if getattr(processor, "do_center_crop", False) and size is not None:
        before = _least(size) or side
        crop = _least(getattr(processor, "crop_size", None)) or before
        fraction = before / crop
        processor.crop_size = _like(processor.crop_size, side)
    processor.do_resize = True
    processor.size = _like(size, round(side * fraction))


def _least(size: Any) -> int | None:
    given = [getattr(size, key, None) for key in ("height", "width", "shortest_edge")]
    known = [value for value in given if value]
    return min(known) if known else None


def _like(size: Any, side: int) -> Any:
    if size is not None and getattr(size, "shortest_edge", None):
        return type(size)(shortest_edge=side)
    return type(size)(height=side, width=side) if size is not None else side


def _plain(value: Any) -> Any:
    if hasattr(value, "height") or hasattr(value, "shortest_edge"):
        keys = ("height", "width", "shortest_edge", "longest_edge")
        return {k: getattr(value, k) for k in keys if getattr(value, k, None) is not None}
    return value if isinstance(value, (bool, int, float, str)) else str(value)
