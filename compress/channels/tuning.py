"""Training a classifier's weights: from a random start, or after removal, with what PASS adds.

    loss = (1 - w) CE(student(x'), y) + w T^2 KL(teacher(x)^(1/T) || student(x')^(1/T))

The second stage of PASS: the cut network and the prompt train together for the first part of the
steps, and without the prompt for the rest, so that the saved model needs none (our default; the
paper doesn't say how it infers). The teacher, the dense network, sees images without prompt.

Sources: PASS, arXiv:2407.17412; distillation, Hinton et al., arXiv:1503.02531.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from compress.channels.hypernet import Prompt
from compress.channels.searching import mixed_entropy
from compress.data.images import Augmentation, ImageCollator, ImageSet
from compress.data.images.prompting import SavedPrompt
from compress.errors import RequestError
from compress.numerics.ranks import ALONE, Team
from compress.progress import Progress, silent
from compress.training.looping import Looped, LoopSettings, loop


@dataclass(frozen=True)
class TuneSettings:
    """How weights are trained.

    Attributes:
        epochs: passes over the training images.
        lr: of SGD with momentum 0.9, at its peak; cosine to 0.
        batch_size, weight_decay, optimizer, max_grad_norm, precision: as in LoopSettings.
        warmup: share of the steps over which the rate rises.
        distill: w, the teacher's share of the loss; 0 is no distillation.
        temperature: T.
        prompt_share: share of the steps, from the start, in which images carry the prompt, where
            there is one; 1 keeps it to the end, and the model then needs it.
        micro_batch: images that one process computes at once; None chooses.
        save_every, workers: as in LoopSettings.
    """

    epochs: float = 10
    lr: float = 0.01
    batch_size: int = 128
    weight_decay: float = 1e-4
    optimizer: str = "sgd"
    warmup: float = 0.0
    max_grad_norm: float = 0.0
    precision: str = "float32"
    distill: float = 0.0
    temperature: float = 4.0
    prompt_share: float = 2 / 3
    micro_batch: int | None = None
    save_every: int | None = None
    workers: int = 0

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            RequestError: naming the option.
        """
        for option, value in (("distill", self.distill), ("prompt-share", self.prompt_share)):
            if not 0 <= value <= 1:
                raise RequestError(f"`--{option} {value:g}` isn't from 0 to 1")
        if self.temperature <= 0:
            raise RequestError(f"`--temperature {self.temperature:g}` isn't above 0")


class Tuner(nn.Module):
    """The module that a tuning trains: the classifier, and the prompt where there is one.

    Args:
        student: the classifier.
        normalise: images in [0, 1] -> what the model takes.
        settings: of the tuning.
        teacher: a classifier of the same outputs, which isn't trained.
        prompt: to begin with.
        prompt_steps: steps whose images carry the prompt.
    """

    kept: Tensor

    def __init__(
        self,
        student: nn.Module,
        normalise: Callable[[Tensor], Tensor],
        settings: TuneSettings,
        *,
        teacher: nn.Module | None = None,
        prompt: SavedPrompt | None = None,
        prompt_steps: int = 0,
    ) -> None:
        super().__init__()
        settings.check()
        self.student, self.settings, self.prompt_steps = student, settings, prompt_steps
        self._apart = (normalise, teacher if settings.distill else None)
        self.prompt: Prompt | None = None
        if prompt is not None and prompt_steps:
            self.prompt = Prompt(prompt.values.shape[-1], prompt.width, prompt.place)
            self.prompt.restore(prompt)
            self.register_buffer("kept", self.prompt.values.detach().clone())
        self.step = 0

    @property
    def prompted(self) -> bool:
        """Whether images of this step carry the prompt."""
        return self.prompt is not None and self.step < self.prompt_steps

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        others: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return {"loss"} of a batch."""
        normalise, teacher = self._apart
        shown = images
        if self.prompt is not None and self.prompted:
            shown = self.prompt(images)
        logits = self.student(pixel_values=normalise(shown)).logits.float()
        loss = mixed_entropy(logits, labels, others, shares)
        if self.prompt is not None and not self.prompted:
            loss = loss + 0 * self.prompt.values.sum()  # DDP waits for every gradient
        if teacher is None:
            return {"loss": loss}
        with torch.no_grad():
            kind = next(teacher.parameters()).dtype
            taught = teacher(pixel_values=normalise(images).to(kind)).logits.float()
        share = self.settings.distill
        return {"loss": (1 - share) * loss + share * distillation(
            logits, taught, self.settings.temperature
        )}  # fmt: skip


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher^(1/T) || student^(1/T)), the mean over rows of logits [B, K]."""
    own = functional.log_softmax(student / temperature, -1)
    wanted = functional.log_softmax(teacher / temperature, -1)
    divergence = functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class _Clock(TrainerCallback):
    """Tells the module the step, and holds the prompt still once images go without it.

    Momentum and decay would go on moving it.
    """

    def __init__(self, tuner: Tuner) -> None:
        self.tuner = tuner

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the step."""
        self.tuner.step = state.global_step

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep or restore the prompt."""
        tuner = self.tuner
        if tuner.prompt is None:
            return
        if tuner.prompted:
            tuner.kept.copy_(tuner.prompt.values)
        else:
            tuner.prompt.values.copy_(tuner.kept)


@dataclass
class Tuned:
    """A finished tuning.

    Attributes:
        prompt: as the last step that used it left it; None where none did.
        looped: losses and the rest.
        steps: optimizer steps.
    """

    prompt: SavedPrompt | None
    looped: Looped
    steps: int


def tune_steps(settings: TuneSettings, images: int) -> int:
    """Return the steps of a tuning."""
    return max(math.ceil(settings.epochs * max(math.ceil(images / settings.batch_size), 1)), 1)


def tune(
    model: nn.Module,
    images: ImageSet,
    settings: TuneSettings,
    place: Path,
    *,
    teacher: nn.Module | None = None,
    prompt: SavedPrompt | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: str = "cpu",
    team: Team = ALONE,
    task: str = "tune",
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Train a classifier's weights in place; a killed run goes on in `place`, to the same bits.

    Args:
        model: trained; left in evaluation mode.
        images: the training split.
        settings: of the tuning.
        place: a directory for checkpoints.
        teacher: the dense network, for settings.distill; left in evaluation mode.
        prompt: the search's.
        augmentation: of the images; None flips and shifts.
        seed: of order and augmentation.
        device, team, task, progress, say: see loop.

    Raises:
        RequestError: a setting out of range.
        RunError: a loss isn't finite.
    """
    steps = tune_steps(settings, len(images))
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    tuner = Tuner(
        model, images.processing.normalise, settings, teacher=teacher, prompt=prompt,
        prompt_steps=round(settings.prompt_share * steps),
    )  # fmt: skip
    run = LoopSettings(
        steps, settings.batch_size, lr=settings.lr, optimizer=settings.optimizer,
        weight_decay=settings.weight_decay, warmup=settings.warmup, precision=settings.precision,
        max_grad_norm=settings.max_grad_norm, seed=seed, save_every=settings.save_every,
        workers=settings.workers, micro_batch=settings.micro_batch,
    )  # fmt: skip
    collate = ImageCollator(images, augmentation or Augmentation(), seed)
    looped = loop(
        tuner, images, collate, run, place, device=device, team=team, callbacks=(_Clock(tuner),),
        task=task, progress=progress, say=say,
    )  # fmt: skip
    model.eval()
    saved = None
    if tuner.prompt is not None:
        saved = tuner.prompt.saved(needed=tuner.prompt_steps >= steps)
    return Tuned(saved, looped, steps)
