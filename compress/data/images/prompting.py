"""A learned visual prompt as an input transform: a frame added to images before normalisation.

x' = clamp(pad(x) + V * B, 0, 1), x in [0, 1]; B is 1 on a frame of `width` pixels and 0 inside.
`pad` adds the frame onto the image's edges; `expand` shrinks the image by the frame and pads it
with zeros, so that the frame lies around it and the network's input keeps its size. It is kept
beside the processor as `prompt.safetensors`, since `from_pretrained` alone doesn't restore an input
transform, and as a picture.

Source: PASS, arXiv:2407.17412; the form is that of its sibling, arXiv:2312.01397.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import RequestError

FILE = "prompt.safetensors"
PICTURE = "prompt.png"
PLACES = ("pad", "expand")


def frame(side: int, width: int) -> Tensor:
    """The mask B: float32 [1, side, side], 1 on the frame.

    A width of half the side or more covers everything.
    """
    mask = torch.ones(1, side, side)
    if 2 * width < side:
        mask[:, width : side - width, width : side - width] = 0
    return mask


def apply_prompt(unit: Tensor, values: Tensor, mask: Tensor, inner: int | None = None) -> Tensor:
    """Put a prompt on images.

    Args:
        unit: float [B, 3, h, w] in [0, 1], not larger than the prompt; smaller ones are padded
            with zeros, alike on both sides.
        values: [3, S, S], the prompt V.
        mask: [1, S, S], its frame B.
        inner: side to which images are shrunk first, None for "pad".

    Returns:
        float [B, 3, S, S] in [0, 1].
    """
    if inner is not None:
        unit = functional.interpolate(unit, (inner, inner), mode="bilinear", antialias=True)
    tall, wide = values.shape[-2] - unit.shape[-2], values.shape[-1] - unit.shape[-1]
    if tall or wide:
        unit = functional.pad(unit, [wide // 2, wide - wide // 2, tall // 2, tall - tall // 2])
    return (unit + values * mask).clamp(0, 1)


def inner_side(side: int, width: int, place: str) -> int | None:
    """Return the side of the image within a frame around it; None where it isn't shrunk."""
    return side - 2 * width if place == "expand" else None


@dataclass(frozen=True)
class SavedPrompt:
    """A learned prompt.

    Attributes:
        values: float32 [3, S, S], zero off the frame.
        width: of the frame, in pixels.
        place: "pad" or "expand".
        needed: whether the model's last training steps saw it.
    """

    values: Tensor
    width: int
    place: str
    needed: bool

    def __call__(self, unit: Tensor) -> Tensor:
        """Put it on images; see apply_prompt."""
        values = self.values.to(unit)
        side = values.shape[-1]
        inner = inner_side(side, self.width, self.place)
        return apply_prompt(unit, values, frame(side, self.width).to(unit), inner)

    def save(self, directory: Path) -> None:
        """Write the tensor and the picture: grey is no change, brighter adds, darker takes."""
        import PIL.Image
        from safetensors.torch import save_file

        about = {"width": self.width, "place": self.place, "needed": self.needed}
        tensors = {"prompt": self.values.detach().cpu().float().contiguous()}
        # one key: safetensors writes several in an order that changes
        save_file(tensors, directory / FILE, metadata={"about": json.dumps(about)})
        largest = float(self.values.abs().max()) or 1.0
        shown = (self.values / largest * 127 + 128).clamp(0, 255).to(torch.uint8)
        picture = PIL.Image.fromarray(shown.permute(1, 2, 0).cpu().numpy())
        side = max(256 // shown.shape[-1], 1) * shown.shape[-1]
        picture.resize((side, side), PIL.Image.Resampling.NEAREST).save(directory / PICTURE)


def read_prompt(directory: Path) -> SavedPrompt | None:
    """Read the prompt beside a checkpoint; None where it has none.

    Raises:
        RequestError: the file can't be used.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            values = file.get_tensor("prompt")
        return SavedPrompt(values, about["width"], about["place"], about["needed"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise RequestError(
            f"`{path}` is no prompt: {error}", "remove it, or copy it again from its model"
        ) from error
