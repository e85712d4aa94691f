"""The k-th smallest of more numbers than memory holds: exact, in two readings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# Of the 31 bits of a float32 >= 0, which order it as an integer, the first reading counts 20.
_LOW_BITS = 11
_BINS = 1 << 20
_CHUNK = 1 << 24  # numbers at a time: bounds the int64 copies to 128 MB


class Ranked(NamedTuple):
    """Where the k-th smallest number lies."""

    value: float
    """The number."""
    below: list[int]
    """How many numbers of each part are smaller."""
    equal: list[int]
    """How many numbers of each part equal it."""


def kth_smallest(parts: Callable[[], Iterable[Tensor]], k: int) -> Ranked:
    """Find the k-th smallest number of all parts together.

    Args:
        parts: gives the parts, any shapes and float dtypes, numbers >= 0; called twice, it must
            give the same parts in the same order. They are compared as float32.
        k: from 1 to the number of numbers.

    Raises:
        ValueError: k out of range; a number that is negative, NaN or infinite.

    Cost: two readings of the parts, one histogram of 2^20 bins (8 MB), and the distinct numbers
    that share the leading 20 bits of the one sought, at most 2^11 of each part.
    """
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for part in parts():
        for bits in _chunks(part):
            counts += torch.bincount(bits >> _LOW_BITS, minlength=_BINS).cpu()
    total = counts.cumsum(0)
    if not 1 <= k <= int(total[-1]):
        raise ValueError(f"there is no {k}-th smallest of {int(total[-1])} numbers")
    found = int(torch.searchsorted(total, k))
    rank = k - (int(total[found - 1]) if found else 0)
    under, inside = [], []
    for part in parts():
        fewer, low = 0, torch.zeros(1 << _LOW_BITS, dtype=torch.int64)
        for bits in _chunks(part):
            high = bits >> _LOW_BITS
            fewer += int((high < found).sum())
            rest = bits[high == found] & ((1 << _LOW_BITS) - 1)
            low += torch.bincount(rest, minlength=1 << _LOW_BITS).cpu()
        under.append(fewer)
        inside.append(low)
    last = int(torch.searchsorted(torch.stack(inside).sum(0).cumsum(0), rank))
    bits = torch.tensor((found << _LOW_BITS) + last, dtype=torch.int32)
    return Ranked(
        float(bits.view(torch.float32)),
        [fewer + int(low[:last].sum()) for fewer, low in zip(under, inside)],
        [int(low[last]) for low in inside],
    )


def _chunks(part: Tensor) -> Iterable[Tensor]:
    """The bits of a part's numbers, int64, some at a time."""
    for chunk in part.detach().reshape(-1).split(_CHUNK):
        values = chunk.float() + 0.0  # -0 would have the sign bit
        if not bool((values >= 0).all() & values.isfinite().all()):
            raise ValueError("the numbers must be finite and >= 0")
        yield values.view(torch.int32).to(torch.int64)
