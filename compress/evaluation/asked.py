"""The scores that a command's options ask for, of the model as it was and of what became of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from compress.checkpoints.source import Source
from compress.evaluation.measures import Measures, Request
from compress.evaluation.measuring import measure_source
from compress.evaluation.settings import EvaluationSettings
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.reports.receipt import write_atomic

WINDOW = 2048  # tokens, where neither the user nor the model says less


def measure_asked(
    source: Source,
    request: Request,
    asked: EvaluationSettings,
    *,
    device: str,
    dtype: torch.dtype | None,
    token_limit: int | None,
    clock: Clock,
    progress: Progress,
) -> Measures:
    """Score a checkpoint as a command's options ask; nothing is loaded where they ask nothing.

    Args:
        source: the checkpoint.
        request: what check_request made of the options.
        asked: the options.
        device, dtype, progress: see measure_source.
        token_limit: the model's, above which no window goes by default.
        clock: gets the time as "evaluate".
    """
    if not (asked.ppl or asked.tasks or asked.speed or request.speech):
        return Measures()
    with clock("evaluate"):
        return measure_source(
            source,
            request,
            device=device,
            dtype=dtype,
            limit=asked.limit,
            seqlen=asked.eval_seqlen or min(WINDOW, token_limit or WINDOW),
            stride=asked.stride,
            speed=asked.speed,
            seed=asked.seed,
            progress=progress,
        )


def measured_once(kept: Path, measure: Callable[[], Measures]) -> Measures:
    """Read what an interrupted run had found, or measure and keep it for the next."""
    if kept.is_file():
        return Measures.from_json(kept.read_text(encoding="utf-8"))
    found = measure()
    write_atomic(kept, found.to_json())
    return found
