"""A checked study carried out: group by group, then compared, written and put in place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compress.checkpoints.durable import write_json
from compress.checkpoints.workspace import Workspace
from compress.data import Mix
from compress.errors import RunError
from compress.evaluation.asked import measured_once
from compress.evaluation.measures import Measures
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.reports.headers import header_line, model_line
from compress.reports.receipt import Receipt
from compress.reports.study_files import write_report
from compress.sparsity.preparing import Say
from compress.study.answers import answer
from compress.study.backends import run_groups
from compress.study.calibrating import same_data
from compress.study.cells import Group
from compress.study.journal import FAILED, OK, SKIPPED, Journal, Outcome, write_grid, write_items
from compress.study.outcomes import Grid
from compress.study.predicting import LEAST, agreement, first_draws, predictions
from compress.study.preparing import Sets, Subject
from compress.study.settings import StudySettings
from compress.study.verdict import verdict
from compress.study.working import Worker

COMMAND = "calib-study"
# What may differ between an interrupted run and the one that goes on with it.
_FREE = ("budget", "backend", "reuse", "bootstrap", "predictors")


@dataclass
class Study:
    """A study whose request is checked and whose calibration sets are drawn.

    Attributes:
        models: names of the subjects, in order.
        calib: the calibration sets.
        reference: the one that the others are compared with.
        settings, subjects, groups, sets: what is to be done.
        clock, progress, say: where the time goes and who hears of it.
    """

    models: list[str]
    calib: Mapping[str, Mix]
    reference: str
    settings: StudySettings
    subjects: Mapping[str, Subject]
    groups: Sequence[Group]
    sets: Sets
    clock: Clock
    progress: Progress
    say: Say

    def run(self, output: Path, resume: bool, overwrite: bool) -> Receipt:
        """Work on every group, compare, and put the result in place.

        Raises:
            RequestError: the output can't be used, or there is nothing to resume.
            RunError: no cell could be pruned and scored.
        """
        with Workspace.open(
            output, overwrite=overwrite, resume=resume, fingerprint=self._fingerprint()
        ) as workspace:
            if workspace.committed:
                workspace.discard()
                return Receipt.read(output)
            place = workspace.path
            for study in self.settings.reuse:
                taken = Journal(place / "cells").take(Path(study))
                self.say(header_line("reuse", f"{taken} cells of {study}"))
            with self.clock("apply"):
                outcomes, passes = self._work(place)
            with self.clock("evaluate"):
                dense = self._dense(place)
            with self.clock("predict"):
                predicted = self._predict(outcomes, place)
            with self.clock("compare"):
                receipt = self._receipt(outcomes, dense, passes, predicted)
            with self.clock("save"):
                self._write(workspace.result, outcomes, receipt)
                workspace.commit()
            return receipt

    def _work(self, place: Path) -> tuple[list[Outcome], float]:
        """All cells' outcomes in the order of the study, and the passes of the walks."""
        worker = Worker(self.subjects, self.settings, place)
        waiting = [g for g in self.groups if len(worker.known(g, self._set(g))) < len(g.cells)]
        start = time.perf_counter()
        total, done = sum(len(g.cells) for g in waiting), 0
        for group, number in run_groups(worker, waiting, self._set, self.settings, self.progress):
            done += len(group.cells)
            self.progress("cells", done, total, f"{group.calib}, seed {group.seed}")
            spent = time.perf_counter() - start
            if self.settings.budget and spent * (number + 2) / (number + 1) > self.settings.budget:
                break
        self.progress("cells", total, total)
        outcomes = list(self._outcomes(worker))
        if not any(o.status == OK for o in outcomes):
            failed = [o.error for o in outcomes if o.status == FAILED]
            raise RunError(
                f"none of the {len(outcomes)} cells could be scored: "
                f"{failed[0] if failed else 'none was begun'}",
                "what was finished is kept: add `--resume`",
            )
        return outcomes, worker.passes

    def _outcomes(self, worker: Worker) -> Iterator[Outcome]:
        for group in self.groups:
            yield from worker.state(group, self._set(group))

    def _set(self, group: Group) -> Any:
        return self.sets[group.model, group.calib, group.seed]

    def _dense(self, place: Path) -> dict[str, Measures]:
        """The scores of the models as they are."""
        worker = Worker(self.subjects, self.settings, place)
        found = {}
        for number, name in enumerate(self.models):
            kept = place / f"dense{number}.json"
            found[name] = measured_once(kept, partial(_score_dense, worker, name))
        return found

    def _predict(self, outcomes: Sequence[Outcome], place: Path) -> list[dict[str, Any]]:
        """How well cheap predictors would have ranked the sets; nothing where that isn't asked."""
        rows = []
        wanted = self.settings.predictors and len(self.calib) >= LEAST
        for number, name in enumerate(self.models if wanted else ()):
            kept = place / f"predictors{number}.json"
            if not kept.is_file():
                draws = first_draws(self.sets, name, list(self.calib))
                made = predictions(self.subjects[name], draws, self.settings, self.progress)
                write_json(kept, made)
            grid = Grid.of([o for o in outcomes if o.cell.model == name])
            found = json.loads(kept.read_text(encoding="utf-8"))
            rows += [{"model": name, **row} for row in agreement(grid, found)]
        return rows

    def _fingerprint(self) -> dict[str, Any]:
        options = {k: v for k, v in self.settings.as_dict().items() if k not in _FREE}
        models = {name: subject.source.digest() for name, subject in self.subjects.items()}
        return {"command": COMMAND, "models": models, "options": options}

    def _receipt(
        self,
        outcomes: Sequence[Outcome],
        dense: Mapping[str, Measures],
        passes: float,
        predicted: Sequence[Mapping[str, Any]],
    ) -> Receipt:
        good = [o for o in outcomes if o.status == OK]
        found = answer(
            outcomes,
            self.reference,
            {name: mix.name for name, mix in self.calib.items()},
            resamples=self.settings.bootstrap,
            seed=self.settings.seed,
            domains=same_data(self.calib, self.settings),
        )
        comparison = found.pop("comparison")
        first = self.models[0]
        source = self.subjects[first].source
        measures = {name: found_.as_receipt() for name, found_ in dense.items()}
        return Receipt.build(
            COMMAND,
            seed=self.settings.seed,
            device=self.subjects[first].device,
            status="ok" if len(good) == len(outcomes) else "partial",
            settings={**self.settings.as_dict(), "reference": self.reference},
            model={
                "source": source.name,
                "architecture": source.model_class().__name__,
                "digest": source.digest(),
            },
            before=measures[first],
            models=measures if len(self.models) > 1 else None,
            cells=self._lines(outcomes),
            comparison=comparison,
            **found,
            predictors=predicted,
            verdict=verdict(found, comparison, outcomes, self.settings, self.reference),
            cost={"seconds": self.clock.seconds, "passes": passes or None},
            notes=self._notes(outcomes),
        )

    def _lines(self, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
        formats = {name: mix.format for name, mix in self.calib.items()}
        return [o.line(formats.get(o.cell.calib, "raw")) for o in outcomes]

    def _notes(self, outcomes: Sequence[Outcome]) -> list[str]:
        notes = []
        if self.settings.stats == "dense":
            notes.append(
                "--stats dense: the statistics of all blocks come from one pass of the dense "
                "model, an approximation: later blocks don't see what pruning the earlier ones did"
            )
        for status, words in ((FAILED, "failed"), (SKIPPED, "were left out: the budget was spent")):
            count = sum(o.status == status for o in outcomes)
            if count:
                notes.append(f"{count} of {len(outcomes)} cells {words}")
        seeds = len({o.cell.seed for o in outcomes if o.status == OK})
        if seeds == 1:
            notes.append("one seed: the noise of drawing another calibration set is not included")
        elif seeds < 3:
            notes.append(f"{seeds} seeds: too few for narrow intervals; use 5")
        if self.settings.shard is not None:
            i, n = self.settings.shard
            notes.append(
                f"shard {i} of {n}: run the study without --shard and with --reuse of all shards "
                "to join them"
            )
        return notes

    def _write(self, place: Path, outcomes: Sequence[Outcome], receipt: Receipt) -> None:
        write_grid(place, self._lines(outcomes))
        write_items(place, outcomes)
        receipt.write(place)
        write_report(place, receipt.as_dict())


def _score_dense(worker: Worker, model: str) -> Measures:
    return worker.scorer(model).score(None)


def headers(
    subjects: Mapping[str, Subject],
    calib: Mapping[str, Mix],
    reference: str,
    settings: StudySettings,
    groups: Sequence[Group],
) -> Iterator[str]:
    """The lines that open a study."""
    for subject in subjects.values():
        source = subject.source
        yield model_line(
            source.name,
            source.config.model_type,
            len(subject.anatomy.blocks),
            source.parameters_on_disk(),
            str(source.dtype).removeprefix("torch."),
        )
    seqlen = next(iter(subjects.values())).seqlen
    yield header_line(
        "data",
        f"{len(calib)} sets, {settings.samples} × {seqlen} tokens, {settings.seeds} seeds",
        f"reference {reference}",
    )
    cells = [cell for group in groups for cell in group.cells]
    controls = sum(cell.control != "" for cell in cells)
    yield header_line(
        "grid",
        f"{len(cells)} cells ({controls} of them controls) in {len(groups)} walks",
        ", ".join(setting.label for setting in settings.settings),
        f"{settings.stats} statistics",
    )
