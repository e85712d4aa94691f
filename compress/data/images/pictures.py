"""A split of labelled pictures as it is read: files' bytes, places that errors name, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import RequestError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
WHOLE = "all"  # the split of a source that has none
FORMS = "class folders, a .zip of them, parquet files, a directory saved by `datasets` or a Hub id"


@dataclass(frozen=True)
class Pictures:
    """One split of a source.

    Attributes:
        places: of each picture, as an error names it.
        read: row -> the bytes of the picture's file.
        labels: int64 [n].
        names: of the classes by label; None where the source doesn't tell.
    """

    places: Sequence[str]
    read: Callable[[int], bytes]
    labels: np.ndarray
    names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> Pictures:
        """The pictures of some rows, in that order."""
        places = [self.places[int(row)] for row in rows]
        return Pictures(places, _Selected(self.read, rows), self.labels[rows], self.names)


@dataclass(frozen=True)
class _Selected:
    """Reads some rows; a class, so that workers of any start method get it."""

    read: Callable[[int], bytes]
    rows: np.ndarray

    def __call__(self, row: int) -> bytes:
        return self.read(int(self.rows[row]))


def split_of(name: str) -> str | None:
    """Return which split a file's or folder's name says, if any."""
    stem = name.split(".")[0].split("-")[0].lower()
    return next((split for split, names in SPLITS.items() if stem in names), None)


def same_names(splits: dict[str, Pictures]) -> dict[str, Pictures]:
    """Number the classes of every split alike: by the train split's names, or the largest set."""
    named = {split: own.names for split, own in splits.items()}
    known = [names for names in named.values() if names is not None]
    if not known or len(known) < len(named) or len(set(known)) == 1:
        return splits
    base = named.get("train") or max(known, key=len)
    numbers = {name: number for number, name in enumerate(base)}
    result = {}
    for split, own in splits.items():
        assert own.names is not None
        odd = sorted(set(own.names) - set(base))
        if odd:
            raise RequestError(
                f"the {split} split has the class `{odd[0]}`, which the train split lacks",
                "every class needs training images",
            )
        lookup = np.array([numbers[name] for name in own.names], np.int64)
        result[split] = Pictures(own.places, own.read, lookup[own.labels], base)
    return result
