"""The training itself, in OUT.partial: from its last whole checkpoint, or from the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from compress.checkpoints.quiet import without_bars
from compress.training import arguments
from compress.training.checkpointing import last_checkpoint
from compress.training.display import METRICS, Display
from compress.training.feeding import Feed, Validate
from compress.training.losses import MeanLoss
from compress.training.optimizers import build_optimizer, state_size
from compress.training.preparing import Job
from compress.training.settings import TrainSettings
from compress.training.spikes import SpikeMonitor
from compress.training.trainer import Trainer

CHECKPOINTS = "checkpoints"
_TAIL = 0.1  # share of the run whose mean loss is the receipt's


@dataclass
class Run:
    """A finished training.

    Attributes:
        trainer: with model and optimizer; None once released.
        losses: (step, mean loss) of every log.
        valid: losses on --valid after the last step, by "clean" and "masked".
        tokens: trained on, padding left out.
        metrics: the file of logs.
        tokens_per_s: of this process's steps, without validation and saves.
        spikes: the receipt's entry; None where they weren't counted.
        optimizer_kernels: how SPAM or Stable-SPAM ran, Engine.route: others round otherwise.
    """

    trainer: Trainer | None
    losses: list[tuple[int, float]]
    valid: dict[str, MeanLoss]
    tokens: int
    metrics: Path
    tensorboard: Path
    optimizer_state_bytes: int
    skipped: int
    tokens_per_s: float | None = None
    spikes: dict[str, Any] | None = None
    optimizer_kernels: str | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The trained model."""
        assert self.trainer is not None
        found: Any = self.trainer.model
        return found

    def release(self) -> None:
        """Let model and optimizer go."""
        self.trainer = None

    def final_loss(self) -> MeanLoss | None:
        """Mean of the logs of the last tenth of the run, with the standard error of that mean."""
        if not self.losses:
            return None
        last = self.losses[-1][0]
        some = [loss for step, loss in self.losses if step > last * (1 - _TAIL)]
        mean = sum(some) / len(some)
        if len(some) < 2:
            return MeanLoss(mean, None, 0)
        variance = sum((loss - mean) ** 2 for loss in some) / (len(some) - 1)
        return MeanLoss(mean, (variance / len(some)) ** 0.5, 0)


class Validation(TrainerCallback):
    """Measures the loss on what isn't trained on now and then.

    Every process measures, so that a sharded model can; the first one's log is kept.
    """

    def __init__(self, validate: Validate, every: int, display: Display) -> None:
        self.measure, self.every, self.display = validate, every, display
        self.trainer: Trainer | None = None
        self.last: dict[str, MeanLoss] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate at multiples of --eval-every and at the end."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            with self.display.paused():
                self.last = self.measure(kwargs["model"], args.device)
            logs = {f"{kind}_loss": loss.value for kind, loss in self.last.items()}
            assert self.trainer is not None
            due = control.should_log
            self.trainer.log(logs)
            control.should_log = due  # of the training loss: any log takes it for done


def run(job: Job, place: Path) -> Run:
    """Train in `place`, a run's OUT.partial, whose data have been read.

    Raises:
        RunError: a loss or gradient isn't finite, memory or disk ran out.
    """
    settings = job.settings
    feed = job.feed(place)
    steps = settings.run_steps()
    directory = place / CHECKPOINTS
    display = Display(
        place / METRICS,
        tokens_a_step=feed.tokens / steps,
        progress=job.progress,
        say=job.say,
        tensorboard=place / "tensorboard",
    )
    validation = []
    if feed.validate is not None:
        validation = [Validation(feed.validate, arguments.eval_every(settings), display)]
    monitor = _monitor(settings)
    trainer = _trainer(job, feed, directory, [display, *validation], monitor)
    for callback in validation:
        callback.trainer = trainer
    resumed = job.team.from_first(lambda: last_checkpoint(directory))
    if resumed is not None:
        job.say(f"resumed   at step {resumed.name.rpartition('-')[2]} of {steps}")
    try:
        with job.clock("train"), without_bars(), job.team.watched():
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    finally:
        display.close()
    valid = validation[0].last if validation else {}
    if validation and not valid:  # resumed at the end
        placed: Any = trainer.model
        valid = validation[0].measure(placed, trainer.args.device)
    done = _finished(trainer, feed.tokens, valid, place)
    done.tokens_per_s = display.tokens_per_s
    done.spikes = None if monitor is None else monitor.receipt()
    return done


def _monitor(settings: TrainSettings) -> SpikeMonitor | None:
    if not settings.spikes:
        return None
    theta = settings.spike_threshold
    return SpikeMonitor() if theta is None else SpikeMonitor(theta)


def _trainer(
    job: Job,
    feed: Feed,
    directory: Path,
    callbacks: list[TrainerCallback],
    monitor: SpikeMonitor | None,
) -> Trainer:
    settings = job.settings
    args = arguments.training_arguments(settings, directory, job.device, job.arrangement)

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        lr = settings.lr
        assert lr is not None
        made = build_optimizer(settings.optimizer, model, lr, **settings.optimizer_options())
        feed.ready(model, made)
        return made

    return Trainer(
        job.model,
        args,
        dataset=feed.dataset,
        collate=feed.collate,
        make_optimizer=optimizer,
        change=settings.injection(),
        observers=(*(() if monitor is None else (monitor,)), *feed.observers),
        skip_nonfinite=settings.skip_nonfinite,
        keep=settings.keep,
        callbacks=callbacks,
    )


def _finished(trainer: Trainer, tokens: int, valid: dict[str, MeanLoss], place: Path) -> Run:
    losses = [
        (int(entry["step"]), float(entry["loss"]))
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    optimizer: Any = trainer.optimizer
    engine = getattr(getattr(optimizer, "optimizer", optimizer), "_engine", None)  # accelerate's
    return Run(
        trainer,
        losses,
        valid,
        tokens,
        place / METRICS,
        place / "tensorboard",
        state_size(optimizer),
        trainer.skipped,
        optimizer_kernels=engine.route if engine is not None else None,
    )
