"""What `alpha-prune` checks and reads before it measures: the model, the request, the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Anatomy, Matrix, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import resolve_device, resolve_dtype
from compress.checkpoints.source import Source
from compress.data.batches import given_batches
from compress.data.packing import CalibrationReport, prepare_calibration, token_digest
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
    tokenizer = job.source.tokenizer()
    if tokenizer is None:
        raise RequestError(
            f"`{job.source.name}` has no tokenizer, which the text of --calib needs",
            "copy the tokenizer files into it, or use --method magnitude, which needs no text",
        )
    limit = job.source.token_limit()
    seqlen = settings.seqlen or min(DEFAULT_SEQLEN, limit or DEFAULT_SEQLEN)
    if limit is not None and seqlen > limit:
        raise RequestError(
            f"`--seqlen {seqlen}` is above the model's limit of {limit} tokens",
            f"use `--seqlen {limit}` or less",
        )
    job.batches, job.data = job.team.from_first(
        lambda: prepare_calibration(
            settings.calib,
            tokenizer,
            samples=settings.samples + settings.held_out,
            seqlen=seqlen,
            seed=settings.seed,
            batch_size=settings.batch_size,
            held_out=settings.ppl,
        )
    )
    if settings.held_out:
        _hold_out(job)
    if job.data.dropped_documents or job.data.dropped_windows:
        job.notes.append(
            f"calibration: left out {job.data.dropped_documents} documents and "
            f"{job.data.dropped_windows} windows that are also in an evaluation text"
        )
    say(
        header_line(
            "data",
            f"{settings.calib}, {settings.samples} × {seqlen} tokens, seed {settings.seed}",
            f"evaluation {', '.join([*settings.ppl, *settings.tasks])}"
            if settings.ppl or settings.tasks
            else "",
        )
    )


def _hold_out(job: Job) -> None:
    """Set the last windows aside: the first ones are those of a run that holds none out."""
    assert job.data is not None
    settings = job.settings
    windows = torch.cat([batch["input_ids"] for batch in job.batches])
    kept, held = windows[: settings.samples], windows[settings.samples :]
    size = settings.batch_size
    job.batches = [{"input_ids": part} for part in kept.split(size)]
    job.held_out = [{"input_ids": part} for part in held.split(size)]
    job.data = dataclasses.replace(
        job.data, windows=len(kept), tokens=kept.numel(), digest=token_digest(kept)
    )
