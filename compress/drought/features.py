"""Everything that is fitted before training, on training weeks alone, and the model's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.drought.baselines import prior_of
from compress.drought.series import WEEK
from compress.drought.splitting import TRAIN
from compress.drought.table import WeekTable

_CYCLES = ("sin", "cos", "filled")  # inputs that are left as they are


@dataclass(frozen=True)
class Statistics:
    """Means and deviations of training weeks, by place.

    Attributes:
        physical: {place: (means [F], deviations [F])}.
        social: means and deviations of log(1 + texts) and log(1 + impact), [1 + C] both.
        text: means and deviations of the text vectors, [K] both.
        scale: {place: deviation of the change over each horizon [H]}.
        prior: training share (bce) or mean (poisson) of each category, [C].
        thresholds: severity from which classes 1 … 5 are called; None where classes aren't known.
    """

    physical: Mapping[str, tuple[list[float], list[float]]]
    social: tuple[list[float], list[float]]
    text: tuple[list[float], list[float]]
    scale: Mapping[str, list[float]]
    prior: list[float]
    thresholds: list[float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON types; infinite thresholds (a class never called) are null."""
        cuts = self.thresholds
        finite = None if cuts is None else [c if np.isfinite(c) else None for c in cuts]
        return {**vars(self), "physical": dict(self.physical), "thresholds": finite}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Statistics:
        """The other way round."""
        cuts = stored["thresholds"]
        finite = None if cuts is None else [float("inf") if c is None else c for c in cuts]
        return cls(**{**stored, "thresholds": finite})


def fit_statistics(
    table: WeekTable, vectors: np.ndarray, loss: str, trained: np.ndarray | None = None
) -> Statistics:
    """Fit on training weeks.

    Args:
        table: the place-weeks.
        vectors: of the table's texts [N, K].
        loss: bce or poisson.
        trained: places that are trained on, bool [regions]; all unless given. What isn't a
            place's own (texts, impacts) is fitted on these alone.
    """
    from compress.drought.metrics import class_thresholds

    own = np.ones(len(table.regions), bool) if trained is None else trained
    train = table.part == TRAIN
    shared = train & own[table.region]
    social = social_numbers(table)
    in_train = np.unique(table.link_text[shared[table.link_row]])
    used = vectors[in_train] if len(in_train) else np.zeros((1, vectors.shape[1]))
    values = (table.impacts > 0).astype(np.float64) if loss == "bce" else table.impacts
    known = shared & table.impacts_known
    with_classes = any(name.startswith("cum_") for name in table.physical_names)
    physical, scale = {}, {}
    for number, name in enumerate(table.regions):
        rows = train & (table.region == number)
        physical[name] = _mean_and_spread(table.physical[rows], table.physical_names)
        scale[name] = [_change_spread(table, rows, h) for h in table.horizons]
    return Statistics(
        physical,
        _mean_and_spread(social[shared]),
        _one_spread(used),
        scale,
        prior_of(values[known], loss).tolist(),
        class_thresholds(table.dsci[shared], table.worst[shared]).tolist()
        if with_classes
        else None,
    )


def _mean_and_spread(
    values: np.ndarray, names: tuple[str, ...] = ()
) -> tuple[list[float], list[float]]:
    mean, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    for column, name in enumerate(names):
        if name in _CYCLES:
            mean[column], spread[column] = 0.0, 1.0
    return mean.tolist(), spread.tolist()


def _one_spread(vectors: np.ndarray) -> tuple[list[float], list[float]]:
    """One deviation for all directions: those that vary little are mostly noise and stay small."""
    spread = float(np.sqrt(vectors.var(axis=0).mean()))
    return vectors.mean(axis=0).tolist(), [spread if spread > 1e-6 else 1.0] * vectors.shape[1]


def _change_spread(table: WeekTable, rows: np.ndarray, horizon: int) -> float:
    """Root mean square of the change over a horizon between training weeks."""
    change = table.shifted(table.severity, max(horizon, 1)) - table.severity
    inside = rows & (table.shifted(rows.astype(np.float64), max(horizon, 1)) == 1)
    found = change[inside & np.isfinite(change)]
    spread = float(np.sqrt((found**2).mean())) if len(found) else 0.0
    return spread if spread > 1e-6 else 1.0


def social_numbers(table: WeekTable) -> np.ndarray:
    """log(1 + texts) and log(1 + impact) where known, float64 [W, 1 + C]."""
    known = table.impacts * table.impacts_known[:, None]
    return np.log1p(np.column_stack([table.text_counts, known]))


