"""From estimates to everything that a report says: tables of skill, impacts, intervals, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.drought import metrics
from compress.drought.baselines import impact_baselines
from compress.drought.features import Statistics
from compress.drought.metrics import SkillRow, severity_row
from compress.drought.splitting import TEST, VAL
from compress.drought.table import WeekTable

LEVELS = (0.5, 0.8, 0.9, 0.95)
SHOWN = 0.9  # level of the bands that are drawn


@dataclass(frozen=True)
class Estimates:
    """What the models say of validation and test anchors.

    Attributes:
        severity: [seeds, W, H].
        impact: chances or rates [seeds, W, H, C].
        kept: number of the seed whose model is kept.
    """

    severity: np.ndarray
    impact: np.ndarray
    kept: int = 0


def conformal(
    table: WeekTable, severity: np.ndarray, scale: np.ndarray, levels: Sequence[float] = LEVELS
) -> dict[str, dict[str, float]]:
    """Half widths of intervals, in deviations of the change, by horizon and level.

    Split conformal: the ceil((n + 1) level)-th smallest absolute residual of validation. With too
    few residuals for a level the greatest is taken.

    Args:
        table: the place-weeks.
        severity: estimates [W, H].
        scale: deviation of each row's place, [W, H].
        levels: of coverage.
    """
    found = {}
    for column, h in enumerate(table.horizons):
        rows = table.anchors(VAL, h)
        truth = table.shifted(table.severity, h)[rows]
        residual = np.sort(np.abs(severity[rows, column] - truth) / scale[rows, column])
        n = len(residual)
        found[str(h)] = {
            f"{level:g}": float(residual[min(int(np.ceil((n + 1) * level)), n) - 1])
            for level in levels
        }
    return found


def coverage(
    table: WeekTable,
    severity: np.ndarray,
    scale: np.ndarray,
    widths: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Share of test samples inside their interval, by horizon and level: the reliability table."""
    lines = []
    for column, h in enumerate(table.horizons):
        some = metrics.samples(table, h)
        off = np.abs(severity[some.rows, column] - some.truth) / scale[some.rows, column]
        draws = metrics.block_draws(int(some.week.max()) + 1)
        weeks = draws.shape[1]
        counts = draws @ np.bincount(some.week, minlength=weeks)
        for level, width in widths[str(h)].items():
            inside = (off <= width).astype(np.float64)
            sums = draws @ np.bincount(some.week, inside, minlength=weeks)
            share = sums[counts > 0] / counts[counts > 0]
            lines.append(
                {
                    "horizon": h,
                    "level": float(level),
                    "coverage": float(inside.mean()),
                    "ci95": list(metrics.interval(share)),
                    "mean_width": float(2 * width * scale[some.rows, column].mean()),
                }
            )
    return lines


def severity_report(
    table: WeekTable, estimates: Estimates, baselines: Mapping[str, np.ndarray]
) -> tuple[dict[int, SkillRow], dict[str, dict[int, SkillRow | None]]]:
    """Skill by horizon, of the model and of each baseline."""
    climate = baselines["climatology"]
    own = {}
    for h in table.horizons:
        row = severity_row(table, estimates.severity, h, climate)
        assert row is not None
        own[h] = row
    others = {
        name: {h: severity_row(table, values, h, climate) for h in table.horizons}
        for name, values in baselines.items()
    }
    return own, others


def outcomes(table: WeekTable, estimates: Estimates, loss: str) -> dict[str, Any]:
    """Every test sample's errors, averaged over seeds, so that two runs can be compared in pairs.

    Returns:
        {"errors": {horizon: absolute errors}, "weeks": {horizon: number of the target's week},
        "brier": {horizon: squared errors of the chances, NaN-free, [] where impacts aren't
        known}}; with poisson no "brier".
    """
    found: dict[str, Any] = {"errors": {}, "weeks": {}}
    if table.categories and loss == "bce":
        found["brier"] = {}
    for column, h in enumerate(table.horizons):
        some = metrics.samples(table, h)
        error = np.abs(estimates.severity[:, some.rows, column] - some.truth).mean(axis=0)
        found["errors"][str(h)] = error.tolist()
        found["weeks"][str(h)] = some.week.tolist()
        if "brier" in found:
            later = some.rows + h
            truth = (table.impacts[later] > 0).astype(np.float64)
            off = ((estimates.impact[:, some.rows, column] - truth) ** 2).mean(axis=(0, 2))
            whole = bool(table.impacts_known[later].all())
            found["brier"][str(h)] = off.tolist() if whole else []
    return found


def groups(table: WeekTable, estimates: Estimates) -> dict[str, Any]:
    """MAE and skill by place and by regime."""
    found: dict[str, Any] = {
        "places": metrics.by_group(table, estimates.severity, metrics.places(table))
    }
    if table.target == "dsci":
        found["regimes"] = metrics.by_group(table, estimates.severity, metrics.regimes(table))
    return found


