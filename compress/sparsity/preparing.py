"""What `alpha-prune` checks and reads before it measures: the model, the request, the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from compress.calibration.asked import Calibration, read_calibration
from compress.checkpoints.anatomy import Anatomy, Matrix, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import resolve_device, resolve_dtype
from compress.checkpoints.source import Source
from compress.data.batching import CalibrationReport, split_batches
from compress.errors import RequestError
from compress.evaluation.measures import Request
from compress.jobs import request_of
from compress.numerics.ranks import Team
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.sparsity import planning
from compress.sparsity.settings import AlphaPruneSettings

Say = Callable[[str], None]


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
    if settings.compare_allocations and team.size > 1:
        raise RequestError(
            f"`--compare-allocations` prunes in one process, not in {team.size}",
            "run without torchrun, or each allocation by itself",
        )
    device = team.device(resolve_device(settings.device))
    resolve_dtype(settings.dtype)
    request = request_of(settings, source)
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

    def read() -> Calibration:
        return read_calibration(
            job.source,
            settings,
            job.request,
            batches,
            device=job.device,
            progress=job.progress,
            more=settings.held_out,
        )

    found = job.team.from_first(read) if batches is None else read()
    job.batches, job.data = found.batches, found.report
    if settings.held_out and batches is None:
        _hold_out(job)
    job.notes.extend(found.notes)
    say(found.line)


def _hold_out(job: Job) -> None:
    """Set the last windows aside: the first ones are those of a run that holds none out."""
    assert job.data is not None
    settings = job.settings
    job.batches, job.held_out, kept = split_batches(
        job.batches, settings.samples, settings.batch_size
    )
    job.data = dataclasses.replace(
        job.data,
        windows=kept.windows,
        tokens=kept.tokens,
        digest=kept.digest,
        rows=job.data.rows[: kept.windows],
    )
