"""Recordings as training rows, and the order in which a run takes them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.data.audio import Recording
from compress.data.audio_features import FeatureStore
from compress.errors import RequestError
from compress.evaluation.speech import pad_features
from compress.numerics.counter import permutation
from compress.training.data import Positions
from compress.training.objectives.plain import IGNORED

_GROUP = 8  # batches that are sorted by length together


class SpeechRows:
    """Recordings by number.

    Args:
        store: their features.
        labels: of each.
        kept: numbers of those that are trained on; row r is recording kept[r].
    """

    def __init__(
        self, store: FeatureStore, labels: Sequence[Sequence[int]], kept: Sequence[int]
    ) -> None:
        self.store, self.labels, self.kept = store, labels, kept

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return input_features float32 [T, F] and labels int64 [L]."""
        number = self.kept[row]
        return {
            "input_features": torch.from_numpy(self.store[number]),
            "labels": torch.tensor(self.labels[number], dtype=torch.int64),
        }

    def tokens(self, row: int) -> int:
        """Labels of a row."""
        return len(self.labels[self.kept[row]])

    def frames(self, row: int) -> int:
        """Input frames of a row."""
        return self.store.frames(self.kept[row])


class GroupedPositions(Positions):
    """A run's order in which rows of like length come together, still by counter alone.

    An epoch's random order is cut into groups of some batches; each is sorted by length, and its
    batches are put in random order. BatchNorm and attention see the padding that this spares.

    Args:
        rows: the recordings.
        total: steps * batch.
        seed: of the orders.
        batch: rows of a step.
    """

    def __init__(self, rows: SpeechRows, total: int, seed: int, batch: int) -> None:
        super().__init__(rows, total, seed)
        self.batch = batch
        self._grouped: tuple[int, np.ndarray] | None = None

    def place(self, position: int) -> tuple[int, int]:
        """Return the (row, epoch) of a position."""
        epoch, j = divmod(position, len(self.rows))
        if self._grouped is None or self._grouped[0] != epoch:
            self._grouped = epoch, self._order_of(epoch)
        return int(self._grouped[1][j]), epoch

    def _order_of(self, epoch: int) -> np.ndarray:
        rows: Any = self.rows
        assert self.seed is not None
        drawn = permutation(self.seed, epoch, len(rows))
        lengths = np.array([rows.frames(int(row)) for row in drawn])
        size = _GROUP * self.batch
        lead = min(-(epoch * len(rows)) % self.batch, len(rows))  # ends the last epoch's batch
        parts = [np.arange(lead)]
        for group, first in enumerate(range(lead, len(drawn), size)):
            inside = np.argsort(lengths[first : first + size], kind="stable") + first
            cuts = [inside[i : i + self.batch] for i in range(0, len(inside), self.batch)]
            whole = [cut for cut in cuts if len(cut) == self.batch]
            mixed = _permuted(len(whole), self.seed, epoch, group)
            parts += [whole[i] for i in mixed] + [c for c in cuts if len(c) < self.batch]
        return drawn[np.concatenate(parts)]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grouped": None}


def _permuted(count: int, seed: int, epoch: int, group: int) -> np.ndarray:
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, group)))
    return np.argsort(words.random_raw(count), kind="stable")


class SpeechCollator:
    """Stacks rows into a batch for a CTC model."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch.

        Returns:
            input_features float32 [B, T, F], attention_mask bool [B, T], labels int64 [B, L] with
            -100 behind the last of a row.
        """
        features, mask = pad_features([example["input_features"] for example in examples])
        longest = max(len(example["labels"]) for example in examples)
        labels = torch.full((len(examples), longest), IGNORED, dtype=torch.int64)
        for row, example in enumerate(examples):
            labels[row, : len(example["labels"])] = example["labels"]
        return {"input_features": features, "attention_mask": mask, "labels": labels}


def frames_needed(labels: Sequence[int]) -> int:
    """Return the frames that CTC takes for labels: one each, and a blank between equal ones."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def fitting(
    recordings: Sequence[Recording],
    store: FeatureStore,
    labels: Sequence[Sequence[int]],
    model: Any,
    *,
    drop: bool = False,
) -> list[int]:
    """Return the numbers of the recordings that are long enough for their labels.

    CTC's loss of the others is infinite, and `ctc_zero_infinity` would hide that.

    Args:
        recordings, store, labels: the set.
        model: a CTC model that shortens its input.
        drop: leave them out, instead of refusing them.

    Raises:
        RequestError: a label is longer than the CTC input; the first is named. None is left.
    """
    frames = torch.tensor([store.frames(n) for n in range(len(store))])
    lengths = model._get_subsampling_output_length(frames).tolist()
    kept = [n for n, own in enumerate(labels) if frames_needed(own) <= lengths[n]]
    if len(kept) < len(labels) and not drop:
        first = next(n for n, own in enumerate(labels) if frames_needed(own) > lengths[n])
        raise RequestError(
            f"`{recordings[first].name}`: its {len(labels[first])} labels need "
            f"{frames_needed(labels[first])} frames, and the model makes {lengths[first]} of it "
            f"({len(labels) - len(kept)} of {len(labels)} recordings are too short)",
            "add `--drop-short` to leave them out, or use longer units or a smaller "
            "subsampling_factor",
        )
    if not kept:
        raise RequestError("no recording is long enough for its transcript")
    return kept
