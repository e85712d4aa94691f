"""Paired comparison of two models on the same examples: is a difference larger than its noise?

Pairing removes the spread between examples, which is most of an evaluation's noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compress.errors import RequestError
from compress.evaluation.perplexity import Perplexity
from compress.numerics.significance import LEVEL, mcnemar, paired


@dataclass(frozen=True)
class Difference:
    """A paired difference, after minus before.

    Attributes:
        difference: of the means (items) or of the perplexities (windows).
        ci95: its 95 % confidence interval, or None where one pair is too few to tell.
        p: two-sided p of "no difference", or None likewise.
        n: pairs.
    """

    difference: float
    ci95: tuple[float, float] | None
    p: float | None
    n: int

    @property
    def distinguishable(self) -> bool:
        """Whether the difference is larger than its noise: p < LEVEL."""
        return self.p is not None and self.p < LEVEL

    def as_receipt(self) -> dict[str, Any]:
        """The receipt's entry; what could not be computed is absent."""
        entry: dict[str, Any] = {"difference": self.difference}
        if self.ci95 is not None:
            entry["ci95"] = list(self.ci95)
        if self.p is not None:
            entry["p"] = self.p
        entry.update(n=self.n, distinguishable=self.distinguishable)
        return entry


def compare_windows(before: Perplexity, after: Perplexity) -> Difference:
    """Compare two perplexities of the same windows.

    A paired t test on the windows' losses. The interval is that of the mean loss difference d,
    carried over to perplexity at the first model's value: value * (exp(d) - 1); so it leaves out
    zero exactly where p < 0.05.

    Raises:
        RequestError: the windows are not the same (another text, length, stride or tokenizer).
    """
    if before.digest != after.digest or before.stride != after.stride:
        raise RequestError(
            "two perplexities of different windows can't be compared",
            hint="use the same text, sequence length, stride and tokenizer",
        )
    scale = before.weights / before.weights.mean()
    _, interval, p = _paired_t((after.losses - before.losses) * scale)
    moved = None
    if interval is not None:
        low, high = (before.value * math.expm1(min(end, 700.0)) for end in interval)
        moved = (low, high)
    return Difference(after.value - before.value, moved, p, len(before.losses))


def compare_items(before: Mapping[str, float], after: Mapping[str, float]) -> Difference:
    """Compare two models' outcomes on the same items.

    Right-or-wrong outcomes (all 0 or 1): McNemar's exact test, and Agresti and Min's interval for
    matched proportions (2005: Wald's after adding half an item to each of the four cells), which
    stays honest where no item changed. Other outcomes: paired t.

    Args:
        before, after: item key -> outcome.

    Raises:
        RequestError: the items are not the same.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise RequestError(f"{len(odd)} items were answered by one model only, such as `{odd[0]}`")
    if not before:
        raise RequestError("no items to compare")
    first = torch.tensor([before[key] for key in before], dtype=torch.float64)
    second = torch.tensor([after[key] for key in before], dtype=torch.float64)
    if bool(((first == 0) | (first == 1)).all() and ((second == 0) | (second == 1)).all()):
        gained = int(((second == 1) & (first == 0)).sum())
        lost = int(((first == 1) & (second == 0)).sum())
        return _matched_proportions(gained, lost, len(first))
    mean, interval, p = _paired_t(second - first)
    return Difference(mean, interval, p, len(first))


def _matched_proportions(gained: int, lost: int, n: int) -> Difference:
    """Compare right-or-wrong outcomes of which `gained` turned right and `lost` turned wrong."""
    from scipy.special import ndtri

    # Half an item in each of four cells: n + 2 items, n_01 + 1/2 and n_10 + 1/2 changed.
    size = n + 2
    centre = (gained - lost) / size
    changed = (gained + lost + 1) / size
    half = float(ndtri(0.975)) * math.sqrt(max(changed - centre**2, 0.0) / size)
    interval = (max(centre - half, -1.0), min(centre + half, 1.0))
    return Difference((gained - lost) / n, interval, mcnemar(gained, lost), n)


def _paired_t(
    differences: torch.Tensor,
) -> tuple[float, tuple[float, float] | None, float | None]:
    """Return the mean, its 95 % interval and p by the t distribution; None for one pair."""
    from scipy.special import stdtrit

    n = len(differences)
    test = paired([0.0] * n, differences.tolist())
    if test is None:
        return float(differences.mean()), None, None
    half = float(stdtrit(n - 1, 0.975)) * test.stderr
    return test.difference, (test.difference - half, test.difference + half), test.p
