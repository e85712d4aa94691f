"""Gradient spikes, counted by parameter while a model trains: entries far above their usual size.

An entry is a spike in step t where

    g_i² > theta v_i / (1 - beta^(t-1)),   v_i > 0,

v_i being the running mean of its squares before the step. That is SPAM's rule
(arXiv:2501.06842, section 3), with the corrected mean. Squares enter the mean cut to that limit, as
SPAM lets them in: otherwise one spike would hide the next ones for hundreds of steps. An entry that
never had a gradient has no usual size, and in the first `settle` steps none has one.

Nothing waits for the device but `report` and `state_dict`, which are for logging and saving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce
from torch.distributed.tensor import DTensor

from compress.training.optimizers.base import local, on_device
from compress.training.optimizers.kernels import SCALARS, Engine

THETA = 5000.0
BETA = 0.999
SETTLE = 20
_CHUNK = 65_536  # entries at once on a CPU: the buffers stay in its cache


class SpikeMonitor:
    """Counts spikes in the gradients that it is shown.

    Keeps one float32 number for each entry (4 bytes a parameter). Reads gradients, never writes.

    Args:
        theta: threshold of the ratio g² / v.
        beta: of the running mean.
        settle: steps before anything counts.
        compile: True, False or "auto", as of SPAM.

    Attributes:
        steps: steps seen.
    """

    name = "spikes"

    def __init__(
        self,
        theta: float = THETA,
        *,
        beta: float = BETA,
        settle: int = SETTLE,
        compile: bool | str = "auto",
    ) -> None:
        self.theta, self.beta, self.settle = theta, beta, settle
        self.steps = 0
        self._compile = compile
        self._engine: Engine | None = None
        self._means: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._sharded = False
        # On the device, since the last report: each step's counts [parameters], and the largest
        # ratio over theta so far.
        self._recent: list[Tensor] = []
        self._largest = torch.zeros(0)
        # On the host, up to the last report.
        self._counts: dict[str, int] = {}
        self._hits: dict[str, int] = {}
        self._ratios: dict[str, float] = {}
        self._steps_hit = 0

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> None:
        """Count the spikes of one step; every gradient must be finite."""
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if self._engine is None:
            self._start(named)
        settled = self.steps >= max(self.settle, 1)
        limit = self.theta / (1.0 - self.beta**self.steps) if settled else math.inf
        self.steps += 1
        places = [i for i, n in enumerate(self._names) if _has_gradient(named.get(n))]
        counts = torch.zeros(len(self._names), device=self._largest.device)
        if settled:  # on every process, whatever it holds: reports are added up
            self._recent.append(counts)
        if not places:
            return
        gradients = [local(named[self._names[i]].grad) for i in places]  # type: ignore[arg-type]
        means = [local(self._means[self._names[i]]) for i in places]
        found = self._measure(gradients, means, limit)
        if not settled:
            return
        where = torch.tensor(places, device=found.device)
        counts.index_copy_(0, where, found[:, 0])
        self._largest[where] = torch.maximum(self._largest[where], found[:, 1])

    def _start(self, named: Mapping[str, Tensor]) -> None:
        loaded = self._means
        self._names = list(named)
        self._sharded = any(isinstance(p, DTensor) for p in named.values())
        self._means = {}
        for name, p in named.items():
            own = local(p)
            kept = loaded.get(name)
            if kept is not None and kept.shape == own.shape:
                self._means[name] = kept.to(own.device)
            else:
                self._means[name] = torch.zeros_like(
                    own, dtype=torch.float32, memory_format=torch.contiguous_format
                )
        place = next(iter(self._means.values())).device
        fits = len(self._largest) == len(self._names)
        self._largest = self._largest.to(place) if fits else torch.zeros(len(self._names)).to(place)
        self._engine = Engine(self._compile, sum(m.numel() for m in self._means.values()))

    def _measure(self, gradients: list[Tensor], means: list[Tensor], limit: float) -> Tensor:
        """Advance the means; return each tensor's (spikes, largest ratio over theta) [n, 2]."""
        assert self._engine is not None
        if len({g.dtype for g in gradients}) > 1:
            gradients = [g.float() for g in gradients]
        flat = [[t.reshape(-1) for t in gradients], [m.view(-1) for m in means]]
        rows = [[limit, 1.0 - self.beta, *[0.0] * (SCALARS - 2)]] * len(means)
        scalars = list(on_device(rows, means[0]).unbind())
        full = [i for i, m in enumerate(means) if m.numel() > 1]
        results = torch.zeros(2, len(means), SCALARS, device=means[0].device)
        counts, ratios = (list(part.unbind()) for part in results)
        own_memory = not self._engine.is_native(means[0], gradients[0])
        if own_memory:  # graphs want it
            counts, ratios = ([t.clone() for t in some] for some in (counts, ratios))
        lists = [*flat, scalars, counts, ratios]
        some = [[tensors[i] for i in full] for tensors in lists]
        if full and self._engine.fast(watch, some):
            self._engine.run(watch, some)
            rest = [i for i in range(len(means)) if i not in set(full)]
        else:
            rest = list(range(len(means)))
        buffers = _buffers(means) if rest else []
        for i in rest:
            part = watch_by_parts(flat[0][i], flat[1][i], limit, 1.0 - self.beta, buffers)
            counts[i].copy_(part[0].expand_as(counts[i]))
            ratios[i].copy_(part[1].expand_as(ratios[i]))
        if own_memory:
            results = torch.stack([torch.stack(counts), torch.stack(ratios)])
        return results[:, :, 0].T

    # What is told, and kept

    def report(self) -> dict[str, Any]:
        """What to log; waits for the device. Every process of a sharded run must call it.

        Returns:
            "spikes", so far; "spike_steps", steps so far with at least one; and if there were any
            since the last report "spikes_in", parameter -> how many.
        """
        before = dict(self._counts)
        self._flush()
        new = {n: c - before.get(n, 0) for n, c in self._counts.items() if c > before.get(n, 0)}
        told: dict[str, Any] = {"spikes": self.total, "spike_steps": self._steps_hit}
        return {**told, "spikes_in": new} if new else told

    @property
    def total(self) -> int:
        """Spikes up to the last report."""
        return sum(self._counts.values())

    @property
    def state_bytes(self) -> int:
        """Bytes that this process keeps."""
        return sum(local(m).numel() * m.element_size() for m in self._means.values())

    def receipt(self) -> dict[str, Any]:
        """The receipt's entry; parameters with the most spikes come first."""
        self._flush()
        order = sorted(self._counts, key=lambda n: (-self._counts[n], n))
        found = {
            name: {
                "count": self._counts[name],
                "steps": self._hits[name],
                "largest_ratio": self._ratios[name],
            }
            for name in order
            if self._counts[name]
        }
        entry: dict[str, Any] = {
            "count": self.total,
            "steps": self._steps_hit,
            "watched_steps": max(self.steps - max(self.settle, 1), 0),
            "threshold": self.theta,
            "beta": self.beta,
            "settle": self.settle,
            "state_bytes": self.state_bytes,
        }
        return {**entry, "by_parameter": found} if found else entry

    def _flush(self) -> None:
        """Take what lies on the device to the host."""
        if not self._recent:
            return
        counts, largest = torch.stack(self._recent), self._largest.clone()
        if self._sharded:
            all_reduce(counts, ReduceOp.SUM)
            all_reduce(largest, ReduceOp.MAX)
        self._recent = []
        self._steps_hit += int((counts > 0).any(1).sum())
        totals, hits = counts.double().sum(0).tolist(), (counts > 0).sum(0).tolist()
        ratios = (largest * self.theta).tolist()
        for name, total, hit, ratio in zip(self._names, totals, hits, ratios):
            self._counts[name] = self._counts.get(name, 0) + int(total)
            self._hits[name] = self._hits.get(name, 0) + int(hit)
            self._ratios[name] = ratio

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to count on: tensors and numbers."""
        self._flush()
        return {
            "steps": self.steps,
            "steps_hit": self._steps_hit,
            "counts": dict(self._counts),
            "hits": dict(self._hits),
            "ratios": dict(self._ratios),
            "largest": self._largest.cpu(),
            "means": {name: local(mean).cpu() for name, mean in self._means.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the next call brings it to the parameters' devices."""
        self.steps, self._steps_hit = state["steps"], state["steps_hit"]
        self._counts, self._hits = dict(state["counts"]), dict(state["hits"])
        self._ratios = dict(state["ratios"])
        self._largest, self._means = state["largest"].clone(), dict(state["means"])
        self._recent, self._engine = [], None


