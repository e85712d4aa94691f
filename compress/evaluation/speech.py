"""Transcribe recordings with a speech model, and count its errors.

Models with a CTC head write the most probable symbol of every frame; frames that are padding count
as blanks, else they would become insertions. Models that generate (Whisper) do so greedily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.caches import cache_directory
from compress.checkpoints.configs import first_line
from compress.checkpoints.source import Source
from compress.data.audio import Recording, read_recordings
from compress.data.audio_features import FeatureStore, feature_store
from compress.data.audio_files import Hearing, decode
from compress.data.specs import parse_spec
from compress.errors import RequestError
from compress.evaluation.error_rates import CHARACTERS, WORDS, ErrorRate, error_rate
from compress.evaluation.shown import Shown, head
from compress.progress import Progress, silent

VISUAL = "visual_features"
"""The config's entry of a model whose frames carry so many visual features behind the log-mel.

The model is the same architecture with wider frames: `num_mel_bins` counts them, and columns of 0
behind that make it a multiple of the subsampling.
"""
_MOST_FRAMES = 12_000  # in a batch, padding among them
_MOST_TOKENS = 440  # of a generated transcript


def read_speech(specs: str | Sequence[str], limit: int | None = None) -> dict[str, list[Recording]]:
    """List the recordings of data specs by spec, those of the evaluation split.

    Raises:
        RequestError: as read_recordings.
    """
    found = parse_spec(specs)
    return {spec.text: read_recordings(spec, "evaluation", limit) for spec in found}


def check_speech_model(source: Source) -> None:
    """Refuse a model that doesn't transcribe.

    Raises:
        RequestError: no CTC or generating speech model, or no processor beside it.
    """
    kind = source.model_class()
    writes = kind.__name__.endswith("ForCTC") or kind.can_generate()
    if not writes or kind.main_input_name not in ("input_features", "input_values"):
        raise RequestError(
            f"`{source.name}` is a `{kind.__name__}`; word error rates need a speech model",
            "such as ParakeetForCTC, Wav2Vec2ForCTC or WhisperForConditionalGeneration",
        )
    open_processor(source)


def open_processor(source: Source) -> Any:
    """Return a checkpoint's processor: feature extractor and tokenizer.

    Raises:
        RequestError: there is none, or it can't be used.
    """
    from transformers import AutoProcessor

    try:
        found = AutoProcessor.from_pretrained(
            source.directory, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # the library raises a dozen kinds
        raise RequestError(
            f"`{source.name}` has no processor that can be used: {first_line(error)}",
            "copy preprocessor and tokenizer files of the original model into the directory",
        ) from error
    if not hasattr(found, "feature_extractor") or not hasattr(found, "tokenizer"):
        raise RequestError(f"`{source.name}` has no processor of feature extractor and tokenizer")
    return found


def score_speech(
    model: Any,
    processor: Any,
    sets: Mapping[str, Sequence[Recording]],
    *,
    resample: bool = False,
    limit_seconds: float | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, ErrorRate]]:
    """Transcribe sets of recordings and count the errors.

    Args:
        model: a speech model on its device, in evaluation mode.
        processor: of the model.
        sets: data spec -> recordings.
        resample, limit_seconds: see Hearing.
        cache: where features are kept; default the package's cache.
        progress: called along the way.

    Returns:
        "wer" and "cer" -> data spec -> ErrorRate.

    Raises:
        RequestError: a recording can't be used; it is named.
    """
    hearing = Hearing(int(processor.feature_extractor.sampling_rate), resample)
    if limit_seconds is not None:
        hearing = Hearing(hearing.rate, resample, limit_seconds)
    found: dict[str, dict[str, ErrorRate]] = {WORDS: {}, CHARACTERS: {}}
    for spec, recordings in sets.items():
        heard = transcribe(model, processor, recordings, hearing, cache=cache, progress=progress)
        said = [recording.text for recording in recordings]
        for unit in (WORDS, CHARACTERS):
            found[unit][spec] = error_rate(said, heard, unit)
        shown: list[Shown] = [
            {"item": recording.name, "target": head(recording.text), "answer": head(text)}
            for recording, text in zip(recordings, heard)
        ]
        found[WORDS][spec] = replace(found[WORDS][spec], shown=shown)
    return found


def transcribe(
    model: Any,
    processor: Any,
    recordings: Sequence[Recording],
    hearing: Hearing,
    *,
    cache: Path | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Return what a model hears in recordings, in their order; see score_speech."""
    if hears_frames(type(model)):
        store = feature_store(
            recordings,
            processor.feature_extractor,
            hearing,
            cache or cache_directory() / "features",
            **frame_columns(model.config),
            progress=progress,
        )
        return transcribe_features(model, processor, store, progress=progress)
    heard = []
    for number, recording in enumerate(recordings):
        progress("transcribe", number, len(recordings), Path(recording.name).name)
        heard.append(_transcribe_alone(model, processor, recording, hearing))
    progress("transcribe", len(recordings), len(recordings))
    return heard


