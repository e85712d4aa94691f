"""How good estimates are: errors by horizon, place and regime, classes, and impacts.

Weeks follow each other closely, so intervals come from a moving-block bootstrap over weeks, never
from independent draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.drought.splitting import TEST
from compress.drought.table import WeekTable

BLOCK = 26  # weeks
DRAWS = 1000
REGIME = 50.0  # DSCI points in
REGIME_WEEKS = 8
LEVEL = 0.95


@dataclass(frozen=True)
class Samples:
    """The test samples of one horizon, sorted by week.

    Attributes:
        rows: anchors, int64 [n].
        week: number of each target's week, from 0, int64 [n]; places share weeks.
        truth: severity at the target, float64 [n].
        base: persistence, float64 [n].
    """

    rows: np.ndarray
    week: np.ndarray
    truth: np.ndarray
    base: np.ndarray


def samples(table: WeekTable, horizon: int, part: int = TEST) -> Samples:
    """Return a part's samples of one horizon."""
    rows = table.anchors(part, horizon)
    truth = table.shifted(table.severity, horizon)[rows]
    rows = rows[np.argsort(table.days[rows], kind="stable")]
    truth = table.shifted(table.severity, horizon)[rows]
    week = (table.days[rows] - table.days[rows].min()) // 7
    return Samples(rows, week.astype(np.int64), truth, table.base(horizon)[rows])


