"""Recordings as calibration batches of a speech model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compress.checkpoints.caches import cache_directory
from compress.checkpoints.source import Source
from compress.data.audio import read_recordings
from compress.data.audio_features import feature_store
from compress.data.audio_files import Hearing, decode
from compress.errors import RequestError
from compress.evaluation.speech import frame_columns, hears_frames, open_processor
from compress.numerics.counter import permutation
from compress.progress import Progress, silent

_INPUTS = ("input_features", "input_values")


def is_speech(source: Source) -> bool:
    """Whether a checkpoint's model reads sound."""
    return source.model_class().main_input_name in _INPUTS


def speech_batches(
    source: Source,
    spec: str,
    *,
    samples: int,
    seed: int,
    resample: bool = False,
    progress: Progress = silent,
) -> list[Mapping[str, Any]]:
    """Return recordings as the arguments of a model's forward, one a batch, so without padding.

    Args:
        source: a speech model that encodes what it hears (CTC).
        spec: data spec of recordings.
        samples: how many at most, drawn without repetition.
        seed: of the draw.
        resample: convert recordings of another rate.
        progress: called along the way.

    Raises:
        RequestError: a recording can't be used; a model that also generates text.
    """
    if source.model_class().can_generate() and source.config.is_encoder_decoder:
        raise RequestError(
            f"`{source.name}` writes text while it hears; recordings alone can't calibrate it",
            "use a method that needs no data, or give `batches` from Python",
        )
    recordings = read_recordings(spec)
    drawn = permutation(seed, 0, len(recordings))[:samples]
    chosen = [recordings[int(number)] for number in drawn]
    extractor = open_processor(source).feature_extractor
    hearing = Hearing(int(extractor.sampling_rate), resample)
    if hears_frames(source.model_class()):
        cache = cache_directory() / "features"
        columns = frame_columns(source.config)
        store = feature_store(chosen, extractor, hearing, cache, **columns, progress=progress)
        return [{"input_features": _row(store[number])} for number in range(len(store))]
    found: list[Mapping[str, Any]] = []
    for recording in chosen:
        samples_1 = decode(recording, recording.read(), hearing)
        made = extractor(samples_1, sampling_rate=hearing.rate, return_tensors="pt")
        found.append({key: value for key, value in made.items() if key in _INPUTS})
    return found


def _row(features: Any) -> Tensor:
    import torch

    return torch.from_numpy(features)[None]
