"""What a model has to beat, on the same samples: from persistence to gradient boosting.

Each returns an estimate for every row and horizon, NaN where it has none. Whatever is fitted sees
training samples only; strengths are chosen on validation samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from compress.drought.series import WEEK
from compress.drought.splitting import TRAIN, VAL
from compress.drought.table import YEAR, WeekTable, season

LAGS = 8
STRENGTHS = tuple(10.0**p for p in range(-3, 5))
TEXT_WIDTH = 16  # components of the mean text vector that a ridge gets

Estimates = np.ndarray
"""float64 [W, H]."""


def persistence(table: WeekTable) -> Estimates:
    """The newest severity known: y_t, for a nowcast y_{t-1}."""
    return np.stack([table.base(h) for h in table.horizons], axis=1)


def drift(table: WeekTable) -> Estimates:
    """Persistence and the mean weekly change of the training weeks, times the weeks ahead."""
    slope = np.zeros(len(table.days))
    for place in range(len(table.regions)):
        rows = np.flatnonzero((table.region == place) & (table.part == TRAIN))
        if len(rows) > 1:
            change = table.severity[rows[-1]] - table.severity[rows[0]]
            slope[table.region == place] = change / (rows[-1] - rows[0])
    ahead = np.array([max(h, 1) for h in table.horizons])
    return persistence(table) + slope[:, None] * ahead


def climatology(table: WeekTable) -> Estimates:
    """The training weeks' mean of that week of the year in that place."""
    out = np.full((len(table.days), len(table.horizons)), np.nan)
    for place in range(len(table.regions)):
        own = table.region == place
        train = own & (table.part == TRAIN)
        if not train.any():
            continue
        overall = table.severity[train].mean()
        week = _week_of_year(table.days)
        sums = np.bincount(week[train], table.severity[train], minlength=53)
        counts = np.bincount(week[train], minlength=53)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
        for column, h in enumerate(table.horizons):
            out[own, column] = mean[_week_of_year(table.days[own] + WEEK * h)]
    return out


def _week_of_year(days: np.ndarray) -> np.ndarray:
    return np.floor(np.asarray(days) / WEEK % YEAR).astype(np.int64)


def seasonal(table: WeekTable) -> Estimates:
    """What was measured 52 weeks before the target."""
    return np.stack([table.shifted(table.severity, h - 52) for h in table.horizons], axis=1)


def lags(table: WeekTable, horizon: int, count: int = LAGS) -> np.ndarray:
    """Changes of the newest `count` severities against the newest, and the newest: [W, count]."""
    delay = 1 if horizon == 0 else 0
    values = [table.shifted(table.severity, -delay - k) for k in range(count)]
    return np.stack([values[0], *(v - values[0] for v in values[1:])], axis=1)


def features(table: WeekTable, horizon: int) -> np.ndarray:
    """Lags, the target's season, and the place: [W, features]."""
    place = np.eye(len(table.regions))[table.region][:, 1:]
    return np.column_stack([lags(table, horizon), season(table.days + WEEK * horizon), place])


