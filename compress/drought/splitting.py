"""Train before validation before test: which weeks may be anchors, and of which horizons.

A sample (week t, horizon h) enters a part only if t and t + h lie in it, so the h weeks before each
border are purged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from compress.errors import RequestError

PARTS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
LEAST = 52  # weeks that the series must have beyond context and horizon


@dataclass(frozen=True)
class Split:
    """The borders in time.

    Attributes:
        val_from, test_from: ordinals of the first map dates of these parts.
        ranges: first and last map date of each part.
        unsafe: whether weeks were dealt out at random instead.
        seed: of the dealing.
    """

    val_from: int
    test_from: int
    ranges: Mapping[str, tuple[str, str, int]]
    unsafe: bool = False
    seed: int = 0

    def part_of(self, days: np.ndarray) -> np.ndarray:
        """Part 0, 1, 2 of each map date, int64 [weeks]."""
        if not self.unsafe:
            later = (days >= self.val_from).astype(np.int64)
            return later + (days >= self.test_from)
        # dealt out by a hash of the date, the same in every region
        total = sum(count for _, _, count in self.ranges.values())
        words = np.array(
            [np.random.Philox(key=[self.seed, int(day)]).random_raw() / 2.0**64 for day in days]
        )
        ends = np.cumsum([count / total for _, _, count in self.ranges.values()])
        return np.minimum(np.searchsorted(ends, words, side="right"), TEST).astype(np.int64)

    def as_dict(self) -> dict[str, object]:
        """Dates of each part as JSON types."""
        return {
            name: {"from": start, "to": end, "weeks": count}
            for name, (start, end, count) in self.ranges.items()
        }


def make_split(
    days: np.ndarray,
    shares: Sequence[float],
    *,
    val_from: date | None = None,
    test_from: date | None = None,
    unsafe: bool = False,
    seed: int = 0,
) -> Split:
    """Set the borders.

    Args:
        days: ordinals of all map dates, sorted, each once.
        shares: of the weeks, for train, validation and test.
        val_from, test_from: first days of these parts, instead of shares.
        unsafe: deal the weeks out at random, in these shares.
        seed: of the dealing.

    Raises:
        RequestError: a part would be empty.
    """
    n = len(days)
    first = int(round(n * shares[0], 9))
    second = int(round(n * (shares[0] + shares[1]), 9))
    if val_from is not None:
        first = int(np.searchsorted(days, val_from.toordinal()))
    if test_from is not None:
        second = int(np.searchsorted(days, test_from.toordinal()))
    if not 0 < first < second < n:
        raise RequestError(
            f"{n} weeks from {date.fromordinal(int(days[0]))} to "
            f"{date.fromordinal(int(days[-1]))} leave a part empty: {first} to train on, "
            f"{second - first} to validate, {n - second} to test",
            "each needs some: see --split, --val-from, --test-from",
        )
    borders = (0, first, second, n)
    ranges = {
        name: (
            date.fromordinal(int(days[borders[i]])).isoformat(),
            date.fromordinal(int(days[borders[i + 1] - 1])).isoformat(),
            borders[i + 1] - borders[i],
        )
        for i, name in enumerate(PARTS)
    }
    return Split(int(days[first]), int(days[second]), ranges, unsafe, seed)


def valid_samples(
    part: np.ndarray,
    usable: np.ndarray,
    horizons: Sequence[int],
    lead: int,
    embargo: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Which (week, horizon) pairs of one place are samples.

    Args:
        part: of each week, int [weeks], in order of time.
        usable: weeks whose value was measured, not carried forward, bool [weeks].
        horizons: in weeks.
        lead: weeks before an anchor that its inputs reach back to.
        embargo: weeks after each border that are no anchors.

    Returns:
        bool [weeks, horizons], and how many of each horizon were purged, int [horizons]: pairs
        whose target lies in another part, or whose anchor lies in an embargo.
    """
    n = len(part)
    at = np.arange(n)
    fresh = np.ones(n, dtype=bool)
    for border in np.flatnonzero(np.diff(part)) + 1:
        fresh &= ~((at >= border) & (at < border + embargo))
    valid = np.zeros((n, len(horizons)), dtype=bool)
    purged = np.zeros(len(horizons), dtype=np.int64)
    for column, h in enumerate(horizons):
        inside = (at + h < n) & (at >= lead)
        target = np.minimum(at + h, n - 1)
        same = part[target] == part
        purged[column] = (inside & ~(same & fresh)).sum()
        valid[:, column] = inside & same & fresh & usable[target] & usable
    return valid, purged
