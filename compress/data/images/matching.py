"""A data set's classes and a model's head: which output stands for which class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from compress.data.images.pictures import Pictures
from compress.errors import RequestError

_NEW = "give --new-head to replace the classifier by one with the data's classes"


class Matched(NamedTuple):
    """How labels become outputs.

    Attributes:
        outputs: output of each label, int64 [classes of the data].
        note: what a reader should know, or None.
    """

    outputs: np.ndarray
    note: str | None = None


def match_classes(pictures: Pictures, config: Any, name: str) -> Matched:
    """Find which of a head's outputs each label of the data is.

    Where both sides name their classes, names decide; else numbers do, if there are as many. Data
    whose classes have no names need only lie within the head's range.

    Args:
        pictures: the data.
        config: of the model, with num_labels and id2label.
        name: of the data, for errors.

    Raises:
        RequestError: a label outside the head's range, or a head of other classes.
    """
    outputs = int(config.num_labels)
    wanted = {str(v).strip().lower(): int(k) for k, v in (config.id2label or {}).items()}
    if pictures.names is None:
        _check_range(pictures, outputs, name)
        return Matched(np.arange(max(outputs, int(pictures.labels.max(initial=0)) + 1)))
    spelt = [label.strip().lower() for label in pictures.names]
    if all(label in wanted for label in spelt):
        return Matched(np.array([wanted[label] for label in spelt], np.int64))
    numbered = all(label.startswith("label_") for label in wanted)
    if len(spelt) != outputs:
        raise RequestError(
            f"the model's head has {outputs} classes, `{name}` has {len(spelt)}", _NEW
        )
    note = None
    if not numbered:
        first = next(label for label in pictures.names if label.strip().lower() not in wanted)
        note = (
            f"the head doesn't call a class `{first}`: classes of `{name}` are taken in their "
            "order as its outputs"
        )
    return Matched(np.arange(outputs), note)


def _check_range(pictures: Pictures, outputs: int, name: str) -> None:
    wrong = np.flatnonzero((pictures.labels < 0) | (pictures.labels >= outputs))
    if len(wrong):
        row = int(wrong[0])
        raise RequestError(
            f"{pictures.places[row]}: label {int(pictures.labels[row])} is outside the head's "
            f"range of 0 to {outputs - 1} ({len(wrong)} such rows)",
            _NEW,
        )


def class_names(pictures: Pictures, others: tuple[Pictures, ...] = ()) -> tuple[str, ...]:
    """Return the names of a data set's classes; numbers where it has none."""
    if pictures.names is not None:
        return pictures.names
    largest = max(int(part.labels.max(initial=0)) for part in (pictures, *others))
    return tuple(str(number) for number in range(largest + 1))
