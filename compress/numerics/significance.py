"""Is a run better than another, or is it noise? Tests on outcomes or on standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEVEL = 0.05  # a difference is called larger than its noise below this p


class Test(NamedTuple):
    """A difference (second minus first), its standard error and two-sided p.

    Attributes:
        paired: whether outcomes of the same examples were compared.
    """

    difference: float
    stderr: float
    p: float
    paired: bool


def paired(first: Sequence[float], second: Sequence[float]) -> Test | None:
    """Paired t test; None for fewer than two pairs.

    Args:
        first, second: outcomes of the same examples in the same order.
    """
    from scipy.special import stdtr

    n = len(first)
    if n != len(second):
        raise ValueError(f"{n} outcomes can't be paired with {len(second)}")
    if n < 2:
        return None
    moved = [b - a for a, b in zip(first, second)]
    mean = math.fsum(moved) / n
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in moved) / (n - 1) / n)
    if error == 0:
        return Test(mean, 0.0, 1.0 if mean == 0 else 0.0, True)
    return Test(mean, error, float(2 * stdtr(n - 1, -abs(mean) / error)), True)


def matched(first: Mapping[str, float], second: Mapping[str, float]) -> Test | None:
    """Paired test by item: McNemar's exact one for right-or-wrong outcomes, else t.

    Args:
        first, second: item to outcome, the same items; None where they differ.
    """
    if first.keys() != second.keys() or not first:
        return None
    a, b = list(first.values()), [second[key] for key in first]
    test = paired(a, b)
    if test is None or not set(a) | set(b) <= {0, 1}:
        return test
    lost = sum(x > y for x, y in zip(a, b))
    gained = sum(x < y for x, y in zip(a, b))
    return test._replace(p=mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p that `gained` and `lost` changes came from a fair coin."""
    from scipy.special import bdtr

    moved = gained + lost
    return min(1.0, 2 * float(bdtr(min(gained, lost), moved, 0.5))) if moved else 1.0


def unpaired(
    first: float, error_1: float | None, second: float, error_2: float | None
) -> Test | None:
    """Normal test from two standard errors; None where one is missing.

    Runs share their examples, so this overstates the noise: what it calls a difference is one.
    """
    if error_1 is None or error_2 is None:
        return None
    error = math.hypot(error_1, error_2)
    difference = second - first
    if error == 0:
        return Test(difference, 0.0, 1.0 if difference == 0 else 0.0, False)
    return Test(difference, error, math.erfc(abs(difference) / error / math.sqrt(2)), False)


def mean_of(tests: Sequence[Test]) -> Test:
    """The test of a mean over independent measures, such as tasks, by the normal distribution."""
    if len(tests) == 1:
        return tests[0]
    n = len(tests)
    difference = math.fsum(t.difference for t in tests) / n
    error = math.sqrt(math.fsum(t.stderr**2 for t in tests)) / n
    together = unpaired(0.0, 0.0, difference, error)
    assert together is not None
    return together._replace(paired=all(t.paired for t in tests))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979): of m, the i-th smallest times m - i + 1, never falling."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, last = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        last = max(last, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = last
    return adjusted