def watch(g: Tensor, v: Tensor, scalars: Tensor, count: Tensor, ratio: Tensor) -> None:
    """One tensor at once: the kernel that is compiled.

    Args:
        g: gradient [n].
        v: running mean of squares [n], advanced in place.
        scalars: [SCALARS], theta / (1 - beta^(t-1)) and 1 - beta first.
        count, ratio: filled with the number of spikes, and with the largest g² over its limit.
    """
    s = scalars.unbind()
    square = g.to(v.dtype) ** 2
    limit = torch.where(v > 0, v * s[0], math.inf)
    count.copy_((square > limit).sum().to(count.dtype).expand_as(count))
    ratio.copy_((square / limit).amax().expand_as(ratio))
    v.copy_(v + s[1] * (torch.minimum(square, limit) - v))


def watch_by_parts(
    g: Tensor, v: Tensor, limit: float, weight: float, buffers: list[Tensor]
) -> Tensor:
    """The same without a compiler, part by part through buffers: (spikes, largest ratio) [2]."""
    size = len(buffers[0])
    found = []
    for start in range(0, len(g), size):
        own, mean = g[start : start + size], v[start : start + size]
        square, other = (buffer[: len(own)] for buffer in buffers)
        if own.dtype == square.dtype:
            torch.mul(own, own, out=square)
        else:
            square.copy_(own).mul_(square)
        if limit < math.inf:
            part = _quiet_part(square, mean, limit, other)
            found.append(_cut_part(square, mean, limit, other) if part is None else part)
        mean.lerp_(square, weight)
    if not found:
        return v.new_zeros(2)
    whole = torch.stack(found)
    return torch.stack([whole[:, 0].sum(), whole[:, 1].amax()])


