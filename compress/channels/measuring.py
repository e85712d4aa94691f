"""What a network costs in fact: parameters, bytes, multiply-adds by a counter, time, memory."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.evaluation.speed import peak_memory
from compress.progress import Progress, silent

BATCHES = (1, 64)
_ROUNDS = 11
_LEAST_ROUNDS = 3
_SECONDS = 0.02  # of one timing at least
_SPAN = 20.0  # seconds of all rounds of one size, where three rounds don't take longer


class Timing(NamedTuple):
    """Seconds of one forward pass.

    Attributes:
        median: of the rounds.
        iqr: distance between the quartiles.
    """

    median: float
    iqr: float


@dataclass(frozen=True)
class Latency:
    """Timings of one network by batch size, and memory.

    Attributes:
        timings: batch size -> Timing.
        peak_bytes: highest memory of a pass of the largest batch.
    """

    timings: dict[int, Timing]
    peak_bytes: int

    def as_receipt(self) -> dict[str, Any]:
        """CONTRACT's "latency", with the quartiles' distance beside it."""
        return {
            "latency": {f"batch_{size}_s": t.median for size, t in self.timings.items()},
            "latency_iqr": {f"batch_{size}_s": t.iqr for size, t in self.timings.items()},
            "speed": {"peak_bytes": self.peak_bytes},
        }


@torch.no_grad()
def time_networks(
    models: Sequence[nn.Module],
    example: Tensor,
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = silent,
) -> list[Latency]:
    """Time networks against each other, in turns, so that a busy machine hurts all alike.

    Each round times every network once (as many passes as fill 20 ms), after a warm-up; the median
    and quartiles are over rounds.

    Args:
        models: on one device.
        example: pixel values [1, 3, H, W] of the size that they take.
        batches: batch sizes.
        rounds: timings of each network and size; None takes 11, fewer where they would take
            longer than 20 seconds, at least 3.
        clock: seconds; on a busy machine `time.thread_time` is fairer where one thread computes.
        progress: called after each round.
    """
    place = next(models[0].parameters())
    found: list[dict[int, Timing]] = [{} for _ in models]
    training = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        for size in batches:
            images = example[:1].to(place.device, place.dtype).expand(size, -1, -1, -1)
            images = images.contiguous()
            once = [_warm(model, images, clock) for model in models]
            passes = [max(1, min(64, round(_SECONDS / max(one, 1e-6)))) for one in once]
            whole = sum(one * count for one, count in zip(once, passes, strict=True))
            fitting = max(_LEAST_ROUNDS, int(_SPAN / max(whole, 1e-9)))
            count_rounds = min(_ROUNDS, fitting) if rounds is None else rounds
            seconds: list[list[float]] = [[] for _ in models]
            for done in range(count_rounds):
                for model, times, count in zip(models, seconds, passes, strict=True):
                    times.append(_timed(model, images, count, clock))
                progress(f"latency, batch {size}", done + 1, count_rounds)
            for number, times in enumerate(seconds):
                first, middle, third = statistics.quantiles(times, n=4)
                found[number][size] = Timing(middle, third - first)
        return [
            Latency(timings, _peak(model, example, max(batches)))
            for model, timings in zip(models, found, strict=True)
        ]
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)


def _warm(model: nn.Module, images: Tensor, clock: Callable[[], float]) -> float:
    """Run until warm; return the seconds of a pass. A pass of a second is warm by itself."""
    first = _timed(model, images, 1, clock)
    if first >= 1:
        return first
    return _timed(model, images, 2, clock)


def _timed(model: nn.Module, images: Tensor, passes: int, clock: Callable[[], float]) -> float:
    """Seconds of one pass, mean over some."""
    _wait(images.device)
    begin = clock()
    for _ in range(passes):
        model(pixel_values=images)
    _wait(images.device)
    return (clock() - begin) / passes


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(model: nn.Module, example: Tensor, size: int) -> int:
    """Bytes of the network's tensors and of what a pass takes on top at its highest."""
    place = next(model.parameters())
    images = example[:1].to(place.device, place.dtype).expand(size, -1, -1, -1).contiguous()
    own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    with peak_memory(place.device) as memory:
        model(pixel_values=images)
    return own + memory.growth


def speedup(dense: Latency, other: Latency, batch: int) -> float:
    """How many times faster than the dense network, of one run."""
    return dense.timings[batch].median / other.timings[batch].median


def stride_of(model: nn.Module, example: Tensor) -> int:
    """Return by how much the network shrinks an image's side: the least side that leaves a place.

    Read off the smallest feature map of the convolutions on the example.
    """
    smallest = [int(example.shape[-1])]
    hooks = [
        module.register_forward_hook(lambda _, inputs, output: smallest.append(output.shape[-1]))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and module.stride[0] > 1  # squeezing to one place isn't striding
    ]
    try:
        with torch.no_grad():
            copy.copy(model).eval()(pixel_values=example)
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, round(example.shape[-1] / min(smallest)))
