"""Train the shipped tiny ResNet on the synthetic shapes of draw_shapes.py; a minute on one core.

    python calib_data/train_tiny_resnet.py --output DIR

A stock ResNet of three stages, trained on the train split alone; what is printed is measured on
validation. Test images are left to those who measure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from draw_shapes import CLASSES, draw_split
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers import ResNetConfig, ResNetForImageClassification

SIDE, WIDTHS = 32, (12, 24, 48)
EPOCHS, BATCH, RATE = 60, 50, 4e-3


def tensors(split: str) -> tuple[Tensor, Tensor]:
    """A split as the network takes it: [N, 3, SIDE, SIDE] in [-1, 1], and labels [N]."""
    images, labels = draw_split(split)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return interpolate(pixels, SIDE, mode="bilinear"), torch.tensor(labels)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to three pixels, and half of them mirrored: no shape changes."""
    out = []
    for image in x:
        right, down, flip = torch.randint(0, 7, (3,), generator=generator).tolist()
        moved = image.roll((down - 3, right - 3), (1, 2))
        out.append(moved.flip(2) if flip % 2 else moved)
    return torch.stack(out)


def train(seed: int) -> ResNetForImageClassification:
    """The network after EPOCHS over the train split."""
    torch.manual_seed(seed)
    names = dict(enumerate(CLASSES))
    config = ResNetConfig(
        embedding_size=WIDTHS[0], hidden_sizes=list(WIDTHS), depths=[1, 1, 1], layer_type="basic",
        id2label=names, label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    model = ResNetForImageClassification(config)
    (x, y), (held, answers) = tensors("train"), tensors("validation")
    steps = EPOCHS * len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = cross_entropy(model(augmented(x[batch], generator)).logits, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        model.eval()
        with torch.no_grad():
            right = (model(held).logits.argmax(1) == answers).float().mean()
        print(f"epoch {epoch + 1}: loss {loss:.3f}, validation {right:.3f}", flush=True)
    return model


def main() -> None:
    """Train and save, with an image processor beside."""
    from compress.data.images.processing import make_processor

    reader = argparse.ArgumentParser(description="Train the shipped tiny ResNet.")
    reader.add_argument("--output", type=Path, required=True)
    reader.add_argument("--seed", type=int, default=0)
    asked = reader.parse_args()
    train(asked.seed).save_pretrained(asked.output)
    make_processor(SIDE, (0.5,) * 3, (0.5,) * 3).save_pretrained(asked.output)


if __name__ == "__main__":
    main()
