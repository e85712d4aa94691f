"""What a `lowrank-svd` run is about: the model, the layers, the text, checked before all else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibration.asked import read_calibration
from compress.checkpoints.anatomy import Anatomy, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import compute_dtype, resolve_device, resolve_dtype
from compress.checkpoints.record import config_of
from compress.checkpoints.source import Source
from compress.data.batching import CalibrationReport
from compress.errors import RequestError
from compress.evaluation.measures import Request, check_request
from compress.lowrank.modules import Chosen, choose
from compress.lowrank.settings import LowRankSettings
from compress.progress import Progress
from compress.reports.clock import Clock

Say = Callable[[str], None]


@dataclass
class Job:
    """The model and what the steps share."""

    source: Source
    settings: LowRankSettings
    model: nn.Module
    """The skeleton."""
    anatomy: Anatomy
    chosen: Chosen
    request: Request
    device: str
    progress: Progress
    clock: Clock
    notes: list[str] = field(default_factory=list)
    batches: list[dict[str, Tensor]] = field(default_factory=list)
    data: CalibrationReport | None = None
    passes: float = 0.0
    peak_bytes: int = 0

    @property
    def running(self) -> torch.dtype:
        """The dtype in which blocks run."""
        asked = resolve_dtype(self.settings.dtype)
        return asked or compute_dtype(self.source.dtype, self.device)

    @property
    def options(self) -> dict[str, Any]:
        """Device and dtype of the walks."""
        running = self.running
        return {
            "device": self.device,
            "dtype": running if running != self.source.dtype else None,
        }

    def count(self, passes: float, peak_bytes: int) -> None:
        """Take note of what a walk took."""
        self.passes += passes
        self.peak_bytes = max(self.peak_bytes, peak_bytes)


def open_job(source: Source, settings: LowRankSettings, progress: Progress, clock: Clock) -> Job:
    """Check all that can be checked without calibration text, every weight included."""
    device = resolve_device(settings.device)
    resolve_dtype(settings.dtype)
    resolve_dtype(settings.factor_dtype)
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
    model = skeleton(source)
    anatomy = read_anatomy(model)
    chosen = choose(model, anatomy, settings.include, settings.exclude)
    _check_packed(model, chosen)
    source.check_finite(progress)
    job = Job(source, settings, model, anatomy, chosen, request, device, progress, clock)
    job.notes.extend(_skipped(chosen))
    return job


def load_data(job: Job, batches: Sequence[Mapping[str, Any]] | None, say: Say) -> None:
    """Take the batches given, or read and pack the calibration text, where one is needed at all."""
    if not job.settings.needs_data:
        return
    found = read_calibration(
        job.source, job.settings, job.request, batches, device=job.device, progress=job.progress
    )
    job.batches, job.data = found.batches, found.report
    job.notes.extend(found.notes)
    say(found.line)


def _check_packed(model: Any, chosen: Chosen) -> None:
    """Refuse layers whose zeros aren't stored: their files have another form."""
    config = config_of(model)
    packed = {n for n, f in (config.modules if config else {}).items() if f["kind"] == "bitmask"}
    both = sorted(packed & {m.module for m in chosen.matrices})
    if both:
        raise RequestError(
            f"`{both[0]}` is stored without its zeros, which factors have no place for",
            "`compress export MODEL -o STOCK --to stock` stores them dense; factor that",
        )


def _skipped(chosen: Chosen) -> list[str]:
    """The layers left out, by reason, in few lines."""
    reasons: dict[str, list[str]] = {}
    for name, reason in chosen.skipped:
        reasons.setdefault(reason, []).append(name)
    return [
        f"not factored: {', '.join(names[:2])}"
        + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        + f": {reason}"
        for reason, names in reasons.items()
    ]
