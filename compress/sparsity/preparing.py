"""What `alpha-prune` checks and reads before it measures: the model, the request, the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from compress.calibration.sets import calibration_set
from compress.checkpoints.anatomy import Anatomy, Matrix, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import resolve_device, resolve_dtype
from compress.checkpoints.source import Source
from compress.data.batches import given_batches
from compress.data.batching import CalibrationReport, split_batches
from compress.data.overlap import relation
from compress.errors import RequestError
from compress.evaluation.measures import Request, check_request
from compress.numerics.ranks import Team
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.reports.headers import header_line
from compress.sparsity import planning
from compress.sparsity.settings import AlphaPruneSettings

Say = Callable[[str], None]
DEFAULT_SEQLEN = 2048


@dataclass
class Job:
    """The model and what the steps share."""

    source: Source
    settings: AlphaPruneSettings
    anatomy: Anatomy
    matrices: list[Matrix]
    request: Request
    device: str
    progress: Progress
    clock: Clock
    team: Team
    notes: list[str] = field(default_factory=list)
    batches: list[dict[str, Tensor]] = field(default_factory=list)
    held_out: list[dict[str, Tensor]] = field(default_factory=list)
    data: CalibrationReport | None = None


def open_job(
    source: Source, settings: AlphaPruneSettings, progress: Progress, clock: Clock, team: Team
) -> Job:
    """Check all that can be checked without calibration text, every weight included."""
    device = team.device(resolve_device(settings.device))
    resolve_dtype(settings.dtype)
    request = check_request(
        ppl=settings.ppl,
        tasks=settings.tasks,
        task_dirs=settings.task_dirs,
        source=source,
        seqlen=settings.eval_seqlen,
        stride=settings.stride,
        registry=settings.registry,
        seed=settings.seed,
    )
    anatomy = read_anatomy(skeleton(source))
    matrices = planning.choose_matrices(anatomy, settings.skip)
    if team.first:
        source.check_finite(progress)
    return Job(source, settings, anatomy, matrices, request, device, progress, clock, team)


def load_data(job: Job, batches: Sequence[Mapping[str, Any]] | None, say: Say) -> None:
    """Take the batches given, or read and pack the calibration text, where one is needed at all."""
    settings = job.settings
    if not settings.needs_data:
        return
    if batches is not None:
        job.batches, job.data = given_batches(batches)
        say(header_line("data", f"{job.data.windows} samples in {len(batches)} batches", ""))
        return
    limit = job.source.token_limit()
    seqlen = settings.seqlen or min(DEFAULT_SEQLEN, limit or DEFAULT_SEQLEN)
    if limit is not None and seqlen > limit:
        raise RequestError(
            f"`--seqlen {seqlen}` is above the model's limit of {limit} tokens",
            f"use `--seqlen {limit}` or less",
        )
    job.batches, job.data = job.team.from_first(
        lambda: calibration_set(
            job.source,
            settings.calib,
            samples=settings.samples + settings.held_out,
            seqlen=seqlen,
            seed=settings.seed,
            batch_size=settings.batch_size,
            held_out=settings.ppl,
            items=_items(job),
            allow_leakage=settings.allow_leakage,
            registry=settings.registry,
            doc_sampling=settings.doc_sampling,
            chat_template=settings.chat_template,
            select=settings.select,
            device=job.device,
            dtype=resolve_dtype(settings.dtype),
            progress=job.progress,
        )
    )
    if settings.held_out:
        _hold_out(job)
    job.notes.extend(_data_notes(job))
    say(
        header_line(
            "data",
            f"{settings.calib}, {settings.samples} × {seqlen} tokens, seed {settings.seed}",
            f"evaluation {', '.join([*settings.ppl, *settings.tasks])}"
            if settings.ppl or settings.tasks
            else "",
        )
    )


def _items(job: Job) -> dict[str, list[str]]:
    """The texts of the tasks' items, which calibration text is searched for."""
    if job.request.tasks is None or job.settings.allow_leakage:
        return {}
    return job.request.tasks.texts(job.settings.limit)


def _data_notes(job: Job) -> list[str]:
    """What is to be said of the calibration text: what was left out, and what is near."""
    assert job.data is not None
    data, settings, notes = job.data, job.settings, []
    if data.dropped_documents or data.dropped_windows:
        notes.append(
            f"calibration: left out {data.dropped_documents} documents and "
            f"{data.dropped_windows} windows that are also in an evaluation text"
        )
    for task, count in data.leaked.items():
        notes.append(f"calibration: left out {count} windows that hold a passage of task `{task}`")
    if data.cut:
        notes.append(f"calibration: {data.cut} examples didn't fit a window of {data.seqlen}")
    near = [
        name
        for name in (*settings.ppl, *settings.tasks)
        if relation(settings.calib, name, settings.registry) == "in-domain"
    ]
    if near:
        notes.append(
            f"calibration text is of the data set that {', '.join(near)} measures (another split)"
        )
    return notes


def _hold_out(job: Job) -> None:
    """Set the last windows aside: the first ones are those of a run that holds none out."""
    assert job.data is not None
    settings = job.settings
    job.batches, job.held_out, kept = split_batches(
        job.batches, settings.samples, settings.batch_size
    )
    job.data = dataclasses.replace(
        job.data, windows=kept.windows, tokens=kept.tokens, digest=kept.digest
    )
