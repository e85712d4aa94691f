"""Measures one model: in memory, or a checkpoint that is loaded for it and let go."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compress.checkpoints.placement import compute_dtype
from compress.checkpoints.source import Source
from compress.errors import RequestError
from compress.evaluation.error_rates import CHARACTERS, WORDS
from compress.evaluation.long_context.running import run_long_tasks
from compress.evaluation.measures import Measures, Request, check_request
from compress.evaluation.perplexity import context_limit, perplexity
from compress.evaluation.speech import open_processor, score_speech
from compress.evaluation.speed import measure_speed
from compress.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    ppl: str | Sequence[str] = (),
    tasks: Sequence[str] = (),
    task_dirs: Sequence[str | Path] = (),
    limit: int | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    speed: bool = False,
    batch_size: int = 1,
    task_batch_size: int = 16,
    seed: int = 0,
    request: Request | None = None,
    progress: Progress = silent,
) -> Measures:
    """Measure a model in memory.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: of the model; None suits a measure of speed alone.
        ppl: data specs.
        tasks, task_dirs: names of tasks, and directories of own ones of lm-eval.
        limit: at most so many windows a text and items a task.
        seqlen, stride: of the perplexity; see perplexity().
        speed: measure speed and memory too.
        batch_size, task_batch_size: windows and task requests run at once.
        seed: of the speed prompt.
        request: what check_request returned, in place of ppl, tasks and task_dirs.
        progress: called along the way.

    Raises:
        RequestError, RunError: as perplexity, TaskSet and measure_speed.
    """
    request = request or check_request(ppl=ppl, tasks=tasks, task_dirs=task_dirs, seed=seed)
    if tokenizer is None and request.scores_text:
        raise RequestError("perplexity and tasks need a tokenizer, and the model has none")
    perplexities = {
        spec: perplexity(
            model,
            tokenizer,
            documents,
            seqlen=seqlen,
            stride=stride,
            limit=limit,
            batch_size=batch_size,
            progress=progress,
        )
        for spec, documents in request.texts.items()
    }
    scores = {}
    if request.tasks is not None:
        scores = request.tasks.run(
            model, tokenizer, limit=limit, batch_size=task_batch_size, progress=progress
        )
    if request.long is not None:
        most = request.token_limit if request.token_limit is not None else context_limit(model)
        scores |= run_long_tasks(
            request.long,
            model,
            tokenizer,
            token_limit=most,
            limit=limit,
            batch_size=task_batch_size,
            progress=progress,
        )
    timed = measure_speed(model, seed=seed, progress=progress) if speed else None
    return Measures(perplexities, scores, timed)


def measure_source(
    source: Source,
    request: Request,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    limit: int | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    speed: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Measures:
    """Load a checkpoint, measure it, and let it go.

    Quality is computed in float32 where the CPU has no 16-bit arithmetic (`compute_dtype`); speed
    is always that of the weights' own dtype.

    Args:
        source: the checkpoint.
        request: what check_request returned.
        device: where it runs.
        dtype: of the weights; None is the one on disk.
        limit, seqlen, stride, speed, seed, progress: see measure.
    """
    stored = dtype or source.dtype
    running = compute_dtype(stored, device, source.bytes_on_disk())
    found = Measures()
    if request.scores_text:
        model = source.load(dtype if running == stored else running, device)
        found = measure(
            model,
            source.tokenizer(),
            limit=limit,
            seqlen=seqlen,
            stride=stride,
            seed=seed,
            request=request,
            progress=progress,
        )
        del model
        gc.collect()  # the next model needs the room
    if request.speech:
        model = source.load(dtype if running == stored else running, device)
        rates = score_speech(
            model,
            open_processor(source),
            request.speech,
            resample=request.resample,
            limit_seconds=request.max_seconds,
            progress=progress,
        )
        found = replace(found, wer=rates[WORDS], cer=rates[CHARACTERS])
        del model
        gc.collect()
    if speed:
        model = source.load(dtype, device)
        found = replace(found, speed=measure_speed(model, seed=seed, progress=progress))
        del model
        gc.collect()
    return found