def _quiet_part(square: Tensor, mean: Tensor, limit: float, other: Tensor) -> Tensor | None:
    """Where every entry has a usual size and none is a spike: the answer at half the price.

    None elsewhere, and where looking would mean waiting for the device. x / 0 is infinite and 0 / 0
    is NaN, so that neither passes.
    """
    if square.device.type != "cpu":
        return None
    top = float(torch.div(square, mean, out=other).amax())
    return square.new_tensor([0.0, top / limit]) if top <= limit else None


def _cut_part(square: Tensor, mean: Tensor, limit: float, other: Tensor) -> Tensor:
    """Count the spikes and cut their squares to the limit."""
    torch.mul(mean, limit, out=other)
    other.masked_fill_(mean == 0, math.inf)
    count = (square > other).sum()
    ratio = (square / other).amax()
    torch.minimum(square, other, out=square)
    return torch.stack([count.to(ratio.dtype), ratio])


def _buffers(means: list[Tensor]) -> list[Tensor]:
    longest = max((m.numel() for m in means), default=1)
    size = min(longest, _CHUNK) if means[0].device.type == "cpu" else longest
    return [torch.empty(max(size, 1), device=means[0].device) for _ in range(2)]


def _has_gradient(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.grad is not None and local(parameter).numel() > 0
