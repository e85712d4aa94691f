"""From scores to masks within the budget, for every method that needs no search of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from compress.channels.budget import keep_by_ratio, keep_for_budget
from compress.channels.criteria import (
    GRADIENTS,
    WEIGHTS,
    gradient_scores,
    random_scores,
    weight_scores,
)
from compress.channels.cutting import cut
from compress.channels.measuring import speedup, time_networks
from compress.channels.preparing import Job
from compress.errors import RequestError

Choose = Callable[[float], list[Tensor]]
"""Target in multiply-adds -> masks."""
_STEPS = 7  # of the search for a latency


def scores_of(job: Job, method: str) -> list[Tensor]:
    """Score every unit by a method's criterion: float64 [width] for each group.

    Raises:
        RunError: a gradient isn't finite.
    """
    criterion = {"isomorphic": "taylor", "growreg": "l1"}.get(method, method)
    if criterion == "random":
        return random_scores(job.groups, job.settings.seed)
    if criterion in WEIGHTS:
        return weight_scores(job.model, job.groups, criterion)
    assert criterion in GRADIENTS
    return gradient_scores(
        job.model,
        job.groups,
        job.calibration(),
        criterion,
        total=job.calibration_batches,
        progress=job.progress,
    )


def choose(job: Job, scores: list[Tensor], method: str) -> list[Tensor]:
    """Return masks within the budget: for each group bool [width], True = keep.

    Raises:
        RequestError: the budget can't be reached.
    """
    settings = job.settings
    if settings.ratio is not None:
        return keep_by_ratio(scores, job.groups, settings.ratio, job.limits)
    share = settings.keep_params if settings.keep_params is not None else settings.keep
    whole = float(job.measure(job.costs.widths))

    def within(target: float) -> list[Tensor]:
        return keep_for_budget(
            scores,
            job.groups,
            job.measure,
            target,
            limits=job.limits,
            scope=settings.scope_of(method),
            fill=True,
        )

    if share is None:
        return for_latency(job, within)
    return within(share * whole)


def for_latency(job: Job, within: Choose) -> list[Tensor]:
    """Bisect over the multiply-adds for the largest network that is as fast as was asked.

    Each trial is cut and timed against the dense network in turns.

    Raises:
        RequestError: even the smallest network isn't that fast.
    """
    wanted = job.settings.speed_wanted
    assert wanted is not None
    whole = float(job.costs.macs_of(job.costs.widths))
    least = math.ceil(float(job.costs.macs_of(job.limits.least)))
    found = within(least)
    reached = _measured(job, found)
    if reached < wanted:
        raise RequestError(
            f"`--target-latency {job.settings.target_latency}`: with every group at its floor the "
            f"network is {reached:.2f} times as fast as dense",
            f"ask for {max(1.0, math.floor(reached * 100) / 100):g}x or less, or lower --min-keep",
        )
    low, high = least / whole, 1.0
    for step in range(_STEPS):
        middle = (low + high) / 2
        masks = within(max(least, middle * whole))
        fast = _measured(job, masks)
        job.progress("latency search", step + 1, _STEPS, f"{middle:.2f} of the MACs: {fast:.2f}x")
        if fast >= wanted:
            low, found = middle, masks
        else:
            high = middle
    return found


def _measured(job: Job, masks: list[Tensor]) -> float:
    """Return how many times faster the cut network is, at the batch size that counts."""
    trial = copy.deepcopy(job.model)
    cut(trial, job.groups, masks)
    size = job.settings.latency_batch
    dense, other = time_networks([job.model, trial], job.example, batches=(size,))
    return speedup(dense, other, size)


def kept_counts(masks: list[Tensor]) -> Tensor:
    """Units kept, int64 [G] on the CPU."""
    return torch.stack([mask.sum().cpu() for mask in masks])
