"""Train, validation and test kept apart: masks are searched on the first, chosen on the second,
and reported on the third.

Where a source lacks a split, it is cut from the others by a rule that no seed changes: of each
class, a fixed random tenth is the validation split and, where there is no test split either, a
further fifth is the test split.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from compress.data.images.pictures import WHOLE, Pictures
from compress.errors import RequestError
from compress.numerics.counter import permutation

VALIDATION = 0.1
TEST = 0.2
_STREAM = 20_240_717  # the draw is the same for every --seed: a method can't choose its test set


class Splits(NamedTuple):
    """The three splits, and sentences that say how they came about."""

    train: Pictures
    validation: Pictures
    test: Pictures
    notes: tuple[str, ...]


def three_splits(found: dict[str, Pictures], name: str) -> Splits:
    """Return train, validation and test, cut where the source lacks one.

    Args:
        found: what open_pictures gave.
        name: of the source, for errors.

    Raises:
        RequestError: no training images, or a class too small to be cut.
    """
    notes = []
    rest = found.get("train", found.get(WHOLE))
    if rest is None:
        raise RequestError(
            f"`{name}` has no train split: {', '.join(found)} alone",
            "masks are searched on training images, never on those that are reported",
        )
    test = found.get("test")
    validation = found.get("validation")
    if test is None and validation is not None:
        test, validation = validation, None
        notes.append("no test split: the validation split is what is reported")
    if test is None:
        test, rest = carve(rest, TEST, name)
        notes.append(f"no test split: {TEST:.0%} of each class of the images, a fixed draw")
    if validation is None:
        validation, rest = carve(rest, VALIDATION, name)
        notes.append(f"no validation split: {VALIDATION:.0%} of each class of train, a fixed draw")
    return Splits(rest, validation, test, tuple(notes))


def carve(pictures: Pictures, share: float, name: str) -> tuple[Pictures, Pictures]:
    """Cut a share of each class, at least one picture, off; returns (the share, the rest).

    Rows keep their order. The draw depends on the class's number and size alone.

    Raises:
        RequestError: a class has a single picture.
    """
    chosen = np.zeros(len(pictures), bool)
    for label in np.unique(pictures.labels):
        rows = np.flatnonzero(pictures.labels == label)
        count = max(round(share * len(rows)), 1)
        if count >= len(rows):
            called = pictures.names[label] if pictures.names else label
            raise RequestError(
                f"class `{called}` of `{name}` has {len(rows)} image: too few to cut a split off",
                "add images, or give the source train, validation and test splits",
            )
        order = permutation(_STREAM, int(label), len(rows))
        chosen[rows[order[:count]]] = True
    return pictures.select(np.flatnonzero(chosen)), pictures.select(np.flatnonzero(~chosen))