def ridge(table: WeekTable, extra: np.ndarray | None = None, lagged: bool = True) -> Estimates:
    """Ridge regression of the change from persistence; its strength by validation.

    Args:
        table: the place-weeks.
        extra: further inputs [W, D], such as mean text vectors.
        lagged: whether lags and season are inputs.
    """

    def fit(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> Predictor:
        from sklearn.linear_model import Ridge

        best: tuple[float, Predictor] | None = None
        for strength in STRENGTHS:
            model = Ridge(alpha=strength).fit(x, y)
            error = float(np.abs(model.predict(x_val) - y_val).mean())
            if best is None or error < best[0]:
                best = (error, model.predict)
        assert best is not None
        return best[1]

    return _each_horizon(table, extra, lagged, fit)


def boosting(table: WeekTable, extra: np.ndarray | None = None, seed: int = 0) -> Estimates:
    """Gradient boosted trees on lags and season; the number of rounds by validation."""

    def fit(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> Predictor:
        from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(
            loss="absolute_error", max_iter=200, learning_rate=0.05, max_leaf_nodes=15,
            early_stopping=False, random_state=seed,
        ).fit(x, y)  # fmt: skip
        errors = [np.abs(p - y_val).mean() for p in model.staged_predict(x_val)]
        none = float(np.abs(y_val).mean())
        rounds = int(np.argmin(errors)) + 1 if min(errors) < none else 0

        def predict(inputs: np.ndarray) -> np.ndarray:
            if rounds == 0:
                return np.zeros(len(inputs))
            staged = model.staged_predict(inputs)
            return next(p for i, p in enumerate(staged, start=1) if i == rounds)

        return predict

    return _each_horizon(table, extra, True, fit)


Predictor = Callable[[np.ndarray], np.ndarray]


def _each_horizon(
    table: WeekTable,
    extra: np.ndarray | None,
    lagged: bool,
    fit: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Predictor],
) -> Estimates:
    out = np.full((len(table.days), len(table.horizons)), np.nan)
    for column, h in enumerate(table.horizons):
        base = table.base(h)
        parts = [features(table, h)] if lagged else []
        x = np.column_stack([*parts, *([] if extra is None else [extra])])
        y = table.shifted(table.severity, h) - base
        whole = np.isfinite(x).all(axis=1)
        rows = [np.intersect1d(table.anchors(p, h), np.flatnonzero(whole)) for p in (TRAIN, VAL)]
        if any(len(r) == 0 for r in rows):
            continue
        centre, spread = x[rows[0]].mean(axis=0), x[rows[0]].std(axis=0)
        scaled = (x - centre) / np.where(spread > 0, spread, 1.0)
        predict = fit(scaled[rows[0]], y[rows[0]], scaled[rows[1]], y[rows[1]])
        out[whole, column] = base[whole] + predict(scaled[whole])
    return out


def severity_baselines(
    table: WeekTable, text: np.ndarray | None = None, seed: int = 0
) -> dict[str, Estimates]:
    """All of them by name.

    Args:
        table: the place-weeks.
        text: mean text vector of each row [W, D], of which the first TEXT_WIDTH are used.
        seed: of the trees.
    """
    found = {
        "persistence": persistence(table),
        "drift": drift(table),
        "climatology": climatology(table),
        "seasonal": seasonal(table),
        "ridge": ridge(table),
    }
    if text is not None:
        narrow = text[:, :TEXT_WIDTH]
        found["ridge + text"] = ridge(table, narrow)
        found["text alone"] = ridge(table, narrow, lagged=False)
    found["boosting"] = boosting(table, seed=seed)
    return found


def impact_baselines(
    table: WeekTable, text: np.ndarray | None, loss: str
) -> Mapping[str, np.ndarray]:
    """Chance of an impact, or rate of counts: train prior, last value, regression; [W, H, C]."""
    shape = (len(table.days), len(table.horizons), len(table.categories))
    out = {name: np.full(shape, np.nan) for name in ("prior", "last value", "regression")}
    values = (table.impacts > 0).astype(np.float64) if loss == "bce" else table.impacts
    train = (table.part == TRAIN) & table.impacts_known
    prior = prior_of(values[train], loss)
    for column, h in enumerate(table.horizons):
        for c in range(shape[2]):
            own = values[:, c]
            last = own if h > 0 else table.shifted(own, -1)
            out["prior"][:, column, c] = prior[c]
            out["last value"][:, column, c] = np.nan_to_num(last)
            out["regression"][:, column, c] = _regression(table, text, own, h, prior[c], loss)
    return out


def prior_of(values: np.ndarray, loss: str) -> np.ndarray:
    """Training share of weeks with an impact, or mean count, by category; never exactly 0 or 1."""
    n = len(values)
    total = values.sum(axis=0)
    return (total + 0.5) / (n + 1.0) if loss == "bce" else (total + 0.5) / (n + 0.5)


def _regression(
    table: WeekTable, text: np.ndarray | None, own: np.ndarray, h: int, prior: float, loss: str
) -> np.ndarray:
    """Logistic or Poisson regression on lags of severity and of the category, and on text."""
    from sklearn.linear_model import LogisticRegression, PoissonRegressor

    delay = 1 if h == 0 else 0
    past = [np.log1p(np.nan_to_num(table.shifted(own, -delay - k))) for k in range(4)]
    narrow = [] if text is None else [text[:, :TEXT_WIDTH]]
    x = np.column_stack([features(table, h), *past, *narrow])
    y = table.shifted(own, h)
    known = table.shifted(table.impacts_known.astype(np.float64), h) == 1
    whole = np.isfinite(x).all(axis=1)
    rows = np.intersect1d(table.anchors(TRAIN, h), np.flatnonzero(whole & known))
    out = np.full(len(table.days), np.nan)
    if len(rows) == 0 or len(np.unique(y[rows])) < 2:
        out[whole] = prior
        return out
    centre, spread = x[rows].mean(axis=0), x[rows].std(axis=0)
    scaled = (x - centre) / np.where(spread > 0, spread, 1.0)
    if loss == "bce":
        model = LogisticRegression(C=0.1, max_iter=500).fit(scaled[rows], y[rows] > 0)
        out[whole] = model.predict_proba(scaled[whole])[:, 1]
    else:
        counts = PoissonRegressor(alpha=1.0, max_iter=500).fit(scaled[rows], y[rows])
        # a linear predictor far outside what was fitted explodes; the greatest count seen bounds it
        out[whole] = np.minimum(counts.predict(scaled[whole]), max(float(y[rows].max()), 1.0))
    return out