def block_draws(weeks: int, draws: int = DRAWS, block: int = BLOCK, seed: int = 0) -> np.ndarray:
    """How often each week is drawn by a moving-block bootstrap, int64 [draws, weeks].

    Whole blocks of consecutive weeks are drawn until there are as many weeks as before, the last
    block cut; a series shorter than two blocks takes blocks of half its length. Blocks wrap around
    the end (Politis and Romano's circular form), so that each week is drawn as often as another:
    without that the first and last weeks are rare, and an interval may miss its own estimate.
    """
    size = max(min(block, weeks // 2), 1)
    rng = np.random.Generator(np.random.Philox(key=[seed, weeks]))
    count = -(-weeks // size)
    starts = rng.integers(0, weeks, size=(draws, count))
    at = (starts[:, :, None] + np.arange(size)).reshape(draws, -1)[:, :weeks] % weeks
    flat = (np.arange(draws)[:, None] * weeks + at).ravel()
    return np.bincount(flat, minlength=draws * weeks).reshape(draws, weeks)


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of bootstrap values; those that aren't finite are left out."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return (float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def skill(error: np.ndarray, reference: np.ndarray) -> float:
    """1 − MAE / MAE of the reference; 0 where neither errs."""
    a, b = float(np.mean(error)), float(np.mean(reference))
    return 0.0 if b == 0 and a == 0 else 1.0 - a / b if b > 0 else float("-inf")


def bootstrap_ratio(
    error: np.ndarray, reference: np.ndarray, week: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """Skill in each draw, float64 [draws]: errors and their reference drawn together."""
    weeks = draws.shape[1]
    top = draws @ np.bincount(week, error, minlength=weeks)
    low = draws @ np.bincount(week, reference, minlength=weeks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - top / low


@dataclass(frozen=True)
class SkillRow:
    """Severity at one horizon.

    Attributes:
        n: test samples.
        mae, rmse: of the estimate; persistence_mae, persistence_rmse of y_t.
        skill: 1 − mae / persistence_mae, and its interval.
        against_climatology: the same against climatology; None where there is none.
    """

    horizon: int
    n: int
    mae: float
    rmse: float
    persistence_mae: float
    skill: float
    ci95: tuple[float, float]
    against_climatology: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON types, without what wasn't measured."""
        own = {k: v for k, v in vars(self).items() if v is not None and k != "horizon"}
        return {**own, "ci95": list(self.ci95), "verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """Whether it beats persistence beyond the noise."""
        if self.ci95[0] > 0:
            return "skill"
        return "worse than persistence" if self.ci95[1] < 0 else "no skill"


def severity_row(
    table: WeekTable,
    estimates: np.ndarray,
    horizon: int,
    climatology: np.ndarray | None = None,
) -> SkillRow | None:
    """Score estimates on the test samples of one horizon; None where one of them is missing.

    Args:
        table: the place-weeks.
        estimates: float64 [seeds, W, H] or [W, H]; errors are averaged over seeds by sample.
        horizon: in weeks.
        climatology: estimates of it.
    """
    column = table.horizons.index(horizon)
    some = samples(table, horizon)
    every = estimates[None] if estimates.ndim == 2 else estimates
    error = every[:, some.rows, column] - some.truth
    if not np.isfinite(error).all():
        return None
    absolute, reference = np.abs(error).mean(axis=0), np.abs(some.base - some.truth)
    draws = block_draws(int(some.week.max()) + 1)
    against = None
    if climatology is not None and np.isfinite(climatology[some.rows, column]).all():
        against = skill(absolute, np.abs(climatology[some.rows, column] - some.truth))
    return SkillRow(
        horizon,
        len(some.rows),
        float(absolute.mean()),
        float(np.sqrt((error**2).mean(axis=1)).mean()),
        float(reference.mean()),
        skill(absolute, reference),
        interval(bootstrap_ratio(absolute, reference, some.week, draws)),
        against,
    )


def difference(first: np.ndarray, second: np.ndarray, week: np.ndarray) -> dict[str, Any]:
    """Mean error of `second` minus that of `first`, paired, with its block-bootstrap interval.

    Args:
        first, second: errors of the same samples [n], each a mean over seeds.
        week: number of each sample's week, from 0, int64 [n].
    """
    moved = np.asarray(second) - np.asarray(first)
    draws = block_draws(int(week.max()) + 1)
    weeks = draws.shape[1]
    sums = draws @ np.bincount(week, moved, minlength=weeks)
    counts = draws @ np.bincount(week, minlength=weeks)
    drawn = sums[counts > 0] / counts[counts > 0]
    return {"difference": float(moved.mean()), "ci95": list(interval(drawn))}


def by_group(
    table: WeekTable, estimates: np.ndarray, group: Callable[[int, Samples], np.ndarray]
) -> dict[str, dict[str, Any]]:
    """MAE and skill in groups of test samples.

    Args:
        table: the place-weeks.
        estimates: [seeds, W, H].
        group: names [n] of the samples' groups, given the horizon and the samples.

    Returns:
        {group: {horizon: {"n", "mae", "persistence_mae", "skill"}}}.
    """
    found: dict[str, dict[str, Any]] = {}
    for column, h in enumerate(table.horizons):
        some = samples(table, h)
        error = np.abs(estimates[:, some.rows, column] - some.truth).mean(axis=0)
        reference = np.abs(some.base - some.truth)
        names = group(h, some)
        for name in sorted(set(names.tolist())):
            own = names == name
            found.setdefault(name, {})[str(h)] = {
                "n": int(own.sum()),
                "mae": float(error[own].mean()),
                "persistence_mae": float(reference[own].mean()),
                "skill": skill(error[own], reference[own]),
            }
    return found


def regimes(table: WeekTable) -> Callable[[int, Samples], np.ndarray]:
    """Groups by what the eight weeks up to the target did: onset, recovery, steady."""
    change = table.dsci - table.shifted(table.dsci, -REGIME_WEEKS)

    def group(h: int, some: Samples) -> np.ndarray:
        moved = change[some.rows + h]
        return np.where(moved > REGIME, "onset", np.where(moved < -REGIME, "recovery", "steady"))

    return group


def places(table: WeekTable) -> Callable[[int, Samples], np.ndarray]:
    """Groups by place."""
    names = np.array(table.regions)
    return lambda h, some: names[table.region[some.rows]]


def class_thresholds(severity: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """DSCI from which a class is called: for each of 1 … 5 the cut with fewest errors, [5].

    Fitted on training weeks. A class that never occurs there is never called (infinity).
    """
    order = np.argsort(severity, kind="stable")
    values = severity[order]
    cuts = np.concatenate([[-np.inf], (values[:-1] + values[1:]) / 2, [np.inf]])
    found = []
    for k in range(1, 6):
        positive = (worst[order] >= k).astype(np.int64)
        below = np.concatenate([[0], np.cumsum(positive)])  # positives called negative
        above = np.concatenate([[0], np.cumsum(1 - positive)])  # negatives called negative
        wrong = below + ((1 - positive).sum() - above)
        best = np.flatnonzero(wrong == wrong.min())
        found.append(float(cuts[best[-1]]))
    return np.array(found)


def class_scores(truth: np.ndarray, called: np.ndarray) -> dict[str, float]:
    """Macro F1 over the classes that occur or are called, ordinal MAE, share of the commonest."""
    kinds = sorted({*truth.tolist(), *called.tolist()})
    scores = [_f1(truth == k, called == k) for k in kinds]
    return {
        "macro_f1": float(np.mean(scores)),
        "ordinal_mae": float(np.abs(truth - called).mean()),
        "accuracy": float((truth == called).mean()),
        "commonest_share": float(np.bincount(truth).max() / len(truth)),
    }


def class_hits(truth: np.ndarray, called: np.ndarray) -> tuple[float, float]:
    """How many were rightly called, and the number of true ones plus that of called ones."""
    return float((truth & called).sum()), float(truth.sum() + called.sum())


def f1(hits: float, total: float) -> float:
    """F1 from `class_hits`; 0 where nothing was there and nothing called."""
    return 2 * float(hits) / float(total) if total else 0.0


def _f1(truth: np.ndarray, called: np.ndarray) -> float:
    return f1(*class_hits(truth, called))


def best_threshold(truth: np.ndarray, chance: np.ndarray) -> float:
    """The chance from which an impact is called so that F1 is greatest; fitted on validation."""
    cuts = np.unique(chance)
    if not truth.any() or len(cuts) == 0:
        return 0.5
    if len(cuts) > 200:
        cuts = np.quantile(cuts, np.linspace(0, 1, 200))
    scores = [_f1(truth, chance >= cut) for cut in cuts]
    return float(cuts[int(np.argmax(scores))])


def average_precision(truth: np.ndarray, chance: np.ndarray) -> float:
    """Area under the precision-recall curve as a step function; ties count together."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, chance))


def poisson_deviance(truth: np.ndarray, rate: np.ndarray) -> float:
    """Mean 2 (y log(y / r) − y + r), y log y = 0 at 0."""
    from scipy.special import xlogy

    safe = np.maximum(rate, 1e-9)
    return float(2 * (xlogy(truth, truth / safe) - truth + safe).mean())


def reliability(truth: np.ndarray, chance: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Mean chance and share of impacts in bins of the chance, with their numbers."""
    at = np.minimum((chance * bins).astype(np.int64), bins - 1)
    return [
        {
            "from": b / bins,
            "to": (b + 1) / bins,
            "n": int((at == b).sum()),
            "mean_chance": float(chance[at == b].mean()),
            "share": float(truth[at == b].mean()),
        }
        for b in range(bins)
        if (at == b).any()
    ]


def as_plain(rows: Mapping[int, SkillRow | None]) -> dict[str, dict[str, Any]]:
    """Rows by horizon as JSON types, missing ones left out."""
    return {str(h): row.as_dict() for h, row in rows.items() if row is not None}
