"""Training one model: joint loss, early stopping on validation, and a journal that a kill keeps."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.checkpoints.caches import put_whole
from compress.drought.features import Inputs
from compress.drought.modeling import SideModel
from compress.errors import RunError
from compress.numerics.counter import generator, permutation
from compress.progress import Progress, silent
from compress.training.optimizers import build_optimizer

DELTA = 0.25  # of the Huber loss, in deviations of the change
_INIT, _EPOCH = 0, 1  # streams of random numbers of a seed
_EVALUATED = 512  # windows at once without gradients


@dataclass(frozen=True)
class FitOptions:
    """How a model is trained.

    Attributes:
        lr, weight_decay, optimizer: of `build_optimizer`.
        epochs: at most; patience: epochs without a better validation loss before it ends.
        batch: windows in a step.
        clip: bound of the gradient's norm.
        task_weight: "learned", or the impact loss's fixed factor.
        impact_loss: bce or poisson.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    epochs: int = 100
    patience: int = 10
    batch: int = 64
    clip: float = 1.0
    task_weight: str = "learned"
    impact_loss: str = "bce"


@dataclass
class Fit:
    """A trained model.

    Attributes:
        model: with the weights of its best epoch, in eval mode.
        best_epoch: 0 is the start: persistence and the train prior.
        curve: (train loss, validation loss) after each epoch; the first of the start has no train.
        impact_weight: the impact loss's factor at the end.
    """

    model: SideModel
    best_epoch: int
    curve: list[tuple[float | None, float]] = field(default_factory=list)
    impact_weight: float = 1.0

    @property
    def val_loss(self) -> float:
        """Of the best epoch."""
        return self.curve[self.best_epoch][1]


def new_model(config: Any, prior: list[float], loss: str, seed: int) -> SideModel:
    """A model with fresh weights of a seed, its impact head at the training prior."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, _INIT).initial_seed())
        model = SideModel(config)
    share = torch.tensor(prior)
    model.set_prior(torch.logit(share) if loss == "bce" else torch.log(share))
    return model


class _Joint(nn.Module):
    """The model, and the weight of its second task where that is learned."""

    def __init__(self, model: SideModel, options: FitOptions) -> None:
        super().__init__()
        self.model, self.options = model, options
        both = len(model.config.tasks) == 2 and bool(model.config.categories)
        self.tau = nn.Parameter(torch.zeros(())) if both and self.learned else None

    @property
    def learned(self) -> bool:
        return self.options.task_weight == "learned"

    def loss(self, severity: Tensor, impact: Tensor, fixed: bool = False) -> Tensor:
        """severity + exp(-tau) impact + tau; with `fixed`, or a fixed weight, no tau."""
        if self.tau is not None and not fixed:
            return severity + torch.exp(-self.tau) * impact + self.tau
        return severity + (1.0 if self.learned else float(self.options.task_weight)) * impact


def losses(
    model: SideModel, inputs: Inputs, rows: Tensor, impact_loss: str
) -> tuple[Tensor, Tensor]:
    """Sums over horizons of the mean Huber loss of severity and of the mean loss of impact."""
    config = model.config
    severity = impact = torch.zeros((), device=rows.device)
    change, logits = run_both(model, inputs, rows)
    for h, horizon in enumerate(inputs.horizons):
        fine = inputs.valid[rows, h]
        if "severity" in config.tasks and fine.any():
            wanted = inputs.severity[rows, h] - inputs.base[rows, int(horizon == 0)]
            error = (change[:, h] - (wanted / inputs.scale[rows, h]).float())[fine]
            severity = severity + functional.huber_loss(error, torch.zeros_like(error), delta=DELTA)
        if "impact" in config.tasks and logits is not None:
            truth = inputs.impact[rows, h].float()
            known = fine[:, None] & torch.isfinite(truth)
            if known.any():
                impact = impact + _impact_loss(logits[:, h][known], truth[known], impact_loss)
    return severity, impact


def run_both(model: SideModel, inputs: Inputs, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The model's change [B, H] and impact [B, H, C]: nowcasts from late windows, all else not."""
    windows = inputs.windows_of(rows)
    now = [i for i, h in enumerate(inputs.horizons) if h == 0]
    count = len(rows)
    if now:  # both kinds of windows in one batch
        for name in ("region", "windows"):
            windows[name] = torch.cat([windows[name], windows[name]])
        windows["delay"] = torch.arange(2, device=rows.device).repeat_interleave(count)
    output = model(**windows)
    change, logits = output.change, output.impact
    if not now:
        return change, logits
    late = torch.zeros(len(inputs.horizons), dtype=torch.bool, device=rows.device)
    late[now] = True
    change = torch.where(late, change[count:], change[:count])
    if logits is not None:
        logits = torch.where(late[:, None], logits[count:], logits[:count])
    return change, logits


def _impact_loss(logits: Tensor, truth: Tensor, kind: str) -> Tensor:
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(logits, truth)
    return functional.poisson_nll_loss(logits, truth, log_input=True)


