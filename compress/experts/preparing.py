"""What `cd-moe-condense` checks and reads before it measures: the model, the request, the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from compress.calibration.sets import calibration_set
from compress.checkpoints.anatomy import Anatomy, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import compute_dtype, resolve_device, resolve_dtype
from compress.checkpoints.source import Source
from compress.checkpoints.walk import WalkReport
from compress.data.batches import given_batches
from compress.data.batching import CalibrationReport
from compress.errors import RequestError
from compress.evaluation.measures import Request, check_request
from compress.experts.fewer import fewer_fields
from compress.experts.layers import ExpertLayer, find_layers
from compress.experts.searching import Step
from compress.experts.settings import CondenseSettings, candidates, check_experts
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.reports.headers import header_line

Say = Callable[[str], None]
DEFAULT_SEQLEN = 2048


@dataclass
class Job:
    """The model and what the steps share."""

    source: Source
    settings: CondenseSettings
    anatomy: Anatomy
    layers: list[ExpertLayer]
    experts: int
    request: Request
    device: str
    progress: Progress
    clock: Clock
    notes: list[str] = field(default_factory=list)
    batches: list[dict[str, Tensor]] = field(default_factory=list)
    data: CalibrationReport | None = None
    walked: WalkReport = field(default_factory=WalkReport)
    steps: list[Step] = field(default_factory=list)
    usage: dict[str, list[float]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Device, dtype and progress of the walks."""
        dtype = resolve_dtype(self.settings.dtype)
        running = dtype or compute_dtype(self.source.dtype, self.device)
        return {
            "device": self.device,
            "dtype": running if running != self.source.dtype else None,
        }

    @property
    def final_norm(self) -> str | None:
        """The norm behind the last block."""
        return self.anatomy.final_norms[-1] if self.anatomy.final_norms else None


def open_job(source: Source, settings: CondenseSettings, progress: Progress, clock: Clock) -> Job:
    """Check all that can be checked without calibration text, every weight included."""
    device = resolve_device(settings.device)
    resolve_dtype(settings.dtype)
    request = check_request(
        ppl=settings.ppl,
        tasks=settings.tasks,
        task_dirs=settings.task_dirs,
        source=source,
        seqlen=settings.eval_seqlen,
        stride=settings.stride,
    )
    model = skeleton(source)
    anatomy = read_anatomy(model)
    layers = find_layers(model, anatomy)
    candidates(settings.layers, layers)
    config = source.config.get_text_config()
    experts = settings.experts
    if experts is None:
        routed = int(getattr(config, "num_experts_per_tok", 0) or 1)
        experts = routed if settings.mode == "dense" else layers[0].count // 2
    check_experts(experts, layers)
    if settings.mode != "dense":
        fewer_fields(config, layers[0], experts)
    source.check_finite(progress)
    return Job(source, settings, anatomy, layers, experts, request, device, progress, clock)


def load_data(job: Job, batches: Sequence[Mapping[str, Any]] | None, say: Say) -> None:
    """Take the batches given, or read and pack the calibration text."""
    settings = job.settings
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
    job.batches, job.data = calibration_set(
        job.source,
        settings.calib,
        samples=settings.samples,
        seqlen=seqlen,
        seed=settings.seed,
        batch_size=settings.batch_size,
        held_out=settings.ppl,
        device=job.device,
        dtype=resolve_dtype(settings.dtype),
        progress=job.progress,
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
