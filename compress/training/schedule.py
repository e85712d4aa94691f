"""How the learning rate goes over a run, in the names of transformers' schedulers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

SCHEDULES = ("cosine", "linear", "constant", "wsd")
WSD_DECAY = 0.1
"""Share of the steps over which the rate of `wsd` falls, at the end."""


class Schedule(NamedTuple):
    """What TrainingArguments take.

    Attributes:
        kind: `lr_scheduler_type`.
        warmup_steps: steps over which the rate rises linearly from 0.
        options: `lr_scheduler_kwargs`.
    """

    kind: str
    warmup_steps: int
    options: dict[str, Any]


def warmup_steps(warmup: float, steps: int) -> int:
    """Return the warm-up in steps: a number below 1 is a share of the run, rounded up."""
    return math.ceil(warmup * steps - 1e-9) if warmup < 1 else int(warmup)


def make_schedule(name: str, steps: int, warmup: float, min_ratio: float) -> Schedule:
    """Make a schedule.

    Args:
        name: one of SCHEDULES: `cosine` falls to min_ratio of the peak, `linear` likewise,
            `constant` stays, `wsd` stays and falls over the last tenth.
        steps: of the whole run.
        warmup: in steps, or below 1 as a share of them.
        min_ratio: last rate over the peak.
    """
    rise = warmup_steps(warmup, steps)
    if name == "constant":
        return Schedule("constant_with_warmup", rise, {})
    if name == "cosine":
        return Schedule("cosine_with_min_lr", rise, {"min_lr_rate": min_ratio})
    tail = steps if name == "linear" else math.ceil(WSD_DECAY * steps)
    decay = max(min(tail, steps - rise), 1)
    options = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": min_ratio}
    return Schedule("warmup_stable_decay", rise, options)
