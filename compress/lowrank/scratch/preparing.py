"""All that a run from scratch needs before it writes, checked and in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.checkpoints.placement import resolve_device, resolve_dtype
from compress.data.audio import read_recordings
from compress.evaluation.measures import check_request
from compress.lowrank.scratch.factoring import Factored, factor
from compress.lowrank.scratch.jobs import LowRankJob, SpeechJob
from compress.lowrank.scratch.settings import ScratchSettings
from compress.lowrank.scratch.start import build_speech, is_speech, open_speech
from compress.lowrank.scratch.tokens import encode_texts
from compress.numerics.ranks import Team
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.training import arguments
from compress.training.norms import NORMS
from compress.training.preparing import Say, prepare, watch_spikes

_FRESH_LR, _TRAINED_LR = 1e-3, 1e-4
_AT_ONCE = 64  # recordings; BatchNorm's statistics are those of what is computed at once


def prepare_scratch(
    door: str,
    model: str | Path | None,
    settings: ScratchSettings,
    *,
    team: Team,
    progress: Progress,
    say: Say,
    **source: Any,
) -> LowRankJob:
    """Check a request and make its model; writes nothing.

    Raises:
        RequestError: something about the request is wrong.
    """
    settings.check(tuple(NORMS))
    common: dict[str, Any] = {"team": team, "progress": progress, "say": say}
    if is_speech(model, settings, **source):
        return _prepare_speech(door, model, settings, **common, **source)
    settings.check_text()
    settings = replace(settings, start=settings.start or "family")
    made: list[Factored] = []
    job = prepare(
        door,
        model,
        settings,
        kind=LowRankJob,
        change=lambda built, start: made.append(factor(built, start, settings)),
        **common,
        **source,
    )
    assert isinstance(job, LowRankJob)
    job.take(made[0])
    return job


def _prepare_speech(
    door: str,
    model: str | Path | None,
    settings: ScratchSettings,
    *,
    team: Team,
    progress: Progress,
    say: Say,
    **source: Any,
) -> SpeechJob:
    settings.check_speech()
    device = resolve_device(settings.device)
    resolve_dtype(settings.dtype)
    arguments.check_device(settings, device)
    team.device(device)
    own = max(settings.batch_size // team.size, 1)
    micro = settings.micro_batch or (own if own <= _AT_ONCE else None)
    arrangement = arguments.arrange(settings.batch_size, team.size, micro, device)
    sets = {"train": read_recordings(settings.data)}
    if settings.valid:
        sets["valid"] = read_recordings(settings.valid, "evaluation")
    clock = Clock()
    with clock("load"):
        start = open_speech(model, settings, sets["train"], **source)
        settings = _fill_in(settings, start.fresh)
        request = check_request(
            wer=settings.wer,
            source=start.source,
            resample=settings.resample,
            max_seconds=settings.max_seconds,
            limit=settings.limit,
        )
        blank, tokenizer = start.config.pad_token_id, start.tokenizer.tokenizer
        labels = {role: encode_texts(own, tokenizer, blank) for role, own in sets.items()}
        for recordings in request.speech.values() if start.fresh else ():
            encode_texts(recordings, tokenizer, blank)
        if team.first and start.source is not None:
            start.source.check_finite(progress)
        built = build_speech(start, settings)
        factored = factor(built, start, settings)
    notes: list[str] = []
    watched = watch_spikes(settings, built, notes)
    job = SpeechJob(
        door, watched, start, built, None, request, team, device, arrangement, progress, say,
        clock=clock, notes=notes, sets=sets, labels=labels,
    )  # fmt: skip
    encoder: Any = start.config.encoder_config
    if start.fresh and encoder.layerdrop:
        job.notes.append("layerdrop of the config is 0 here: no layer is left out at random")
    job.take(factored)
    return job


def _fill_in(settings: ScratchSettings, fresh: bool) -> ScratchSettings:
    lr = settings.lr if settings.lr is not None else _FRESH_LR if fresh else _TRAINED_LR
    start = settings.start or ("reset" if fresh else None)
    return replace(settings, lr=lr, start=start, betas=settings.moments)