def class_report(
    table: WeekTable,
    estimates: Estimates,
    baselines: Mapping[str, np.ndarray],
    statistics: Statistics,
) -> dict[str, Any]:
    """Worst class with half of the area, told from the estimated severity; by horizon."""
    if statistics.thresholds is None:
        return {}
    cuts = np.array(statistics.thresholds)
    kept = estimates.severity[estimates.kept]
    found = {}
    for column, h in enumerate(table.horizons):
        some = metrics.samples(table, h)
        truth = table.worst[some.rows + h]

        def called(
            values: np.ndarray, rows: np.ndarray = some.rows, at: int = column
        ) -> np.ndarray:
            own = values[rows, at]
            if table.target == "dsci":
                return np.searchsorted(cuts, own, side="right")
            return np.clip(np.rint(own), 0, 5).astype(np.int64)

        found[str(h)] = {
            "model": metrics.class_scores(truth, called(kept)),
            "persistence": metrics.class_scores(truth, called(baselines["persistence"])),
        }
    return found


def impact_report(
    table: WeekTable, estimates: Estimates, text: np.ndarray | None, loss: str, full: bool
) -> dict[str, Any]:
    """Impacts by horizon: of the model and of its baselines.

    With bce: F1 at thresholds chosen on validation, AUPRC against the base rate, Brier score; with
    poisson the deviance. Categories with one class alone on test have no AUPRC.
    """
    if not table.categories:
        return {}
    every: dict[str, np.ndarray] = {"model": estimates.impact[estimates.kept]}
    if full:
        every |= impact_baselines(table, text, loss)
    values = (table.impacts > 0).astype(np.float64) if loss == "bce" else table.impacts
    found: dict[str, Any] = {"categories": list(table.categories), "loss": loss, "horizons": {}}
    for column, h in enumerate(table.horizons):
        truth, rows = {}, {}
        for part in (VAL, TEST):
            anchors = table.anchors(part, h)
            known = table.shifted(table.impacts_known.astype(np.float64), h)[anchors] == 1
            rows[part] = anchors[known]
            later = [table.shifted(values[:, c], h) for c in range(values.shape[1])]
            truth[part] = np.stack(later, axis=1)[rows[part]]
        if len(rows[TEST]) == 0 or len(rows[VAL]) == 0:
            continue
        scored = {
            name: _impact_scores(own[:, column], rows, truth, loss)
            for name, own in every.items()
            if np.isfinite(own[:, column][np.concatenate([rows[VAL], rows[TEST]])]).all()
        }
        if full:
            model, prior = (every[name][rows[TEST], column] for name in ("model", "prior"))
            week = (table.days[rows[TEST]] - table.days[rows[TEST]].min()) // 7
            scored["model"] |= _impact_skill(truth[TEST], model, prior, week, loss)
        found["horizons"][str(h)] = scored
    return found


def _impact_skill(
    truth: np.ndarray, said: np.ndarray, prior: np.ndarray, week: np.ndarray, loss: str
) -> dict[str, Any]:
    """1 − Brier score (or deviance) / that of the prior, with its block-bootstrap interval."""
    own, reference = (_surprise(truth, values, loss) for values in (said, prior))
    draws = metrics.block_draws(int(week.max()) + 1)
    ratio = metrics.bootstrap_ratio(own, reference, week, draws)
    return {"skill": metrics.skill(own, reference), "ci95": list(metrics.interval(ratio))}


def _surprise(truth: np.ndarray, said: np.ndarray, loss: str) -> np.ndarray:
    """Brier score or Poisson deviance of each sample, a mean over categories [n]."""
    if loss == "bce":
        return ((said - truth) ** 2).mean(axis=1)
    rows = zip(truth, said)
    return np.array([metrics.poisson_deviance(t, s) for t, s in rows])


def _impact_scores(
    chance: np.ndarray, rows: Mapping[int, np.ndarray], truth: Mapping[int, np.ndarray], loss: str
) -> dict[str, Any]:
    test, said = truth[TEST], chance[rows[TEST]]
    if loss == "poisson":
        return {
            "n": len(test),
            "deviance": metrics.poisson_deviance(test, said),
            "mae": float(np.abs(test - said).mean()),
        }
    kinds = range(test.shape[1])
    cuts = [metrics.best_threshold(truth[VAL][:, c] > 0, chance[rows[VAL]][:, c]) for c in kinds]
    hits = [metrics.class_hits(test[:, c] > 0, said[:, c] >= cuts[c]) for c in kinds]
    both = [c for c in kinds if 0 < test[:, c].sum() < len(test)]
    precision = [metrics.average_precision(test[:, c] > 0, said[:, c]) for c in both]
    return {
        "n": len(test),
        "macro_f1": float(np.mean([metrics.f1(*h) for h in hits])),
        "micro_f1": metrics.f1(*np.sum(hits, axis=0)),
        **({"auprc": float(np.mean(precision))} if both else {}),
        "base_rate": float(test.mean()),
        "brier": float(((said - test) ** 2).mean()),
        "reliability": metrics.reliability(test.ravel(), said.ravel()),
    }
