"""What both examples share: the optimizers that are compared, and the table of what came out.

Every optimizer gets the same learning rates to choose from, on seeds of their own; the rate that
did best is then run on fresh seeds, the same for all, and these alone are reported. So no optimizer
is judged by a rate that suits another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compress.training import SPAM, StableSPAM

CLIP = 1.0  # norm of the whole gradient in "Adam, clipped"
_TUNING_SEED = 1000  # seeds from here on choose the learning rate; those from 0 are reported
Run = Callable[["Arm", float, int], float]


class Arm(NamedTuple):
    """One optimizer.

    Attributes:
        name: in the table.
        make: (parameters, learning rate) -> the optimizer.
        clip: largest norm of the whole gradient, or None.
    """

    name: str
    make: Callable[[Iterable[Tensor], float], torch.optim.Optimizer]
    clip: float | None = None

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Take one step down the loss."""
        optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()


def arms(reset_every: int) -> list[Arm]:
    """The optimizers compared.

    Args:
        reset_every: steps between two resets of the moments. The papers' 500 and 1000 belong to
            runs of 10,000 steps and more; a run here has some hundred, so resets, the warm-up after
            them and the settling time are scaled down with it.
    """
    scaled = {"reset_warmup": reset_every * 3 // 10, "settle": reset_every // 8}
    return [
        Arm("Adam", lambda p, lr: torch.optim.Adam(p, lr)),
        Arm("Adam, clipped", lambda p, lr: torch.optim.Adam(p, lr), CLIP),
        Arm("SPAM", lambda p, lr: SPAM(p, lr, theta=50, reset_every=reset_every, **scaled)),
        Arm("Stable-SPAM", lambda p, lr: StableSPAM(p, lr, reset_every=reset_every)),
    ]


class Row(NamedTuple):
    """What one optimizer reached.

    Attributes:
        name: of the optimizer.
        lr: the rate that did best on the tuning seeds.
        scores: of the fresh seeds.
    """

    name: str
    lr: float
    scores: list[float]


def compare(
    compared: Sequence[Arm],
    rates: Sequence[float],
    run: Run,
    *,
    seeds: int,
    tuning_seeds: int,
    higher_is_better: bool,
    say: Callable[[str], None],
) -> list[Row]:
    """Choose each optimizer's learning rate, then run it on fresh seeds.

    Args:
        compared: the optimizers.
        rates: learning rates that each may choose from.
        run: (arm, learning rate, seed) -> score.
        seeds, tuning_seeds: how many are reported, and how many choose the rate.
        higher_is_better: of the score.
        say: is told what has been done.
    """
    rows = []
    sign = 1 if higher_is_better else -1
    for arm in compared:
        tried = {
            lr: statistics.mean(run(arm, lr, _TUNING_SEED + s) for s in range(tuning_seeds))
            for lr in rates
        }
        best = max(tried, key=lambda lr: sign * tried[lr] if math.isfinite(tried[lr]) else -1e300)
        rows.append(Row(arm.name, best, [run(arm, best, seed) for seed in range(seeds)]))
        say(f"{arm.name}: learning rate {best:g}, {seeds} seeds done")
    return rows


def stderr(values: Sequence[float]) -> float:
    """Standard error of the mean; NaN for one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def table(title: str, rows: Sequence[Row], baseline: str = "Adam, clipped", digits: int = 2) -> str:
    """Render the rows: mean and standard error over seeds, and the difference paired by seed."""
    against = next(row for row in rows if row.name == baseline)
    lines = [title, f"{'optimizer':<15}{'lr':>7}   {'mean ± se':<18}against {baseline}, paired"]
    for row in rows:
        mean = f"{statistics.mean(row.scores):.{digits}f} ± {stderr(row.scores):.{digits}f}"
        moved = [a - b for a, b in zip(row.scores, against.scores)]
        change = f"{statistics.mean(moved):+.{digits}f} ± {stderr(moved):.{digits}f}"
        lines.append(
            f"{row.name:<15}{row.lr:>7g}   {mean:<18}{'' if row is against else change}".rstrip()
        )
    return "\n".join(lines)


def as_dict(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows as plain values."""
    return [
        {
            "optimizer": row.name,
            "lr": row.lr,
            "mean": statistics.mean(row.scores),
            "stderr": stderr(row.scores) if len(row.scores) > 1 else None,
            "scores": row.scores,
        }
        for row in rows
    ]