def hears_frames(kind: Any) -> bool:
    """Whether models of a class read log-mel frames and shorten them, as Parakeet does."""
    return hasattr(kind, "_get_subsampling_output_length") and kind.main_input_name == (
        "input_features"
    )


def frame_columns(config: Any) -> dict[str, Any]:
    """Return what feature_store must know of a model's frames: visual features, and columns."""
    visual = int(getattr(config, VISUAL, 0))
    columns = int(config.encoder_config.num_mel_bins) if visual else None
    return {"visual": visual, "width": columns}


@torch.no_grad()
def transcribe_features(
    model: Any, processor: Any, store: FeatureStore, *, progress: Progress = silent
) -> list[str]:
    """Transcribe by a CTC model whose frames are those of a store, in batches of like length."""
    heard = [""] * len(store)
    order = sorted(range(len(store)), key=store.frames)
    done = 0
    for batch in _batches(order, store):
        progress("transcribe", done, len(store))
        features, mask = pad_features([torch.from_numpy(store[row]) for row in batch])
        features, mask = features.to(model.device, model.dtype), mask.to(model.device)
        logits = model(input_features=features, attention_mask=mask).logits
        symbols = best_symbols(model, logits, mask)
        for row, text in zip(batch, _written(processor, symbols)):
            heard[row] = text
        done += len(batch)
    progress("transcribe", len(store), len(store))
    return heard


def best_symbols(model: Any, logits: Tensor, mask: Tensor) -> Tensor:
    """Return the most probable symbol of every frame, int64 [B, T'], blank where it is padding.

    Args:
        model: a CTC model that shortens its input; its blank is `config.pad_token_id`.
        logits: [B, T', symbols].
        mask: bool [B, T], True at frames of the input that are no padding.
    """
    lengths = model._get_subsampling_output_length(mask.sum(-1))
    inside = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
    return logits.argmax(-1).masked_fill(~inside, model.config.pad_token_id)


def pad_features(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack features [T_i, F] with zeros behind: float32 [B, T, F], and their bool mask [B, T]."""
    longest = max(len(own) for own in features)
    out = torch.zeros(len(features), longest, features[0].shape[1])
    mask = torch.zeros(len(features), longest, dtype=torch.bool)
    for row, own in enumerate(features):
        out[row, : len(own)] = own
        mask[row, : len(own)] = True
    return out, mask


def _batches(order: Sequence[int], store: FeatureStore) -> list[list[int]]:
    """Cut rows, sorted by length, into batches of at most _MOST_FRAMES frames."""
    found: list[list[int]] = []
    for row in order:
        if not found or (len(found[-1]) + 1) * store.frames(row) > _MOST_FRAMES:
            found.append([])
        found[-1].append(row)
    return found


def _written(processor: Any, symbols: Tensor) -> list[str]:
    return [" ".join(text.split()) for text in processor.batch_decode(symbols)]


@torch.no_grad()
def _transcribe_alone(model: Any, processor: Any, recording: Recording, hearing: Hearing) -> str:
    """Transcribe one recording without padding, by CTC or by generating."""
    samples = decode(recording, recording.read(), hearing)
    made = processor.feature_extractor(samples, sampling_rate=hearing.rate, return_tensors="pt")
    inputs = {
        key: value.to(model.device, model.dtype) if value.is_floating_point()
        else value.to(model.device)
        for key, value in made.items()
    }  # fmt: skip
    if type(model).__name__.endswith("ForCTC"):
        return _written(processor, model(**inputs).logits.argmax(-1))[0]
    longest = int(getattr(model.config, "max_target_positions", _MOST_TOKENS)) - 1
    tokens = model.generate(**inputs, do_sample=False, max_length=min(longest, _MOST_TOKENS))
    text = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
    return " ".join(text.split())
