"""A network of the presets trained from a random start, as a checkpoint of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.channels.presets import build_image_model, image_preset
from compress.channels.tuning import TuneSettings, tune
from compress.checkpoints.census import census
from compress.checkpoints.durable import writing
from compress.checkpoints.placement import resolve_device
from compress.checkpoints.quiet import without_bars
from compress.checkpoints.source import open_source
from compress.checkpoints.workspace import Workspace, check_output, partial_path
from compress.data.images import Augmentation, ImageData, load_images, read_processing
from compress.data.images.processing import Processing, make_processor
from compress.evaluation.accuracy import accuracy
from compress.progress import Progress, silent
from compress.reports.receipt import FILE_NAME, Receipt

COMMAND = "pass-prune"
FROM_SCRATCH = TuneSettings(epochs=30, lr=0.1, batch_size=128, weight_decay=5e-4, warmup=0.1)
"""He et al.'s recipe (arXiv:1512.03385, 4.2), with a cosine instead of steps; epochs are ours."""


def train_preset(
    preset: str,
    data: str,
    output: str | Path,
    *,
    settings: TuneSettings = FROM_SCRATCH,
    image_size: int | None = None,
    skip_bad: bool = False,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train a preset's network on a data set's train split; return its directory.

    A finished network that the same call made is taken as it is; a killed training goes on with
    `resume`, to the same bits.

    Args:
        preset: a name of presets.IMAGE_PRESETS.
        data: a data spec of labelled images.
        output: the directory to make.
        settings: of the training.
        image_size: side of the images; default that of the preset.
        skip_bad: leave out images that can't be read.
        augmentation: of the training images; None flips and shifts.
        seed: of start, order and augmentation.
        device: where.
        resume, overwrite: go on from an interrupted training; replace what is there.
        progress, say: where to tell.

    Raises:
        RequestError: an unknown preset, images that can't be used, a directory in the way.
        RunError: a loss isn't finite.
    """
    settings.check()
    side = image_size or image_preset(preset).side
    output, place = Path(output), resolve_device(device)
    wanted = {
        "preset": preset, "data": data, "side": side, "seed": seed, "options": vars(settings),
        "augmentation": vars(augmentation or Augmentation()),
    }  # fmt: skip
    if not overwrite and _made_before(output, wanted):
        say(f"dense     `{output}` is that network already")
        return output
    check_output(output, overwrite=overwrite or resume)
    plain = read_processing(None, side)
    least = 4 * image_preset(preset).stride
    images = load_images(data, plain, skip_bad=skip_bad, least=least, progress=progress)
    images = images.normalised_by(_own_numbers(images, side))
    resume = resume and partial_path(output).exists()
    fingerprint = {**wanted, "images": images.digest()}
    with Workspace.open(
        output, overwrite=overwrite, resume=resume, fingerprint=fingerprint
    ) as workspace:
        if workspace.committed:
            workspace.discard()
            return output
        model = build_image_model(preset, images.classes, seed).to(place)
        begin = time.perf_counter()
        done = tune(
            model, images.train, settings, workspace.path / "training",
            augmentation=augmentation, seed=seed, device=place, task="dense", progress=progress,
            say=say,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        with writing(workspace.result), without_bars():
            model.to("cpu").save_pretrained(workspace.result)
            images.processing.save(workspace.result)
        receipt = _receipt(model.to(place), images, workspace.result, wanted, place, seconds)
        receipt.write(workspace.result)
        say(f"dense     {preset}, {done.steps} steps in {seconds:.0f} s -> `{output}`")
        workspace.commit()
    return output


def _made_before(output: Path, wanted: dict[str, Any]) -> bool:
    """Whether a directory holds the network that the same call made."""
    if not (output / FILE_NAME).is_file():
        return False
    return Receipt.read(output).extra.get("from_scratch") == wanted


def _own_numbers(images: ImageData, side: int) -> Processing:
    """Processing with the channels' mean and deviation of the training images, two digits."""
    some = torch.cat([
        batch["images"] for batch in images.train.batches(256, limit=5000, normalised=False)
    ])  # fmt: skip
    mean, std = (
        tuple(round(float(v), 2) for v in values)
        for values in (some.mean((0, 2, 3)), some.std((0, 2, 3)).clamp(min=0.01))
    )
    processor = make_processor(side, mean, std)
    return Processing(processor, float(processor.rescale_factor), mean, std)


def _receipt(
    model: Any, images: ImageData, place: Path, wanted: dict[str, Any], device: str, seconds: float
) -> Receipt:
    source = open_source(place)
    found = accuracy(model, images.test)
    counts = census(source)
    return Receipt.build(
        COMMAND,
        seed=wanted["seed"],
        device=device,
        model={"source": wanted["preset"], "architecture": type(model).__name__},
        after={**counts._asdict(), "accuracy": {images.name: found.as_receipt()}},
        cost={"seconds": {"train": seconds}},
        notes=list(images.notes),
        from_scratch=wanted,
    )
