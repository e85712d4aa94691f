"""A network of the presets trained from a random start, as a checkpoint of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from compress.errors import RequestError
from compress.evaluation.accuracy import accuracy
from compress.numerics.ranks import ALONE, Team
from compress.progress import Progress, silent
from compress.reports.receipt import FILE_NAME, Receipt
from compress.reports.records import encode

if TYPE_CHECKING:
    from compress.channels.settings import PruneSettings

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
    team: Team = ALONE,
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
        team: the processes that train together; the first writes.
        resume, overwrite: go on from an interrupted training; replace what is there.
        progress, say: where to tell.

    Raises:
        RequestError: an unknown preset, images that can't be used, a directory in the way.
        RunError: a loss isn't finite.
    """
    settings.check()
    side = image_size or image_preset(preset).side
    output, place = Path(output), team.device(resolve_device(device))
    wanted = {
        "preset": preset, "data": data, "side": side, "seed": seed, "options": vars(settings),
        "augmentation": vars(augmentation or Augmentation()),
    }  # fmt: skip
    if not overwrite and team.from_first(lambda: _made_before(output, wanted)):
        say(f"dense     `{output}` is that network already")
        return output
    check_output(output, overwrite=overwrite or resume)
    plain = read_processing(None, side)
    least = 4 * image_preset(preset).stride
    images = load_images(data, plain, skip_bad=skip_bad, least=least, progress=progress)
    images = images.normalised_by(_own_numbers(images, side))
    resume = resume and team.from_first(partial_path(output).exists)
    with Workspace.open(
        output,
        overwrite=overwrite,
        resume=resume,
        fingerprint={**wanted, "images": images.digest()} if team.first else None,
        team=team,
    ) as workspace:
        if workspace.committed:
            if team.first:
                workspace.discard()
            return output
        model = build_image_model(preset, images.classes, seed).to(place)
        begin = time.perf_counter()
        done = tune(
            model, images.train, settings, workspace.path / "training",
            augmentation=augmentation, seed=seed, device=place, team=team, task="dense",
            progress=progress, say=say,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        if team.first:
            _write(model, images, workspace.result, wanted, place, seconds)
            say(f"dense     {preset}, {done.steps} steps in {seconds:.0f} s -> `{output}`")
            workspace.commit()
        team.wait()
    return output


def check_start(model: object, settings: PruneSettings, output: object, dry_run: bool) -> None:
    """Refuse a start from scratch that can't be meant.

    Raises:
        RequestError: neither a model nor a preset, or both; a preset without an output.
    """
    if model is None and settings.preset is None:
        raise RequestError("no model is given", "name one, or give --preset NAME to train one")
    if model is not None:
        raise RequestError(
            f"`--preset {settings.preset}` trains a network, and `{model}` is one already",
            "leave one of them out",
        )
    if output is None or dry_run:
        raise RequestError(
            "`--preset` writes the network that it trains to OUT-dense, and there is no OUT",
            "add `-o OUT` and leave --dry-run out",
        )
    image_preset(str(settings.preset))


def dense_start(
    settings: PruneSettings,
    output: Path,
    team: Team,
    resume: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> Path:
    """Train the preset's network into OUT-dense, or find it there; return its directory."""
    from compress.channels.passing import augmentation_of

    how = replace(
        FROM_SCRATCH, epochs=settings.dense_epochs, lr=settings.dense_lr,
        precision=settings.precision, micro_batch=settings.micro_batch,
    )  # fmt: skip
    return train_preset(
        str(settings.preset), str(settings.data), output.with_name(f"{output.name}-dense"),
        settings=how, image_size=settings.image_size, skip_bad=settings.skip_bad,
        augmentation=augmentation_of(settings), seed=settings.seed, device=settings.device,
        team=team, resume=resume, progress=progress, say=say,
    )  # fmt: skip


def _made_before(output: Path, wanted: dict[str, Any]) -> bool:
    """Whether a directory holds the network that the same call made."""
    if not (output / FILE_NAME).is_file():
        return False
    return Receipt.read(output).extra.get("from_scratch") == encode(wanted)


def _own_numbers(images: ImageData, side: int) -> Processing:
    """Processing with the channels' mean and deviation of the training images, two digits."""
    sums = torch.zeros(2, 3, dtype=torch.float64)
    places = 0
    for batch in images.train.batches(256, limit=5000, normalised=False):
        values = batch["images"].double()
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        places += values[:, 0].numel()
    mean = sums[0] / places
    std = (sums[1] / places - mean.square()).clamp(min=1e-4).sqrt()
    first, second = (tuple(round(float(v), 2) for v in values) for values in (mean, std))
    processor = make_processor(side, first, second)
    return Processing(processor, float(processor.rescale_factor), first, second)


def _write(
    model: Any, images: ImageData, place: Path, wanted: dict[str, Any], device: str, seconds: float
) -> None:
    """Write the network, its processor and the receipt."""
    found = accuracy(model, images.test)
    with writing(place), without_bars():
        model.save_pretrained(place)
        images.processing.save(place)
    counts = census(open_source(place))
    receipt = Receipt.build(
        COMMAND,
        seed=wanted["seed"],
        device=device,
        model={"source": wanted["preset"], "architecture": type(model).__name__},
        after={**counts._asdict(), "accuracy": {images.name: found.as_receipt()}},
        cost={"seconds": {"train": seconds}},
        notes=list(images.notes),
        from_scratch=wanted,
    )
    receipt.write(place)
