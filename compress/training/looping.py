"""Any module on the Trainer: whatever makes a loss of a batch, resumed exactly, in any processes.

The train-* commands train language models; searches over masks and the tuning of image classifiers
go through here. A module's forward takes a batch's tensors by name and returns a dict with "loss";
what its `state_dict` holds is what a checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from compress.checkpoints.quiet import without_bars
from compress.errors import RequestError
from compress.numerics.ranks import ALONE, Team
from compress.progress import Progress, silent
from compress.training import arguments
from compress.training.checkpointing import last_checkpoint
from compress.training.data import Positions, Rows
from compress.training.display import METRICS, Display
from compress.training.optimizers import build_optimizer, state_size
from compress.training.trainer import GradientObserver, Trainer

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class LoopSettings:
    """One training run of a module; see TrainSettings for what the fields mean.

    Attributes:
        steps: optimizer steps.
        batch_size: examples in a step over all processes.
        optimizer: "sgd" with momentum 0.9, or a name of optimizers.OPTIMIZERS.
        weight_decay: of matrices and kernels; norms, biases and what `undecayed` names have none.
    """

    steps: int
    batch_size: int = 128
    micro_batch: int | None = None
    lr: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.0
    min_lr: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    deepspeed: str | None = None
    workers: int = 0
    seed: int = 0
    log_every: int | None = None
    save_every: int | None = None
    keep: int = 1
    skip_nonfinite: int = 0

    def run_steps(self) -> int:
        """Length of the run in steps."""
        return self.steps

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return asdict(self)


@dataclass
class Looped:
    """A finished run.

    Attributes:
        losses: (step, mean loss) of every log.
        skipped: steps left out since their loss wasn't finite.
        optimizer_state_bytes: of this process.
        metrics: the file of logs.
        resumed: step at which this process went on; 0 from the start.
    """

    losses: list[tuple[int, float]]
    skipped: int
    optimizer_state_bytes: int
    metrics: Path
    resumed: int = 0


def loop(
    module: nn.Module,
    rows: Rows,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
    settings: LoopSettings,
    place: Path,
    *,
    device: str = "cpu",
    team: Team = ALONE,
    observers: tuple[GradientObserver, ...] = (),
    callbacks: Sequence[TrainerCallback] = (),
    unit: str = "images",
    task: str = "train",
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> Looped:
    """Train a module; go on from the last whole checkpoint in `place` where there is one.

    Position p of the run is a row of an epoch's random order (Positions), so that batches don't
    depend on processes, workers or interruptions.

    Args:
        module: forward(**batch) -> {"loss": scalar}; trained in place.
        rows: the examples.
        collate: makes batches of examples with "row", "epoch" and "position".
        settings: of the run.
        place: a directory for checkpoints and metrics.jsonl.
        device: where, as resolve_device says.
        team: the processes of the run.
        observers, callbacks: see Trainer; an observer's state is kept in checkpoints.
        unit, task: what is counted, and the bar's name.
        progress, say: where to tell.

    Raises:
        RequestError: a device that can't do what is asked, or a batch that can't be split.
        RunError: a loss or gradient isn't finite, or the disk is full.
    """
    arguments.check_device(settings, device)
    arrangement = arguments.arrange(
        settings.batch_size, team.size, settings.micro_batch or _micro(settings, team, device),
        device,
    )  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    directory = place / CHECKPOINTS
    display = Display(
        place / METRICS,
        tokens_a_step=settings.batch_size,
        progress=progress,
        say=say,
        unit=unit,
        task=task,
    )
    trainer = Trainer(
        module,
        arguments.training_arguments(settings, directory, device, arrangement),
        dataset=Positions(rows, settings.steps * settings.batch_size, settings.seed),
        collate=collate,
        make_optimizer=lambda model: make_optimizer(model, settings),
        observers=observers,
        skip_nonfinite=settings.skip_nonfinite,
        keep=settings.keep,
        callbacks=[display, *callbacks],
    )
    trainer.model_accepts_loss_kwargs = False  # the loss is a batch's mean
    for callback in callbacks:
        vars(callback)["display"] = display
    found = team.from_first(lambda: last_checkpoint(directory))
    resumed = 0 if found is None else int(found.name.rpartition("-")[2])
    if found is not None:
        say(f"resumed   {task} at step {resumed} of {settings.steps}")
    try:
        with without_bars(), team.watched():
            trainer.train(resume_from_checkpoint=None if found is None else str(found))
    finally:
        display.close()
    losses = [(int(e["step"]), float(e["loss"])) for e in trainer.state.log_history if "loss" in e]
    held = 0 if trainer.optimizer is None else state_size(trainer.optimizer)
    return Looped(losses, trainer.skipped, held, place / METRICS, resumed)


def _micro(settings: LoopSettings, team: Team, device: str) -> int:
    """Return the examples computed at once: all of a process's, since images are small."""
    own = settings.batch_size // team.size
    most = 256 if device.startswith("cuda") else 128
    return next(n for n in range(min(own, most) or 1, 0, -1) if own % n == 0)


def make_optimizer(model: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """Make the optimizer of a run; vectors (norms, biases) don't decay."""
    if settings.optimizer != "sgd":
        decay = settings.weight_decay
        return build_optimizer(settings.optimizer, model, settings.lr, weight_decay=decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise RequestError("the model has no parameter to train", "unfreeze some of it")
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        momentum=settings.momentum,
    )
