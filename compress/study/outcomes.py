"""The outcomes of a grid as arrays: by metric and way to prune, seeds by items of each set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.study.capabilities import GENERAL, capability
from compress.study.cells import Cell
from compress.study.journal import FAILED, OK, Outcome
from compress.study.settings import Setting

Array = NDArray[np.float64]


class Metric(NamedTuple):
    """What a model is scored by.

    Attributes:
        name: "loss:SPEC", the mean loss on a text in nats a token, or "acc:TASK".
        of: the spec or task.
        smaller: whether less is better.
        capability: what it measures.
    """

    name: str
    of: str
    smaller: bool
    capability: str


class Score(NamedTuple):
    """One cell by one metric: its mean, and what it is the mean of (empty where not kept)."""

    mean: float
    items: Array
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Trials:
    """What one calibration set did by one metric, over seeds.

    Attributes:
        seeds: of the draws.
        means: [S].
        items: [S, I], or None where outcomes of items weren't kept.
    """

    seeds: tuple[int, ...]
    means: Array
    items: Array | None


@dataclass
class Grid:
    """The scored cells of one model, controls apart.

    Attributes:
        calib: the sets that have a scored cell, in order.
        settings: the ways to prune, in order.
        seeds: of the draws.
        metrics: what was measured.
        scores: by set, way, seed and metric.
        lacking: the ways that lack a cell somewhere, left out of what is pooled.
    """

    calib: list[str]
    settings: list[Setting]
    seeds: list[int]
    metrics: list[Metric]
    scores: dict[tuple[str, Setting, int, str], Score] = field(default_factory=dict)
    lacking: list[Setting] = field(default_factory=list)

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], control: str = "") -> Grid:
        """Take the outcomes of one model whose cells have this control."""
        own = [o for o in outcomes if o.cell.control == control]
        good = [o for o in own if o.status == OK]
        grid = cls(
            list(dict.fromkeys(o.cell.calib for o in good)),
            list(dict.fromkeys(o.cell.setting for o in own)),
            sorted({o.cell.seed for o in good}),
            list(dict.fromkeys(m for o in good for m in _scores(o))),
        )
        for o in good:
            for metric, score in _scores(o).items():
                grid.scores[o.cell.calib, o.cell.setting, o.cell.seed, metric.name] = score
        grid.lacking = [s for s in grid.settings if grid._lacks(s, own)]
        return grid

    def trials(self, calib: str, metric: Metric, setting: Setting | None = None) -> Trials:
        """One set's outcomes over seeds, by one way to prune or the mean over all (None)."""
        ways = [s for s in self.settings if s not in self.lacking] if setting is None else [setting]
        seeds, means, items = [], [], []
        for seed in self.seeds:
            found = [self.scores.get((calib, way, seed, metric.name)) for way in ways]
            known = [score for score in found if score is not None]
            if not known or len(known) < len(ways):
                continue
            seeds.append(seed)
            means.append(float(np.mean([score.mean for score in known])))
            if all(score.keys == known[0].keys and score.keys for score in known):
                items.append(np.mean([score.items for score in known], axis=0))
        whole = len(items) == len(means) > 0 and len({len(i) for i in items}) == 1
        return Trials(tuple(seeds), np.array(means), np.stack(items) if whole else None)

    def array(self, metric: Metric) -> tuple[Array, list[str], list[str]] | None:
        """The balanced part of the grid: [sets, methods, the rest of a way, seeds], and the names.

        None where fewer than two seeds are complete.
        """
        ways = [s for s in self.settings if s not in self.lacking]
        methods = list(dict.fromkeys(s.method for s in ways))
        rest = list(dict.fromkeys((s.allocation, s.sparsity, s.pattern) for s in ways))
        crossed = {(m, *r): Setting(m, *r) for m in methods for r in rest}
        if set(crossed.values()) != set(ways):
            return None
        seeds = [
            seed
            for seed in self.seeds
            if all((c, w, seed, metric.name) in self.scores for c in self.calib for w in ways)
        ]
        if len(seeds) < 2:
            return None
        values = [
            [[[self.scores[c, Setting(m, *r), s, metric.name].mean for s in seeds] for r in rest]
             for m in methods]
            for c in self.calib
        ]  # fmt: skip
        return np.array(values), methods, [Setting("", *r).label.strip() for r in rest]

    def _lacks(self, setting: Setting, outcomes: Sequence[Outcome]) -> bool:
        """Whether some set has no scored cell of this way, or one that failed."""
        own = [o for o in outcomes if o.cell.setting == setting]
        failed = any(o.status == FAILED and o.cell.calib in self.calib for o in own)
        return failed or {o.cell.calib for o in own if o.status == OK} != set(self.calib)


def _scores(outcome: Outcome) -> dict[Metric, Score]:
    found = {}
    for spec, entry in outcome.scores.get("perplexity", {}).items():
        losses = np.array(outcome.items["perplexity"][spec], float)
        keys = tuple(str(i) for i in range(len(losses)))
        mean = float(np.log(entry["value"])) if "stride" in entry else float(losses.mean())
        found[Metric(f"loss:{spec}", spec, True, capability(spec, GENERAL))] = Score(
            mean, losses, keys
        )
    for task, entry in outcome.scores.get("tasks", {}).items():
        items: Mapping[str, float] = outcome.items.get("tasks", {}).get(task, {})
        keys = tuple(sorted(items))
        value = entry.get("acc", entry.get(entry.get("metric", ""), 0.0))
        metric = Metric(f"acc:{task}", task, False, capability(task))
        found[metric] = Score(float(value), np.array([items[k] for k in keys], float), keys)
    return found


def originals(outcomes: Sequence[Outcome]) -> dict[Cell, Outcome]:
    """The outcomes by cell."""
    return {o.cell: o for o in outcomes}
