"""What a `lowrank-svd` run is about: the model, the layers, the text, checked before all else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
from compress.evaluation.measures import Request
from compress.jobs import request_of
from compress.lowrank.modules import Chosen, choose, units_of
from compress.lowrank.planning import check_reachable
from compress.lowrank.settings import LowRankSettings
from compress.lowrank.storable import FUSED, unstorable
from compress.lowrank.store import StatisticsStore
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
    request = request_of(
        settings, source, wer=settings.wer, resample=settings.resample, limit=settings.limit
    )
    model = skeleton(source)
    anatomy = read_anatomy(model)
    chosen = choose(model, anatomy, settings.include, settings.exclude)
    _check_packed(model, chosen)
    _check_places(source, settings)
    factor_dtype(source, settings)
    chosen = _storable(source, chosen, settings)
    units = units_of(chosen.matrices, settings.share)
    check_reachable(units, settings, source.parameters_on_disk())
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


def _storable(source: Source, chosen: Chosen, settings: LowRankSettings) -> Chosen:
    """Leave out the layers whose factors the family's files can't hold."""
    found = unstorable(source, units_of(chosen.matrices, settings.share))
    if not found:
        return chosen
    kept = tuple(m for m in chosen.matrices if m.name not in found)
    if not kept:
        raise RequestError(
            f"no layer is left to be factored: {FUSED}", "`compress inspect MODEL` lists the layers"
        )
    return Chosen(kept, (*chosen.skipped, *found.items()))


def factor_dtype(source: Source, settings: LowRankSettings) -> torch.dtype:
    """The dtype that factors are stored in.

    Raises:
        RequestError: it is wider than the model's, to which loading would cast it.
    """
    whole = resolve_dtype(settings.dtype) or source.dtype
    own = resolve_dtype(settings.factor_dtype) or whole
    if own.itemsize > whole.itemsize:
        raise RequestError(
            f"`--factor-dtype {settings.factor_dtype}` is wider than the model's "
            f"{str(whole).removeprefix('torch.')}, to which every load would cast it",
            "give `--dtype` for the whole model",
        )
    return own


def _check_places(source: Source, settings: LowRankSettings) -> None:
    """Refuse places of statistics that can't be used."""
    if settings.load_stats is not None:
        StatisticsStore(Path(settings.load_stats), reads_only=True).check(source.digest())
    if settings.save_stats is None:
        return
    place = Path(settings.save_stats)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RequestError(
            f"`--save-stats {place}` is there already", "choose a new directory, or --load-stats it"
        )
    if not place.absolute().parent.is_dir():
        raise RequestError(f"`--save-stats {place}`: its directory doesn't exist")


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
