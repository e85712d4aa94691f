"""What a grid says: comparisons with the reference, ranks, shares of variance, controls, a verdict.

Primary intervals are Welch's over seeds (paired by seed where two sets are formats of one corpus,
which share their examples); the crossed bootstrap over seeds and items stands beside them. A set is
called better only where the Holm-corrected p is below 0.05 and it wins at least 0.75 of the pairs
of seeds; whether that would hold for other items too, the bootstrap says. With one seed, or scores
that don't vary over seeds, nothing is called better: the noise isn't known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compress.numerics.significance import LEVEL, holm, paired
from compress.numerics.trials import (
    LIKELY,
    Interval,
    chance_better,
    crossed,
    paired_interval,
    rank_sets,
    variance_shares,
    welch,
)
from compress.study.controls import check_controls
from compress.study.journal import Outcome
from compress.study.outcomes import Grid, Metric, Trials
from compress.study.settings import Setting

Names = Mapping[str, str]


def answer(
    outcomes: Sequence[Outcome],
    reference: str,
    corpus: Names,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    domains: Mapping[tuple[str, str], bool] | None = None,
) -> dict[str, Any]:
    """Answer from all outcomes of a study.

    Args:
        outcomes: every cell, controls included.
        reference: the set that all are compared with.
        corpus: set -> its corpus without the format: sets of one corpus are paired by seed.
        resamples, seed: of the bootstrap.
        domains: (set, text or task) -> whether both are of one data set.

    Returns:
        "comparison", "means", "ranking", "variance", "capabilities", "controls", all lists of
        plain objects.
    """
    found: dict[str, Any] = {}
    for model in dict.fromkeys(o.cell.model for o in outcomes):
        own = [o for o in outcomes if o.cell.model == model]
        grid = Grid.of(own)
        part = {
            "comparison": _compared(grid, reference, corpus, resamples, seed, domains or {}),
            "means": _means(grid),
            "ranking": _ranking(grid),
            "variance": _variance(grid, corpus),
            "capabilities": _capabilities(grid, domains or {}),
            "controls": check_controls(own, grid),
        }
        for name, rows in part.items():
            found.setdefault(name, []).extend({"model": model, **row} for row in rows)
    for pooled in (True, False):
        _correct([row for row in found["comparison"] if ("method" not in row) == pooled])
    return found


def _compared(
    grid: Grid,
    reference: str,
    corpus: Names,
    resamples: int,
    seed: int,
    domains: Mapping[tuple[str, str], bool],
) -> list[dict[str, Any]]:
    """Every set against the reference: pooled over the ways to prune, then by each way."""
    rows = []
    ways: list[Setting | None] = [None, *(grid.settings if len(grid.settings) > 1 else [])]
    for setting in ways:
        for metric in grid.metrics:
            base = grid.trials(reference, metric, setting)
            for calib in grid.calib:
                own = grid.trials(calib, metric, setting)
                if calib == reference or not len(own.means) or not len(base.means):
                    continue
                together = corpus.get(calib) == corpus.get(reference)
                row = _difference(own, base, metric, together, resamples, seed)
                where = {} if setting is None else setting.as_dict()
                named = {"calib": calib, "reference": reference, "metric": metric.name, **where}
                if domains.get((calib, metric.of)):
                    named["in_domain"] = True
                rows.append({**named, **row})
    return rows


def _difference(
    own: Trials, base: Trials, metric: Metric, together: bool, resamples: int, seed: int
) -> dict[str, Any]:
    together = together and own.seeds == base.seeds
    test = paired_interval if together else welch
    found = test(own.means.tolist(), base.means.tolist())
    chance = chance_better(
        own.means.tolist(), base.means.tolist(), smaller=metric.smaller, paired_seeds=together
    )
    basis = "seeds"
    if found.p is None and own.items is not None and base.items is not None:
        found, basis = _by_items(found, own, base), "items"
    row: dict[str, Any] = {
        "difference": found.difference,
        "chance": chance,
        "basis": basis if found.p is not None else "one seed",
        "paired": together,
        "seeds": [len(own.means), len(base.means)],
    }
    if found.p is not None:
        row |= {"ci95": [found.low, found.high], "p": found.p}
    a, b = own.items, base.items
    wanted = resamples > 0 and basis == "seeds" and found.p is not None
    if wanted and a is not None and b is not None and a.shape[1] == b.shape[1] > 1:
        ends = crossed(a, b, resamples=resamples, seed=seed, paired_seeds=together)
        row["bootstrap95"] = list(ends)
    good = found.difference < 0 if metric.smaller else found.difference > 0
    row["better"] = row["worse"] = False
    row["_good"] = good
    return row


def _by_items(found: Interval, own: Trials, base: Trials) -> Interval:
    """One seed: the interval over items alone, which leaves the seeds' noise out."""
    from scipy.special import stdtrit

    assert own.items is not None
    assert base.items is not None
    test = paired(base.items.mean(0).tolist(), own.items.mean(0).tolist())
    if test is None:
        return found
    half = float(stdtrit(own.items.shape[1] - 1, 0.975)) * test.stderr
    d = found.difference
    return Interval(d, d - half, d + half, test.p)


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Correct the p values of a family, and say what is better or worse by them."""
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested])):
        row["p_holm"] = p
        row["comparisons"] = len(tested)
        sure = p < LEVEL and row["basis"] == "seeds"
        row["better"] = bool(sure and row["_good"] and row["chance"] >= LIKELY)
        row["worse"] = bool(sure and not row["_good"] and row["chance"] <= 1 - LIKELY)
        if "bootstrap95" in row:
            low, high = row["bootstrap95"]
            row["other_items"] = low > 0 or high < 0
    for row in rows:
        del row["_good"]


def _means(grid: Grid) -> list[dict[str, Any]]:
    """Mean and standard error over seeds of every set, pooled and by way to prune."""
    rows = []
    ways: list[Setting | None] = [None, *(grid.settings if len(grid.settings) > 1 else [])]
    for setting in ways:
        for metric in grid.metrics:
            for calib in grid.calib:
                found = grid.trials(calib, metric, setting)
                if len(found.means):
                    where = {} if setting is None else setting.as_dict()
                    rows.append(
                        {"calib": calib, "metric": metric.name, **where, **_spread(found.means)}
                    )
    return rows


def _spread(values: Any) -> dict[str, Any]:
    """A mean with its standard error over n seeds."""
    row: dict[str, Any] = {"mean": float(np.mean(values)), "n": len(values)}
    if len(values) > 1:
        row["stderr"] = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return row


def _ranking(grid: Grid) -> list[dict[str, Any]]:
    rows = []
    for metric in grid.metrics:
        trials = {c: grid.trials(c, metric).means.tolist() for c in grid.calib}
        known = {c: means for c, means in trials.items() if means}
        if len(known) > 1:
            rows += [
                {"metric": metric.name, "calib": r.name, "mean": r.mean, "ranks": [r.best, r.worst]}
                for r in rank_sets(known, smaller=metric.smaller)
            ]
    return rows


def _variance(grid: Grid, corpus: Names) -> list[dict[str, Any]]:
    """What share of the spread the data, its format, the method, the sparsity and the seed have."""
    rows = []
    for metric in grid.metrics:
        found = grid.array(metric)
        if found is None or len(grid.calib) < 2:
            continue
        values, _, _ = found
        groups = [corpus.get(c, c) for c in grid.calib]
        whole = variance_shares(values, ["calib", "method", "sparsity"], {"calib": groups})
        inside = [
            variance_shares(values[:, m, r], ["calib"], {"calib": groups})
            for m in range(values.shape[1])
            for r in range(values.shape[2])
        ]
        mean = {name: float(np.mean([part[name] for part in inside])) for name in inside[0]}
        rows.append({"metric": metric.name, "all": _named(whole), "one_way": _named(mean)})
    return rows


def _named(shares: Mapping[str, float]) -> dict[str, float]:
    names = {"calib/group": "data", "calib": "format"}
    return {names.get(name, name): share for name, share in shares.items()}


def _capabilities(grid: Grid, domains: Mapping[tuple[str, str], bool]) -> list[dict[str, Any]]:
    """Mean over the metrics of a capability, in-domain ones also left out."""
    rows = []
    for group in dict.fromkeys(m.capability for m in grid.metrics):
        metrics = [m for m in grid.metrics if m.capability == group]
        for calib in grid.calib:
            kept = [m for m in metrics if not domains.get((calib, m.of))]
            row: dict[str, Any] = {"capability": group, "calib": calib, "of": len(metrics)}
            means = [grid.trials(calib, m).means for m in metrics]
            if not all(len(each) for each in means):
                continue
            row["mean"] = float(np.mean([each.mean() for each in means]))
            if len(kept) < len(metrics):
                rest = [grid.trials(calib, m).means.mean() for m in kept]
                row["in_domain"] = len(metrics) - len(kept)
                if rest:
                    row["without_in_domain"] = float(np.mean(rest))
            rows.append(row)
    return rows
