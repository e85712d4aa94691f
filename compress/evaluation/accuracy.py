"""Top-1 and top-5 accuracy of image classifiers, with standard errors."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.placement import compute_dtype
from compress.checkpoints.source import Source
from compress.data.images import ImageSet, Processing, load_evaluation, read_processing
from compress.data.images.matching import match_classes
from compress.data.images.prompting import SavedPrompt, read_prompt
from compress.data.images.reading import open_pictures
from compress.data.specs import parse_spec
from compress.errors import RequestError, RunError
from compress.evaluation.shown import Shown, head
from compress.progress import Progress, silent

BATCH = 64


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier was right.

    Attributes:
        top1, top5: shares of images whose class was the first, among the first five.
        stderr: of top1, binomial: sqrt(p (1 - p) / n).
        n: images.
        items: place of an image -> 1.0 where top1 was right, else 0.0.
        digest: of the images and labels.
        skipped: images that couldn't be read and were left out.
        notes: plain sentences about the data.
        shown: place of an image -> "target" and "answer", the classes' names.
    """

    top1: float
    top5: float
    stderr: float
    n: int
    items: Mapping[str, float] = field(default_factory=dict, repr=False)
    digest: str = ""
    skipped: int = 0
    notes: tuple[str, ...] = ()
    shown: Mapping[str, Shown] = field(default_factory=dict, repr=False, compare=False)

    def as_receipt(self) -> dict[str, Any]:
        """CONTRACT's form."""
        entry = {"top1": self.top1, "top5": self.top5, "stderr": self.stderr, "n": self.n}
        return {**entry, "skipped": self.skipped} if self.skipped else entry


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: ImageSet,
    *,
    batch_size: int = BATCH,
    limit: int | None = None,
    prompt: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device | None = None,
    task: str = "accuracy",
    progress: Progress = silent,
) -> Accuracy:
    """Measure a classifier in evaluation mode; its mode is restored.

    Args:
        model: takes pixel_values and returns logits.
        images: what it is asked; labels are its outputs.
        batch_size: images at once; changes nothing but rounding.
        limit: at most so many leading images.
        prompt: what is done to images in [0, 1] before they are normalised.
        device: where; None is the model's.
        task, progress: called along the way.

    Raises:
        RunError: logits that aren't finite.
    """
    place = next(model.parameters())
    was_training = model.training
    model.eval()
    first: list[Tensor] = []
    five: list[Tensor] = []
    said: list[Tensor] = []
    total, done = len(images) if limit is None else min(limit, len(images)), 0
    try:
        for batch in images.batches(batch_size, limit=limit, normalised=False):
            unit = batch["images"].to(device or place.device)
            unit = unit if prompt is None else prompt(unit)
            made: Any = model(pixel_values=images.processing.normalise(unit).to(place.dtype))
            best = _best(made.logits)
            hits = best == batch["labels"].to(unit.device)[:, None]
            said.append(best[:, 0].cpu())
            first.append(hits[:, 0].cpu())
            five.append(hits.any(1).cpu())
            done += len(hits)
            progress(task, done, total)
    finally:
        model.train(was_training)
    right = torch.cat(first).double()
    top1, n = float(right.mean()), len(right)
    items = dict(zip(images.pictures.places, right.tolist()))
    top5 = float(torch.cat(five).double().mean())
    stderr = math.sqrt(top1 * (1 - top1) / n)
    shown = _shown(model, images, torch.cat(said))
    return Accuracy(top1, top5, stderr, n, items, images.digest(), shown=shown)


def _shown(model: nn.Module, images: ImageSet, said: Tensor) -> dict[str, Shown]:
    """Describe images by their class and the one that the model said."""
    names: Mapping[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    wanted = images.labels[: len(said)].tolist()
    return {
        place: {"target": head(names.get(label, label)), "answer": head(names.get(best, best))}
        for place, label, best in zip(images.pictures.places, wanted, said.tolist())
    }


def _best(logits: Tensor) -> Tensor:
    """Return the classes of the largest logits, the best first, int64 [B, at most 5]."""
    if not bool(torch.isfinite(logits).all()):
        raise RunError(
            "the model's logits aren't finite", "look at its weights: compress inspect MODEL"
        )
    return logits.topk(min(5, logits.shape[-1]), dim=-1).indices


def check_accuracy(source: Source, specs: Sequence[str], image_size: int | None = None) -> None:
    """Refuse a model or images before anything is measured; decodes no picture.

    Raises:
        RequestError: no image classifier, no processor, no such images, other classes.
    """
    _processing(source, image_size)
    for spec in parse_spec(specs):
        for pictures in open_pictures(spec.name, spec.column).values():
            match_classes(pictures, source.config, spec.name)


def measure_accuracy(
    source: Source,
    specs: Sequence[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    limit: int | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> dict[str, Accuracy]:
    """Load a checkpoint and measure it on each data spec.

    A checkpoint whose prompt its training used to the end is measured with and without it.

    Raises:
        RequestError: see check_accuracy; an image that can't be read.
    """
    processing = _processing(source, image_size)
    prompt = read_prompt(source.directory)
    stored = dtype or source.dtype
    running = compute_dtype(stored, device, source.bytes_on_disk())
    model = source.load(dtype if running == stored else running, device)
    found = {}
    for spec in parse_spec(specs):
        data = load_evaluation(
            spec.text, processing, source.config, skip_bad=skip_bad, progress=progress
        )
        plain = accuracy(model, data.images, limit=limit, progress=progress)
        found[spec.text] = replace(plain, skipped=data.skipped, notes=data.notes)
        if prompt is not None and prompt.needed:
            found[f"{spec.text} with prompt"] = _prompted(
                model, data.images, prompt, limit, progress
            )
    del model
    gc.collect()
    return found


def _prompted(
    model: nn.Module, images: ImageSet, prompt: SavedPrompt, limit: int | None, progress: Progress
) -> Accuracy:
    return accuracy(model, images, limit=limit, prompt=prompt, progress=progress)


def _processing(source: Source, image_size: int | None) -> Processing:
    kind = source.model_class().__name__
    if "ImageClassification" not in kind:
        raise RequestError(f"`{source.name}` is a `{kind}`; accuracy needs an image classifier")
    return read_processing(source.directory, image_size)
