"""What `cd-moe-condense` checks and reads before it measures: the model, the request, the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compress.calibration.asked import read_calibration
from compress.checkpoints.anatomy import Anatomy, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import compute_dtype, resolve_device, resolve_dtype
from compress.checkpoints.source import Source
from compress.checkpoints.walk import WalkReport
from compress.data.batching import CalibrationReport
from compress.errors import RequestError
from compress.evaluation.measures import Request
from compress.experts.fewer import fewer_fields
from compress.experts.layers import ExpertLayer, find_layers
from compress.experts.searching import Step
from compress.experts.settings import (
    PAPER_LENGTH,
    CondenseSettings,
    candidates,
    check_experts,
)
from compress.jobs import request_of
from compress.progress import Progress
from compress.reports.clock import Clock

if TYPE_CHECKING:
    from compress.experts.pace import Pace

Say = Callable[[str], None]


@dataclass
class Job:
    """The model and what the steps share.

    Attributes:
        peak_bytes: largest anonymous memory (on a GPU: allocation) while layers were chosen,
            condensed, written and checked; the scores and the fine-tuning load the whole model.
    """

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
    pace: Pace | None = None
    peak_bytes: int = 0

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
    request = request_of(settings, source)
    model = skeleton(source)
    anatomy = read_anatomy(model)
    layers = find_layers(model, anatomy)
    candidates(settings.layers, layers)
    head: Any = model.get_output_embeddings() if settings.mode == "dense" else model
    if head is None and settings.metric != "js-hidden":
        raise RequestError(
            f"`{source.name}` is a `{type(model).__name__}` without a head, whose output "
            f"`--metric {settings.metric}` compares",
            "add `--metric js-hidden`",
        )
    config = source.config.get_text_config()
    experts = settings.experts
    if experts is None:
        routed = int(getattr(config, "num_experts_per_tok", 0) or 1)
        experts = routed if settings.mode == "dense" else layers[0].count // 2
    check_experts(experts, layers)
    if settings.mode != "dense":
        fewer_fields(config, layers[0], experts)
    source.check_finite(progress)
    if settings.paper and settings.seqlen is None:
        limit = source.token_limit() or PAPER_LENGTH
        settings = replace(settings, seqlen=min(PAPER_LENGTH, limit))
    return Job(source, settings, anatomy, layers, experts, request, device, progress, clock)


def load_data(job: Job, batches: Sequence[Mapping[str, Any]] | None, say: Say) -> None:
    """Take the batches given, or read and pack the calibration text."""
    found = read_calibration(
        job.source, job.settings, job.request, batches, device=job.device, progress=job.progress
    )
    job.batches, job.data = found.batches, found.report
    job.notes.extend(found.notes)
    say(found.line)
