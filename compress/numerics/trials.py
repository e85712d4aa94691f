"""Statistics of repeated trials: is one treatment better than another, and what makes them differ?

A treatment (a calibration set) has outcomes y[s, i], seeds by items. Seeds and items are both
samples: an interval over items alone says nothing of another draw of the calibration set.

- `welch`: t interval over the seeds' means, variances not assumed equal. The first answer.
- `crossed`: bootstrap that resamples seeds and items independently, items paired. The second, which
  generalises to other items.
- `chance_better`: P(A > B) over pairs of seeds (Bouthillier et al., arXiv:2103.03098).
- `rank_sets`: which ranks each treatment may have, by all pairwise tests, Holm-corrected.
- `variance_shares`: what share of the spread each factor of a grid explains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.numerics.significance import LEVEL, Test, holm, paired

LIKELY = 0.75  # P(A > B) from which A is called better (Bouthillier et al.)


class Interval(NamedTuple):
    """A difference of means, its 95 % interval and two-sided p; None where one trial has no spread.

    Attributes:
        difference: first minus second.
        low, high: ends of the interval.
        p: of "no difference".
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None


def welch(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Welch's t test of two means (1947): first minus second.

    Args:
        first, second: outcomes of independent trials.

    Returns:
        No interval where either has fewer than two trials, or where neither varies and they differ:
        scores that move in steps then hide the noise.
    """
    from scipy.special import stdtr, stdtrit

    a, b = np.asarray(first, float), np.asarray(second, float)
    difference = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2:
        return Interval(difference, None, None, None)
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(sum(parts))
    if error == 0:
        same = (difference, difference, 1.0) if difference == 0 else (None, None, None)
        return Interval(difference, *same)
    # Shares before squares: the squares of tiny variances would underflow.
    shares = [part / sum(parts) for part in parts]
    freedom = 1 / (shares[0] ** 2 / (len(a) - 1) + shares[1] ** 2 / (len(b) - 1))
    half = float(stdtrit(freedom, 0.975)) * error
    p = float(2 * stdtr(freedom, -abs(difference) / error))
    return Interval(difference, difference - half, difference + half, p)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Paired t test of two means, first minus second, for trials that share what they drew.

    Args:
        first, second: outcomes in the same order of seeds.

    Returns:
        No interval for a single pair, or where all pairs differ by the same: see `welch`.
    """
    from scipy.special import stdtrit

    test: Test | None = paired(second, first)
    if test is None or (test.stderr == 0 and test.difference != 0):
        return Interval(float(np.mean(first) - np.mean(second)), None, None, None)
    half = float(stdtrit(len(first) - 1, 0.975)) * test.stderr
    return Interval(test.difference, test.difference - half, test.difference + half, test.p)


def crossed(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    paired_seeds: bool = False,
) -> tuple[float, float]:
    """95 % interval of a difference of means by the crossed bootstrap (percentiles).

    Args:
        first, second: outcomes [S, I] and [R, I] of the same items in the same order.
        resamples: B.
        seed: of the draws.
        paired_seeds: whether seeds are paired too (S = R).

    Returns:
        Ends of the interval of first minus second.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{first.shape[1]} items can't be paired with {second.shape[1]}")
    rng = np.random.Generator(np.random.Philox(seed))
    items = first.shape[1]
    found = np.empty(resamples)
    step = max(1, 2**22 // items)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        a = _weights(rng, count, len(first))
        b = a if paired_seeds else _weights(rng, count, len(second))
        by_item = a @ first - b @ second  # [count, I], mean over resampled seeds
        found[start : start + count] = (by_item * _weights(rng, count, items)).sum(1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _weights(rng: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    """Weights [count, size] of resamples with replacement; each row adds up to one."""
    return rng.multinomial(size, np.full(size, 1 / size), count) / size


def chance_better(
    first: Sequence[float], second: Sequence[float], *, smaller: bool, paired_seeds: bool = False
) -> float:
    """P(first better than second) over pairs of seeds; a tie counts half.

    Args:
        first, second: outcomes by seed.
        smaller: whether less is better.
        paired_seeds: compare seed by seed instead of every seed with every other.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    moved = a - b if paired_seeds else a[:, None] - b[None, :]
    if smaller:
        moved = -moved
    return float((moved > 0).mean() + (moved == 0).mean() / 2)


class Ranked(NamedTuple):
    """A treatment and the ranks that it may have, 1 the best.

    Attributes:
        name: the treatment.
        mean: of its trials.
        best, worst: ends of its confidence set of ranks.
    """

    name: str
    mean: float
    best: int
    worst: int


def rank_sets(trials: Mapping[str, Sequence[float]], *, smaller: bool) -> list[Ranked]:
    """Rank treatments, each with the set of ranks that can't be told apart.

    All pairs are tested by Welch, Holm-corrected together: a treatment's best rank is one more than
    the number of treatments that are significantly better, its worst one leaves out those that are
    significantly worse.

    Args:
        trials: treatment -> outcomes by seed.
        smaller: whether less is better.
    """
    names = sorted(trials, key=lambda n: float(np.mean(trials[n])) * (1 if smaller else -1))
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    tests = [welch(trials[a], trials[b]) for a, b in pairs]
    known = [(pair, test.p) for pair, test in zip(pairs, tests) if test.p is not None]
    told_apart = [
        pair for (pair, _), p in zip(known, holm([p for _, p in known])) if p < LEVEL
    ]  # in each, the first is the better
    return [
        Ranked(
            name,
            float(np.mean(trials[name])),
            1 + sum(worse == name for _, worse in told_apart),
            len(names) - sum(better == name for better, _ in told_apart),
        )
        for name in names
    ]


def variance_shares(
    values: NDArray[np.float64], factors: Sequence[str], nested: Mapping[str, Sequence[object]]
) -> dict[str, float]:
    """Shares of the variance of a balanced grid, corrected for noise (omega squared).

    The last axis is the trial (seed), whose spread inside a cell is the noise e with mean square
    MS_e. A factor's share is (SS - df MS_e) / (SS_total + MS_e), at least 0; "interaction" is what
    the cells' means hold beyond the factors, and "seed" all the rest.

    Args:
        values: [levels of factor 1, …, levels of factor k, seeds].
        factors: the k names.
        nested: factor -> a group for each of its levels; the factor is split into the groups (under
            the group's name, the mapping's key with "/group") and its levels inside them.

    Returns:
        Name -> share; they add up to 1.

    Raises:
        ValueError: shapes don't fit.
    """
    if values.ndim != len(factors) + 1 or values.shape[-1] < 2:
        raise ValueError(f"values of {values.shape} for {len(factors)} factors and two seeds")
    mean = values.mean()
    total = float(((values - mean) ** 2).sum())
    cells = values.mean(-1)
    seeds = values.shape[-1]
    noise = float(((values - cells[..., None]) ** 2).sum()) / (cells.size * (seeds - 1))
    sums: dict[str, tuple[float, int]] = {}
    for axis, name in enumerate(factors):
        others = tuple(i for i in range(cells.ndim) if i != axis)
        levels = cells.mean(others)
        weight = values.size / len(levels)
        whole = weight * float(((levels - mean) ** 2).sum())
        if name not in nested:
            sums[name] = whole, len(levels) - 1
            continue
        groups = list(nested[name])
        members = {g: [i for i, other in enumerate(groups) if other == g] for g in groups}
        between = sum(
            weight * len(own) * float((levels[own].mean() - mean) ** 2) for own in members.values()
        )
        sums[f"{name}/group"] = between, len(members) - 1
        sums[name] = whole - between, len(levels) - len(members)
    cell_sum = float(values.shape[-1] * ((cells - mean) ** 2).sum())
    freedom = sum(df for _, df in sums.values())
    sums["interaction"] = (
        cell_sum - sum(part for part, _ in sums.values()),
        cells.size - 1 - freedom,
    )
    whole_sum = total + noise
    if whole_sum == 0:
        return {**dict.fromkeys(sums, 0.0), "seed": 1.0}
    shares = {name: max(0.0, (ss - df * noise) / whole_sum) for name, (ss, df) in sums.items()}
    return {**shares, "seed": max(0.0, 1.0 - sum(shares.values()))}
