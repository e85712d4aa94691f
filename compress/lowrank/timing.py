"""How long the factored model will take, foretold from layers that are timed one by one.

    t(ranks) = t(dense model) + sum over layers of [t(factors of that rank) - t(layer)]

Layers of one shape take one time; that of factors is a straight line in the rank, laid through
three ranks that are timed. What is foretold is measured afterwards, and both are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from compress.errors import RequestError
from compress.lowrank.allocation import DENSE
from compress.lowrank.latency import forward_call, in_turn
from compress.lowrank.modules import Unit
from compress.lowrank.preparing import Job
from compress.numerics.counter import generator

_STEPS = 12  # halvings of the share that is kept: 1 / 4096


class Timing(NamedTuple):
    """Seconds for a number of tokens.

    Attributes:
        whole: of the dense model's forward.
        dense: (out, in) -> of a layer.
        lines: (out, in) -> of its factors: at rank 0, and for each unit of rank.
    """

    whole: float
    dense: Mapping[tuple[int, int], float]
    lines: Mapping[tuple[int, int], tuple[float, float]]

    def foretell(self, units: Sequence[Unit], ranks: Sequence[int]) -> float:
        """Seconds of a forward of the model whose units have these ranks."""
        total = self.whole
        for unit, rank in zip(units, ranks, strict=True):
            if rank != DENSE:
                start, slope = self.lines[unit.out, unit.into]
                total += start + slope * rank - self._as_it_is(unit)
        return total

    def least(self, units: Sequence[Unit]) -> float:
        """Seconds with every unit dense or of rank 1, whichever is faster."""
        total = self.whole
        for unit in units:
            total += min(sum(self.lines[unit.out, unit.into]) - self._as_it_is(unit), 0.0)
        return total

    def _as_it_is(self, unit: Unit) -> float:
        return sum(self.dense[m.shape] for m in unit.matrices)


def measure_timing(job: Job, units: Sequence[Unit]) -> Timing:
    """Time the dense model's forward, and each shape of layer dense and as factors.

    Args:
        job: names the model, the device and the number of tokens.
        units: what gets ranks.

    Raises:
        RequestError: the model reads no tokens; or the budget is less than the fastest ranks take,
            or more than the dense model does.
    """
    tokens, budget = job.settings.budget_tokens, float(job.settings.budget_ms or 0) / 1e3
    model = job.source.load(job.running, job.device)
    call = forward_call(model, tokens, job.settings.seed)
    if call is None:
        raise RequestError(
            f"`--budget-ms` times models that read tokens; a {type(model).__name__} isn't one",
            "give `--keep`",
        )
    (whole,) = in_turn([call], job.device)
    del model, call
    dense, lines = {}, {}
    shapes = {(unit.out, unit.into) for unit in units} | {
        m.shape for u in units for m in u.matrices
    }
    for number, shape in enumerate(sorted(shapes)):
        job.progress("time layers", number, len(shapes), f"{shape[0]} × {shape[1]}")
        dense[shape], lines[shape] = _shape(shape, tokens, job)
    job.progress("time layers", len(shapes), len(shapes))
    timing = _within_the_whole(Timing(whole, dense, lines), units)
    _check(timing, units, budget, tokens)
    return timing


def keep_within(
    timing: Timing, units: Sequence[Unit], budget: float, ranks_at: Callable[[float], list[int]]
) -> tuple[float, list[int]]:
    """Return the largest share of weights whose ranks keep a time, and these ranks.

    Args:
        timing: of the layers.
        units: what gets ranks.
        budget: seconds.
        ranks_at: share -> ranks; RequestError where no ranks keep so little.

    Raises:
        RequestError: no share does.
    """
    found: tuple[float, list[int]] | None = None
    low, high, fastest = 0.0, 1.0, timing.whole
    for _ in range(_STEPS):
        middle = (low + high) / 2
        try:
            ranks = ranks_at(middle)
        except RequestError:
            low = middle
            continue
        seconds = timing.foretell(units, ranks)
        fastest = min(fastest, seconds)
        if seconds <= budget:
            low, found = middle, (middle, ranks)
        else:
            high = middle
    if found is None:
        raise _unreachable(budget, fastest, timing.whole)
    return found


def _shape(shape: tuple[int, int], tokens: int, job: Job) -> tuple[float, tuple[float, float]]:
    """Seconds of a layer, and the line of its factors'."""
    out, into = shape
    draw = generator(job.settings.seed, out, into)

    def made(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw).to(job.device, job.running)

    rows, weight = made(tokens, into), made(out, into)
    most = max(out * into // (out + into), 1)
    ranks = sorted({max(most // 4, 1), max(most // 2, 1), most})
    pairs = [(made(rank, into), made(out, rank)) for rank in ranks]
    calls: list[Callable[[], Any]] = [lambda: linear(rows, weight)]
    calls += [partial(_factored, rows, *pair) for pair in pairs]
    seconds = in_turn(calls, job.device)
    return seconds[0], _line(ranks, seconds[1:])


def _within_the_whole(timing: Timing, units: Sequence[Unit]) -> Timing:
    """Shrink the layers' times where they add up to more than the model that holds them."""
    total = sum(timing.dense[m.shape] for unit in units for m in unit.matrices)
    scale = min(timing.whole / total, 1.0)
    return Timing(
        timing.whole,
        {shape: seconds * scale for shape, seconds in timing.dense.items()},
        {shape: (a * scale, b * scale) for shape, (a, b) in timing.lines.items()},
    )


def _factored(rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return linear(linear(rows, down), up)


def _line(ranks: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """The least-squares line through times by rank; it never falls."""
    mean, middle = sum(seconds) / len(seconds), sum(ranks) / len(ranks)
    spread = sum((r - middle) ** 2 for r in ranks)
    tilt = sum((r - middle) * s for r, s in zip(ranks, seconds, strict=True))
    slope = max(tilt / spread, 0.0) if spread else 0.0
    return mean - slope * middle, slope


def _check(timing: Timing, units: Sequence[Unit], budget: float, tokens: int) -> None:
    if timing.whole <= budget:
        raise RequestError(
            f"the dense model takes {timing.whole * 1e3:.3g} ms for {tokens} tokens here, within "
            f"`--budget-ms {budget * 1e3:g}` already",
            "give less, or other --budget-tokens",
        )
    if timing.least(units) > budget:
        raise _unreachable(budget, timing.least(units), timing.whole)


def _unreachable(budget: float, fastest: float, whole: float) -> RequestError:
    return RequestError(
        f"`--budget-ms {budget * 1e3:g}` can't be met: the fastest ranks take about "
        f"{fastest * 1e3:.3g} ms, the dense model {whole * 1e3:.3g} ms",
        "give more, or more tokens at once (--budget-tokens)",
    )
