"""How many layers a speed asks for: condensed layers are put into the loaded model, and timed.

Nothing is modelled: both forms run in one process, in turns, on one prompt of one row, and the
ratio of the quickest runs counts: what else a machine does only ever slows. The model is in memory
as a whole for that.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress.checkpoints.durable import write_json
from compress.checkpoints.placement import compute_dtype, resolve_dtype
from compress.errors import RequestError
from compress.evaluation.speed import random_prompt, run_once
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer
from compress.experts.measuring import stand_in
from compress.experts.preparing import Job
from compress.reports.receipt import read_json

PROMPT, NEW = {"decode": 16, "prefill": 128}, 16  # tokens
ROUNDS = 7


class Pace:
    """Measures how many times as fast a model is with some layers condensed.

    Args:
        job: its model, device and dtype.
        journal: holds the condensed layers.
        kept: file of what was measured, so that a resumed run decides the same.
    """

    def __init__(self, job: Job, journal: LayerJournal, kept: Path) -> None:
        target = job.settings.speed_target
        assert target is not None
        self.regime, self.target = target
        self._job, self._journal, self._kept = job, journal, kept
        self.measured: dict[str, float] = read_json(kept)[1] if kept.is_file() else {}

    def of(self, layers: Sequence[ExpertLayer]) -> float:
        """Return the original's time over that with these layers condensed."""
        name = ",".join(str(layer.index) for layer in layers)
        if name not in self.measured:
            self.measured[name] = self._measure(layers)
            write_json(self._kept, self.measured)
        return self.measured[name]

    def reached(self, layers: Sequence[ExpertLayer]) -> bool:
        """Whether these layers are enough."""
        return self.of(layers) >= self.target

    def least(self, pool: Sequence[ExpertLayer]) -> int:
        """Return how many layers it should take, each saving as much as the others.

        Raises:
            RequestError: all of them are too few; what they reach is named.
        """
        best = self.of(pool)
        if best < self.target:
            raise RequestError(
                f"`--target-speed {self._job.settings.target_speed}` can't be reached: with every "
                f"layer condensed it is {best:.3g}x ({self.regime}, one row, measured)",
                "fewer --experts may be faster",
            )
        share = (1 - 1 / self.target) / (1 - 1 / best)
        return min(max(1, math.ceil(share * len(pool) - 1e-9)), len(pool))

    def _measure(self, layers: Sequence[ExpertLayer]) -> float:
        job = self._job
        job.progress("time", 0, ROUNDS, f"{len(layers)} layers condensed")
        running = resolve_dtype(job.settings.dtype) or compute_dtype(job.source.dtype, job.device)
        model: Any = job.source.load(running)
        model.to(job.device).eval()
        old = {layer.name: model.get_submodule(layer.name) for layer in layers}
        new = {layer.name: stand_in(self._journal.read(layer), old[layer.name]) for layer in layers}
        ids = random_prompt(model, 1, PROMPT[self.regime], job.settings.seed)
        taken: dict[str, list[float]] = {"old": [], "new": []}
        for number in range(ROUNDS + 1):
            for kind, modules in (("old", old), ("new", new)):
                for name, module in modules.items():
                    _put(model, name, module)
                seconds = self._seconds(model, ids)
                if number:  # the first round warms up
                    taken[kind].append(seconds)
            job.progress("time", number, ROUNDS, f"{len(layers)} layers condensed")
        del model, old, new
        gc.collect()
        return min(taken["old"]) / min(taken["new"])

    def _seconds(self, model: Any, ids: Tensor) -> float:
        """Return the seconds of one run; a model without a cache can only read."""
        read, written = run_once(model, ids, NEW)
        return read if self.regime == "prefill" or written is None else written


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def layers_for_speed(
    pace: Pace,
    pool: Sequence[ExpertLayer],
    search: Callable[[int], Sequence[ExpertLayer]],
) -> list[ExpertLayer]:
    """Return the fewest layers of a search's order that are fast enough, as measured.

    Args:
        pace: measures.
        pool: the candidates.
        search: number of layers -> the layers chosen.

    Raises:
        RequestError: all of them are too few.
    """
    count = pace.least(pool)
    chosen = list(search(count))
    while count < len(pool) and not pace.reached(chosen):
        count += 1
        chosen = list(search(count))
    while count > 1:  # a cheaper set may do: the guess takes all layers for alike
        fewer = list(search(count - 1))
        if not pace.reached(fewer):
            break
        count, chosen = count - 1, fewer
    return chosen
