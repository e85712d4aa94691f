"""`calib-study` from models and corpora to a receipt: check, draw, prune, score, compare."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.backends import require_backend
from compress.checkpoints.save import named_places
from compress.checkpoints.workspace import check_output
from compress.errors import RequestError, check_options
from compress.progress import Progress, silent
from compress.reports.clock import Clock
from compress.reports.notebook import Displayable
from compress.reports.receipt import Receipt
from compress.sparsity.preparing import Say
from compress.study.calibrating import calibrations
from compress.study.cells import groups_of, of_shard
from compress.study.preparing import draw_all, open_subject
from compress.study.running import Study, headers
from compress.study.settings import StudySettings

Model = str | Path | PreTrainedModel


@dataclasses.dataclass(frozen=True)
class StudyResult(Displayable):
    """What `calib_study` did.

    Attributes:
        receipt: cells, comparisons and answers; None after a dry run.
        output: the directory written; None after a dry run.
        estimate: of a dry run: cells, passes, time.
    """

    receipt: Receipt | None = None
    output: Path | None = None
    estimate: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The receipt, or the estimate of a dry run, as JSON types."""
        return dict(self.estimate) if self.receipt is None else self.receipt.as_dict()

    def render(self) -> str:
        """The receipt, or the estimate of a dry run, as tables for people."""
        if self.receipt is None:
            from compress.study.estimate import estimate_table

            return estimate_table(self.estimate)
        from compress.reports.study import study_tables

        return study_tables(self.receipt.as_dict(), output=self.output)


def calib_study(
    models: Model | Sequence[Model],
    output: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    say: Say = lambda text: None,
    **options: Any,
) -> StudyResult:
    """Find the calibration data that prunes best, or that none does.

    Args:
        models: a directory, a Hub id or a model in memory, or several.
        output: the directory to make: grid.jsonl, items.parquet, receipt.json, cells.csv, pictures
            and report.html.
        tokenizer: of the models in memory.
        dry_run: say how many cells there are and how long they would take; write nothing.
        resume: go on from an interrupted run's journal in `OUT.partial`.
        overwrite: replace a non-empty output, at the end.
        revision, token, trust_remote_code: of Hub models.
        progress, say: told where the study stands; say gets lines for the reader.
        options: fields of StudySettings, such as calib, methods, sparsity, seeds, ppl.

    Returns:
        The receipt and where the study lies.

    Raises:
        RequestError: something about the request is wrong; nothing was written.
        RunError: every cell failed, or the disk is full; what was finished is kept for `resume`.

    Source: Bandari et al., arXiv:2410.07461; the statistics follow Bouthillier et al.,
        arXiv:2103.03098.
    """
    settings = _settings(options)
    if output is None and not dry_run:
        raise RequestError("no output directory", "add `-o OUT`, or `--dry-run` to see the cost")
    require_backend(settings.backend)
    calib, reference = calibrations(settings)
    given = [models] if isinstance(models, Model) else list(models)
    with contextlib.ExitStack() as stack:
        clock = Clock()
        with clock("load"):
            where = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
            paths = dict(named_places(given, tokenizer, stack))
            names = list(paths)
            subjects = {
                name: open_subject(str(path), settings, progress, **where)
                for name, path in paths.items()
            }
        if output is not None:
            for subject in subjects.values():
                check_output(output, overwrite=overwrite or resume, source=subject.source.directory)
        groups = of_shard(groups_of(names, list(calib), reference, settings), settings.shard)
        if not groups:
            part = settings.shard and "`--shard {}/{}` is empty".format(*settings.shard)
            raise RequestError(
                f"{part}: there are fewer groups" if part else "the study has no cells"
            )
        with clock("measure"):
            sets = draw_all(subjects, groups, settings, progress)
        for line in headers(subjects, calib, reference, settings, groups):
            say(line)
        if dry_run or output is None:
            from compress.study.estimate import estimate

            return StudyResult(estimate=estimate(subjects, groups, sets, settings))
        study = Study(
            names, calib, reference, settings, subjects, groups, sets, clock, progress, say
        )
        return StudyResult(study.run(Path(output), resume, overwrite), Path(output))


def _settings(options: Mapping[str, Any]) -> StudySettings:
    known = {f.name: f for f in dataclasses.fields(StudySettings)}
    check_options("calib_study", options, known)
    given = dict(options)
    for name, value in given.items():  # lists and single values are as good as tuples
        if str(known[name].type).startswith("tuple[") and "None" not in str(known[name].type):
            whole = isinstance(value, (list, tuple))
            given[name] = tuple(value) if whole else (value,)
    settings = StudySettings(**given)
    settings.check()
    return settings
