"""The search of PASS: masks found by gradient on train, chosen on validation, the network frozen.

Each step the hyper-network scores every unit, one cut in their global order fits the budget of the
whole network, and the network computes the loss with the hard masks on its consumers' inputs, after
normalisation and activation. Gradients pass straight through the cut to prompt, encoder and
hyper-network. Weights are frozen and batch norms stay in evaluation mode, so that what is searched
is the network that will be cut. The objective has no term for sparsity: the budget is hard.

Where batch norms are measured anew after the cut anyway, a search by their old statistics spends
itself on keeping those valid. `norms="batch"`, which is ours, searches by the batch's statistics
and chooses by the accuracy on validation after they were measured anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from compress.channels import hypernet
from compress.channels.budget import Bounds, Cost, keep_for_budget
from compress.channels.groups import Group
from compress.channels.hypernet import HyperNetwork, make_prompt
from compress.channels.masks import Masks
from compress.channels.repair import reestimate
from compress.channels.standing import NORMS, batch_statistics, borrowed_statistics, frozen
from compress.data.images import Augmentation, ImageCollator, ImageData
from compress.data.images.prompting import SavedPrompt
from compress.errors import RequestError
from compress.evaluation.accuracy import accuracy
from compress.numerics.ranks import ALONE, Team
from compress.progress import Progress, silent
from compress.training.looping import LoopSettings, loop

_BATCH, _MEASURED = 128, 1024  # training images by which a choice measures batch norms


@dataclass(frozen=True)
class SearchSettings:
    """How masks are searched. Defaults that the paper's public text doesn't tell are ours.

    Attributes:
        epochs: passes over the training images.
        lr: of AdamW on prompt, encoder and hyper-network.
        batch_size: images in a step.
        weight_decay: of AdamW.
        hidden: H of the hyper-network.
        stats: one of hypernet.STATISTICS; "none" is an ablation.
        mapper: one of hypernet.MAPPERS.
        ste: one of hypernet.STEPS.
        recurrent: False looks at each group alone: an ablation.
        prompt: "pad", "expand" or "none"; "none" is an ablation.
        prompt_size: pixels of the frame; None is a fourteenth of the side.
        scope: how units are ranked; the paper's is "global".
        norms: one of standing.NORMS.
        precision: of the network's forward pass.
        micro_batch: images that one process computes at once; None chooses.
        save_every, workers: as in LoopSettings.
    """

    epochs: float = 5
    lr: float = 1e-3
    batch_size: int = 128
    weight_decay: float = 1e-4
    hidden: int = 64
    stats: str = "mean"
    mapper: str = "group"
    ste: str = "identity"
    recurrent: bool = True
    prompt: str = "pad"
    prompt_size: int | None = None
    scope: str = "global"
    norms: str = "running"
    precision: str = "float32"
    micro_batch: int | None = None
    save_every: int | None = None
    workers: int = 0

    def check(self) -> None:
        """Refuse what isn't known.

        Raises:
            RequestError: naming the option.
        """
        for option, value, known in (
            ("stats", self.stats, hypernet.STATISTICS),
            ("mapper", self.mapper, hypernet.MAPPERS),
            ("ste", self.ste, hypernet.STEPS),
            ("prompt", self.prompt, ("pad", "expand", "none")),
            ("search-norms", self.norms, NORMS),
        ):
            if value not in known:
                raise RequestError(f"`--{option} {value}` isn't known", f"All: {', '.join(known)}.")


@dataclass
class Found:
    """What a search found.

    Attributes:
        keep: for each group bool [width], True = keep; the best epoch's on validation.
        scores: for each group float [width], the same epoch's.
        prompt: of the same epoch, None where there was none.
        epoch: the best one; 0 is before the first step.
        history: (epoch, top-1 on validation with hard masks, its standard error).
        seconds: of the search, validation included, over all its processes' runs.
        steps: optimizer steps.
        losses: (step, mean loss).
    """

    keep: list[Tensor]
    scores: list[Tensor]
    prompt: SavedPrompt | None
    epoch: int
    history: list[tuple[int, float, float]]
    seconds: float
    steps: int
    losses: list[tuple[int, float]] = field(default_factory=list)


class Searcher(nn.Module):
    """The module that the search trains: prompt and hyper-network; the network itself is apart.

    Args:
        model: the dense classifier on its device; a search freezes it (`frozen`).
        groups, cost, target, limits: see keep_for_budget.
        settings: of the search.
        normalise: images in [0, 1] -> what the model takes.
        side: of the images, in pixels.
        base: scores of a criterion to start from, or None.
        seed: of the start.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        cost: Cost,
        target: float,
        limits: Bounds,
        settings: SearchSettings,
        *,
        normalise: Callable[[Tensor], Tensor],
        side: int,
        base: Sequence[Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        settings.check()
        self.settings, self.groups = settings, list(groups)
        self._apart = (model, cost, target, limits, normalise)  # a tuple's modules aren't ours
        units = None
        if settings.mapper == "shared":
            units = [hypernet.unit_statistics(model, group) for group in groups]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.prompt = make_prompt(settings.prompt, side, settings.prompt_size)
            self.network = HyperNetwork(
                groups,
                hypernet.group_statistics(model, groups, settings.stats),
                hidden=settings.hidden,
                prompted=self.prompt is not None,
                recurrent=settings.recurrent,
                base=base,
                units=units,
            )
        self.masks = Masks(model, groups)

    def scores(self) -> list[Tensor]:
        """Every group's scores, in float32 whatever the precision of the run."""
        framed = None if self.prompt is None else self.prompt.framed().float()
        device = next(self.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self.network(framed)

    def keep(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """The units that the budget lets stay; no forward pass."""
        _, cost, target, limits, _ = self._apart
        return keep_for_budget(
            [score.detach() for score in scores], self.groups, cost, target,
            limits=limits, scope=self.settings.scope, check=False,
        )  # fmt: skip

    def prepare(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the network's input, prompt included."""
        model, normalise = self._apart[0], self._apart[4]
        made = normalise(images if self.prompt is None else self.prompt(images))
        return made.to(next(model.parameters()).dtype)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        others: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return {"loss"} of a batch under the hard masks, differentiable in every score."""
        model: Any = self._apart[0]
        scores = self.scores()
        self.masks.set(hypernet.straight_through(scores, self.keep(scores), self.settings.ste))
        own = batch_statistics(model) if self.settings.norms == "batch" else nullcontext()
        try:
            with own:
                logits = model(pixel_values=self.prepare(images)).logits
        finally:
            self.masks.clear()
        return {"loss": mixed_entropy(logits, labels, others, shares)}


def mixed_entropy(
    logits: Tensor, labels: Tensor, others: Tensor | None = None, shares: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy; of mixed images, both labels by their shares."""
    logits = logits.float()
    if others is None or shares is None:
        return functional.cross_entropy(logits, labels)
    first = functional.cross_entropy(logits, labels, reduction="none")
    second = functional.cross_entropy(logits, others, reduction="none")
    return ((1 - shares) * first + shares * second).mean()


class Chooser(TrainerCallback):
    """Looks at the hard masks on validation after each epoch, and remembers the best.

    It is an observer of the Trainer too, whose state checkpoints keep.
    """

    name = "best"

    def __init__(
        self,
        searcher: Searcher,
        data: ImageData,
        steps_an_epoch: int,
        *,
        first: bool,
        say: Callable[[str], None],
    ) -> None:
        self.searcher, self.data, self.every = searcher, data, steps_an_epoch
        self.first, self.say = first, say
        self.history: list[tuple[int, float, float]] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0
        self._since = 0.0
        self.display: Any = None

    def __call__(self, model: nn.Module, step: int) -> None:
        """See nothing in gradients."""

    def report(self) -> dict[str, Any]:
        """Tell nothing in the log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        spent = self.seconds + (time.perf_counter() - self._since if self._since else 0.0)
        return {"history": self.history, "best": self.best, "seconds": spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from that."""
        self.history = [tuple(entry) for entry in state["history"]]
        self.best, self.seconds = state["best"], state["seconds"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the clock; look at the start where it means something."""
        self._since = time.perf_counter()
        if self.first and state.global_step == 0 and not self.history:
            self.choose(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose at the end of an epoch, and of the run."""
        step = state.global_step
        if step % self.every == 0 or step == state.max_steps:
            with self.display.paused():
                self.choose(-(-step // self.every))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self._since
        self._since = 0.0

    @torch.no_grad()
    def choose(self, epoch: int) -> None:
        """Score the masks of now on validation; the earlier of two equal ones stays."""
        searcher = self.searcher
        scores = [score.detach().cpu() for score in searcher.scores()]
        keep = [part.cpu() for part in searcher.keep(searcher.scores())]
        model: Any = searcher._apart[0]
        searcher.masks.set(keep)
        try:
            with borrowed_statistics(model):
                if searcher.settings.norms == "batch":
                    reestimate(model, self._prompted())
                found = accuracy(model, self.data.validation, prompt=searcher.prompt)
        finally:
            searcher.masks.clear()
        self.history.append((epoch, found.top1, found.stderr))
        self.say(
            f"{f'epoch {epoch}':<12}validation top-1 {found.top1:.3f} ± {found.stderr:.3f}   "
            f"units {sum(int(part.sum()) for part in keep):,}"
        )
        if not self.best or found.top1 > self.best["top1"]:
            prompt = None if searcher.prompt is None else searcher.prompt.values.detach().cpu()
            self.best = {
                "epoch": epoch, "top1": found.top1, "keep": keep, "scores": scores,
                "prompt": None if prompt is None else prompt.clone(),
            }  # fmt: skip

    def _prompted(self) -> Iterator[dict[str, Tensor]]:
        """Training images as the search shows them, not augmented."""
        device = next(self.searcher.parameters()).device
        for batch in self.data.train.batches(_BATCH, limit=_MEASURED, normalised=False):
            yield {"pixel_values": self.searcher.prepare(batch["images"].to(device))}


def search_steps(settings: SearchSettings, images: int) -> tuple[int, int]:
    """Return the steps of a search and of one epoch."""
    an_epoch = max(math.ceil(images / settings.batch_size), 1)
    return max(math.ceil(settings.epochs * an_epoch), 1), an_epoch


def search(
    model: nn.Module,
    groups: Sequence[Group],
    cost: Cost,
    target: float,
    limits: Bounds,
    data: ImageData,
    settings: SearchSettings,
    place: Path,
    *,
    augmentation: Augmentation | None = None,
    base: Sequence[Tensor] | None = None,
    seed: int = 0,
    device: str = "cpu",
    team: Team = ALONE,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Search the units to keep; a killed search goes on in `place`, to the same bits.

    Args:
        model: the dense classifier on `device`; it comes back as it was.
        groups, cost, target, limits: see keep_for_budget.
        data: train is searched on, validation chosen on; test isn't touched.
        settings: of the search.
        place: a directory for checkpoints.
        augmentation: of the training images; None flips and shifts.
        base: scores of a criterion that the hyper-network starts from and adds to.
        seed: of start, order and augmentation.
        device, team, progress, say: see loop.

    Raises:
        RequestError: an unknown setting.
        RunError: a loss isn't finite.
    """
    steps, an_epoch = search_steps(settings, len(data.train))
    searcher = Searcher(
        model, groups, cost, target, limits, settings, normalise=data.processing.normalise,
        side=data.train.side, base=base, seed=seed,
    )  # fmt: skip
    chooser = Chooser(searcher, data, an_epoch, first=base is not None, say=say)
    run = LoopSettings(
        steps, settings.batch_size, lr=settings.lr, optimizer="adamw", min_lr=0.1,
        weight_decay=settings.weight_decay, precision=settings.precision, seed=seed,
        save_every=settings.save_every, workers=settings.workers,
        micro_batch=settings.micro_batch,
    )  # fmt: skip
    collate = ImageCollator(data.train, augmentation or Augmentation(), seed)
    try:
        with frozen(model):
            done = loop(
                searcher, data.train, collate, run, place, device=device, team=team,
                observers=(chooser,), callbacks=(chooser,), task="search", progress=progress,
                say=say,
            )  # fmt: skip
    finally:
        searcher.masks.close()
    prompt = None
    if searcher.prompt is not None:
        with torch.no_grad():
            searcher.prompt.values.copy_(chooser.best["prompt"])
        prompt = searcher.prompt.saved(needed=True)
    best = chooser.best
    return Found(
        best["keep"], best["scores"], prompt, best["epoch"], chooser.history, chooser.seconds,
        steps, done.losses,
    )  # fmt: skip