def fit(
    model: SideModel,
    inputs: Inputs,
    train: np.ndarray,
    val: np.ndarray,
    options: FitOptions,
    seed: int,
    *,
    journal: Path | None = None,
    progress: Progress = silent,
    task: str = "train",
) -> Fit:
    """Train, and keep the weights of the epoch that does best on validation.

    Orders and dropout of an epoch depend on seed and epoch alone, so a run that goes on from its
    journal has the bits of one that wasn't interrupted.

    Args:
        model: fresh; changed in place.
        inputs: the table's tensors, on the model's device.
        train, val: anchor rows.
        options: how.
        seed: of orders and dropout.
        journal: file that keeps the state after each epoch.
        progress: told after each epoch under `task`.

    Raises:
        RunError: a loss isn't finite.
    """
    joint = _Joint(model, options).to(inputs.physical.device)
    optimizer = build_optimizer(
        options.optimizer, joint, options.lr, weight_decay=options.weight_decay
    )
    state = _State()
    if journal is None or not state.read(journal, joint, optimizer):
        state.start(joint, _validate(joint, inputs, val))
    while not state.finished(options):
        epoch = state.epoch + 1
        mean = _epoch(joint, optimizer, inputs, train, seed, epoch)
        state.add(joint, mean, _validate(joint, inputs, val))
        if journal is not None:
            state.write(journal, joint, optimizer)
        note = f"epoch {epoch}, best {state.best}, validation {state.curve[-1][1]:.4f}"
        progress(task, epoch, options.epochs, note)
    progress(task, options.epochs, options.epochs)
    weight = math.exp(-joint.tau.item()) if joint.tau is not None else 1.0
    if not joint.learned:
        weight = float(options.task_weight)
    model.load_state_dict(state.weights)
    return Fit(model.eval(), state.best, state.curve, weight)


def _epoch(
    joint: _Joint,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    train: np.ndarray,
    seed: int,
    epoch: int,
) -> float:
    """One pass over the training windows; returns the mean loss."""
    device = inputs.physical.device
    order = train[permutation(seed, epoch, len(train))]
    joint.train()
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, _EPOCH, epoch).initial_seed())
        for start in range(0, len(order), joint.options.batch):
            rows = torch.from_numpy(order[start : start + joint.options.batch]).to(device)
            optimizer.zero_grad()
            loss = joint.loss(*losses(joint.model, inputs, rows, joint.options.impact_loss))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RunError(
                    f"the loss is {value} in epoch {epoch}",
                    "a smaller --lr; what was finished is kept for --resume",
                )
            loss.backward()
            nn.utils.clip_grad_norm_(joint.parameters(), joint.options.clip)
            optimizer.step()
            total += value * len(rows)
    return total / len(order)


@torch.no_grad()
def _validate(joint: _Joint, inputs: Inputs, val: np.ndarray) -> float:
    """The loss with fixed weights, so that epochs can be compared."""
    joint.eval()
    rows = torch.from_numpy(val).to(inputs.physical.device)
    some = losses(joint.model, inputs, rows, joint.options.impact_loss)
    return float(joint.loss(*some, fixed=True))


class _State:
    """What a run must know to go on."""

    def __init__(self) -> None:
        self.epoch = self.best = 0
        self.curve: list[tuple[float | None, float]] = []
        self.weights: dict[str, Tensor] = {}

    def start(self, joint: _Joint, val: float) -> None:
        self.curve = [(None, val)]
        self._keep(joint)

    def add(self, joint: _Joint, train: float, val: float) -> None:
        self.epoch += 1
        self.curve.append((train, val))
        if val < self.curve[self.best][1]:
            self.best = self.epoch
            self._keep(joint)

    def finished(self, options: FitOptions) -> bool:
        return self.epoch >= options.epochs or self.epoch - self.best >= options.patience

    def _keep(self, joint: _Joint) -> None:
        self.weights = {k: v.detach().clone() for k, v in joint.model.state_dict().items()}

    def write(self, path: Path, joint: _Joint, optimizer: torch.optim.Optimizer) -> None:
        stream = io.BytesIO()
        torch.save(
            {
                "epoch": self.epoch,
                "best": self.best,
                "curve": self.curve,
                "weights": self.weights,
                "model": joint.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
            stream,
        )
        put_whole(path, stream.getvalue())

    def read(self, path: Path, joint: _Joint, optimizer: torch.optim.Optimizer) -> bool:
        if not path.is_file():
            return False
        stored = torch.load(path, weights_only=True)
        self.epoch, self.best = stored["epoch"], stored["best"]
        self.curve, self.weights = stored["curve"], stored["weights"]
        joint.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        return True


@torch.no_grad()
def estimate(
    model: SideModel, inputs: Inputs, rows: np.ndarray, weeks: int, loss: str
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of anchors.

    Args:
        model: trained, in eval mode.
        inputs: tensors of a table.
        rows: anchors.
        weeks: rows of the table.
        loss: bce or poisson.

    Returns:
        severity [weeks, H], and impact, chances or rates [weeks, H, C]; NaN at other rows.
    """
    horizons, kinds = len(inputs.horizons), len(model.config.categories)
    severity = np.full((weeks, horizons), np.nan)
    impact = np.full((weeks, horizons, kinds), np.nan)
    chance: Callable[[Tensor], Tensor] = torch.sigmoid if loss == "bce" else torch.exp
    for start in range(0, len(rows), _EVALUATED):
        some = torch.from_numpy(rows[start : start + _EVALUATED]).to(inputs.physical.device)
        at = some.cpu().numpy()
        change, logits = run_both(model, inputs, some)
        late = [int(h == 0) for h in inputs.horizons]
        found = inputs.base[some][:, late] + change.double() * inputs.scale[some]
        severity[at] = found.cpu().numpy()
        if logits is not None:
            impact[at] = chance(logits.double()).cpu().numpy()
    return severity, impact
