"""Networks for those who start from scratch: ResNets for images of a few dozen pixels.

`resnet-N` is the CIFAR ResNet of He et al. (arXiv:1512.03385, 4.2): a 3 x 3 stem without pooling,
three stages of (N - 2) / 6 basic blocks with 16, 32 and 64 channels. It is transformers' ResNet
with two edits: its own stem is made for 224 pixels. `resnet-N-slim` has half the channels, and
`resnet-N-fast` the stock stem's stride of 2 and 24 to 96 channels: for a quick look on a CPU.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from compress.checkpoints import edits
from compress.errors import RequestError, near_names


class ImagePreset(NamedTuple):
    """A network's sizes.

    Attributes:
        blocks: basic blocks of each stage.
        widths: channels of each stage.
        stride: of the stem.
        side: of the images that it is made for.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stride: int = 1
    side: int = 32


_FORMS = {"": ((16, 32, 64), 1), "-slim": ((8, 16, 32), 1), "-fast": ((24, 48, 96), 2)}
IMAGE_PRESETS = tuple(f"resnet-{n}{form}" for n in (8, 14, 20, 32, 56, 110) for form in _FORMS)


def image_preset(name: str) -> ImagePreset:
    """Read `resnet-N`, `resnet-N-slim` or `resnet-N-fast`.

    Raises:
        RequestError: another name, or N isn't 6 n + 2.
    """
    read = re.fullmatch(r"resnet-(\d+)(-slim|-fast)?", name)
    if read is None or (int(read[1]) - 2) % 6 or int(read[1]) < 8:
        raise RequestError(f"there is no preset `{name}`", near_names(name, IMAGE_PRESETS))
    widths, stride = _FORMS[read[2] or ""]
    return ImagePreset(((int(read[1]) - 2) // 6,) * 3, widths, stride)


def build_image_model(name: str, classes: tuple[str, ...], seed: int) -> Any:
    """Build a preset's network with a random start.

    Args:
        name: of the preset.
        classes: names of the outputs.
        seed: of the start.

    Returns:
        A ResNetForImageClassification in evaluation mode, its stem edited.
    """
    from transformers import ResNetConfig, ResNetForImageClassification

    preset = image_preset(name)
    options: dict[str, Any] = {"num_labels": len(classes)}
    config = ResNetConfig(
        num_channels=3,
        embedding_size=preset.widths[0],
        hidden_sizes=list(preset.widths),
        depths=list(preset.blocks),
        layer_type="basic",
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetForImageClassification(config)
        stem = "resnet.embedder"
        edits.apply(
            model,
            {
                f"{stem}.embedder.convolution": {
                    "kind": "conv", "kernel": 3, "stride": preset.stride
                },
                f"{stem}.pooler": {"kind": "identity"},
            },
        )  # fmt: skip
        convolution: Any = model.get_submodule(f"{stem}.embedder.convolution")
        torch.nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return model.eval()