@dataclass(frozen=True)
class Inputs:
    """A table as the model's tensors, all weeks of it; see SideModel.forward for their meaning.

    Attributes:
        physical, social, region: by row of the table.
        vectors: of the texts [N, K].
        link_text, starts: texts of row w are vectors[link_text[starts[w] : starts[w + 1]]].
        base: newest severity known, for a forecast and for a nowcast, [W, 2].
        severity: at each horizon after a row, NaN where there is none, [W, H].
        scale: deviation of the change of a row's place, [W, H].
        impact: at each horizon after a row, NaN where unknown, [W, H, C].
        valid: which (row, horizon) are samples, bool [W, H].
    """

    physical: Tensor
    social: Tensor
    region: Tensor
    vectors: Tensor
    link_text: Tensor
    starts: Tensor
    base: Tensor
    severity: Tensor
    scale: Tensor
    impact: Tensor
    valid: Tensor
    horizons: tuple[int, ...]
    context: int

    def to(self, device: str) -> Inputs:
        """The same on another device."""
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()
        }
        return Inputs(**moved)

    def windows_of(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of SideModel.forward for windows that end at rows [B], without `delay`.

        Only the weeks that these windows touch are handed on, so a table of any size will do.
        """
        reach = torch.arange(-self.context, 1, device=rows.device)
        touched, at = torch.unique(rows[:, None] + reach, return_inverse=True)
        counts = self.starts[touched + 1] - self.starts[touched]
        week = torch.repeat_interleave(torch.arange(len(touched), device=rows.device), counts)
        ends = torch.cumsum(counts, 0)
        offset = torch.arange(len(week), device=rows.device) - (ends - counts)[week]
        texts = self.link_text[self.starts[touched][week] + offset]
        return {
            "physical": self.physical[touched],
            "social": self.social[touched],
            "text_vectors": self.vectors[texts],
            "text_week": week,
            "region": self.region[rows],
            "windows": at[:, 1:],
        }


def make_inputs(
    table: WeekTable,
    vectors: np.ndarray,
    statistics: Statistics,
    loss: str,
    regions: tuple[str, ...],
) -> Inputs:
    """Standardise a table.

    Args:
        table: the place-weeks.
        vectors: of its texts [N, K].
        statistics: of training weeks.
        loss: bce or poisson.
        regions: names of the places that the model knows, in order.
    """
    means, spreads = (
        np.stack([np.array(statistics.physical[name][i]) for name in table.regions])[table.region]
        for i in (0, 1)
    )
    social = (social_numbers(table) - statistics.social[0]) / np.array(statistics.social[1])
    scaled = (vectors - np.array(statistics.text[0])) / np.array(statistics.text[1])
    number = np.array([regions.index(n) + 1 if n in regions else 0 for n in table.regions])
    scale = np.stack([np.array(statistics.scale[name]) for name in table.regions])[table.region]
    values = (table.impacts > 0).astype(np.float64) if loss == "bce" else table.impacts
    values = np.where(table.impacts_known[:, None], values, np.nan)
    kinds = range(values.shape[1])
    impact = [np.stack([table.shifted(values[:, c], h) for c in kinds], 1) if kinds else
              values for h in table.horizons]  # fmt: skip
    severity = np.stack([table.shifted(table.severity, h) for h in table.horizons], 1)
    starts = np.searchsorted(table.link_row, np.arange(len(table.days) + 1))
    single = [(table.physical - means) / spreads, social, scaled]
    physical, soc, vec = (torch.from_numpy(np.asarray(v, np.float32)) for v in single)
    return Inputs(
        physical=physical,
        social=soc,
        region=torch.from_numpy(number[table.region]),
        vectors=vec,
        link_text=torch.from_numpy(table.link_text),
        starts=torch.from_numpy(starts.astype(np.int64)),
        base=torch.from_numpy(np.stack([table.base(1), table.base(0)], 1)),
        severity=torch.from_numpy(severity),
        scale=torch.from_numpy(scale),
        impact=torch.from_numpy(np.stack(impact, 1)),
        valid=torch.from_numpy(table.valid),
        horizons=table.horizons,
        context=table.context,
    )


def week_label(table: WeekTable, row: int, horizon: int) -> str:
    """Map date of a sample's target."""
    from datetime import date

    return date.fromordinal(int(table.days[row]) + WEEK * horizon).isoformat()
