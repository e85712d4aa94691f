"""One group after another: pruned, scored, written down."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.checkpoints.shards import ShardWriter
from compress.progress import Progress, silent
from compress.sparsity.branches import Branch
from compress.study.cells import REPEAT, Cell, Group, content_key
from compress.study.journal import FAILED, SKIPPED, Journal, Outcome
from compress.study.preparing import Calibration, Subject, content_of
from compress.study.pruning import digest_of, one_line, prune_branches, stops_all
from compress.study.scoring import Scorer
from compress.study.settings import StudySettings


class Worker:
    """Works on the groups of a study, in the directory that they share.

    Args:
        subjects: the models by name.
        settings: the study's.
        place: of the journal and of what is being pruned.

    Attributes:
        passes: of all walks so far, each in passes over its own calibration set.
    """

    def __init__(
        self, subjects: Mapping[str, Subject], settings: StudySettings, place: Path
    ) -> None:
        self._subjects, self._settings, self._place = subjects, settings, place
        self._journal = Journal(place / "cells")
        self._scorers: dict[str, Scorer] = {}
        self._scored: dict[str, Outcome] = {}  # by digest of the pruned weights
        self.passes = 0.0

    def known(self, group: Group, calibration: Calibration) -> dict[Cell, Outcome]:
        """The cells of a group that are finished."""
        keys = self._keys(group, calibration)
        data = calibration.as_dict()
        found = {cell: self._journal.get(cell, key, data) for cell, key in keys.items()}
        return {cell: outcome for cell, outcome in found.items() if outcome is not None}

    def state(self, group: Group, calibration: Calibration) -> list[Outcome]:
        """What is known of each cell of a group; what was never begun is skipped."""
        known, data = self.known(group, calibration), calibration.as_dict()
        keys = self._keys(group, calibration)
        return [
            known.get(cell)
            or self._journal.failure(cell, keys[cell], data)
            or Outcome(cell, keys[cell], SKIPPED, data=data)
            for cell in group.cells
        ]

    def plain(self) -> tuple[Mapping[str, Subject], StudySettings, Path]:
        """What makes an equal worker in another process."""
        return self._subjects, self._settings, self._place

    def work(self, group: Group, calibration: Calibration, progress: Progress = silent) -> None:
        """Prune and score the cells of a group that aren't finished."""
        known, keys = self.known(group, calibration), self._keys(group, calibration)
        waiting = {cell: key for cell, key in keys.items() if cell not in known}
        if waiting:
            # Named by content, so that what a killed run left can't be taken for another's.
            place = self._place / "walks" / _name(min(keys.values()))
            self._work(calibration, waiting, place, progress)
            shutil.rmtree(place, ignore_errors=True)

    def scorer(self, model: str) -> Scorer:
        """What scores a model's versions; models are scored one at a time."""
        if model not in self._scorers:
            self._scorers.clear()  # the one before it is let go
            self._scorers[model] = Scorer(self._subjects[model], self._settings)
        return self._scorers[model]

    def _keys(self, group: Group, calibration: Calibration) -> dict[Cell, str]:
        subject = self._subjects[group.model]
        return {
            cell: content_key(cell, content_of(subject, calibration, cell, self._settings))
            for cell in group.cells
        }

    def _work(
        self,
        calibration: Calibration,
        waiting: Mapping[Cell, str],
        place: Path,
        progress: Progress,
    ) -> None:
        start = time.perf_counter()
        subject, data = self._subjects[next(iter(waiting)).model], calibration.as_dict()
        names = {cell: _name(key) for cell, key in waiting.items()}
        branches = {}
        for cell, key in waiting.items():
            try:
                branches[names[cell]] = self._branch(subject, cell, calibration, progress)
            except Exception as error:
                self._fail(cell, key, data, error)
        found = prune_branches(
            subject,
            calibration.batches,
            branches,
            place,
            dense=self._settings.stats == "dense",
            progress=progress,
        )
        self.passes += found.passes
        share = (time.perf_counter() - start) / len(waiting)
        for cell, key in waiting.items():
            if names[cell] in found.errors:
                self._journal.add(
                    Outcome(cell, key, FAILED, data=data, error=found.errors[names[cell]])
                )
            elif names[cell] in found.parts:
                self._score(cell, key, data, found.parts[names[cell]], share, progress)

    def _branch(
        self, subject: Subject, cell: Cell, calibration: Calibration, progress: Progress
    ) -> Branch:
        targets = subject.targets(cell.setting, self._settings, calibration.batches, progress)
        options = {
            "damp": self._settings.damp,
            "block_size": self._settings.block_size,
            "stored": subject.stored,
        }
        return Branch(targets, cell.setting.method, options)

    def _fail(self, cell: Cell, key: str, data: Mapping[str, Any], error: Exception) -> None:
        if stops_all(error):
            raise error
        self._journal.add(Outcome(cell, key, FAILED, data=data, error=one_line(error)))

    def _score(
        self,
        cell: Cell,
        key: str,
        data: Mapping[str, Any],
        parts: ShardWriter,
        spent: float,
        progress: Progress,
    ) -> None:
        """Score pruned weights, once for all cells that have the same."""
        start = time.perf_counter()
        digest = digest_of(self._subjects[cell.model], parts)
        twin = None if cell.control == REPEAT else self._scored.get(digest)
        if twin is not None:
            self._journal.add(replace(twin, cell=cell, key=key, data=data, seconds=spent))
            return
        try:
            measures = self.scorer(cell.model).score(parts, progress)
        except Exception as error:
            self._fail(cell, key, data, error)
            return
        seconds = spent + time.perf_counter() - start
        outcome = Outcome.of(cell, key, digest, measures, data=data, seconds=seconds)
        self._journal.add(outcome)
        self._scored[digest] = outcome


def _name(key: str) -> str:
    """A file name of a content key."""
    return key.removeprefix("sha256:")[:32]
