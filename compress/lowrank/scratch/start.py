"""Where a speech run starts: a preset, a config or trained weights; its processor and symbols."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, ParakeetCTCConfig, PretrainedConfig, PreTrainedModel
from transformers.models.parakeet.modeling_parakeet import ParakeetForCTC

from compress.checkpoints.configs import first_line
from compress.checkpoints.source import Source, open_source
from compress.data.audio import Recording
from compress.data.audio_features import read_visual
from compress.errors import RequestError, near_names
from compress.evaluation.speech import VISUAL, open_processor
from compress.lowrank.scratch.settings import ScratchSettings
from compress.lowrank.scratch.sizes import SPEECH, speech_config
from compress.lowrank.scratch.tokens import UNITS, make_extractor, make_processor, make_tokenizer
from compress.training.checkpointing import off_the_file
from compress.training.initial import Start, holds_weights, read_config_file

_RATE, _MELS = 16000, 80


def is_speech(model: str | Path | None, settings: ScratchSettings, **source: Any) -> bool:
    """Whether the model that is asked for hears, by its preset or config.

    Raises:
        RequestError: neither or both of model and preset; no such model.
    """
    if (model is None) == (settings.preset is None):
        both = "a model and `--preset` are both named" if model else "no model"
        raise RequestError(
            both, f"name MODEL_OR_CONFIG, or one of --preset {', '.join(settings.presets)}"
        )
    if model is None:
        if settings.preset not in settings.presets:
            raise RequestError(
                f"`--preset {settings.preset}` isn't known",
                near_names(str(settings.preset), settings.presets, listed=20),
            )
        return settings.preset in SPEECH
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".json":
        return _hears(read_config_file(path))
    return _hears(open_source(model, weights=False, **source).config)


def _hears(config: PretrainedConfig) -> bool:
    return isinstance(config, ParakeetCTCConfig) or config.model_type.startswith(
        ("wav2vec2", "hubert", "lasr", "parakeet", "whisper", "speech")
    )


def open_speech(
    model: str | Path | None,
    settings: ScratchSettings,
    recordings: Sequence[Recording],
    **source: Any,
) -> Start:
    """Find or make the config and the processor; the start's `tokenizer` is the processor.

    Args:
        model: a checkpoint, a directory or .json file with a config and no weights, or None with a
            preset.
        settings: of the run.
        recordings: of the training set, whose transcripts give the symbols of a new tokenizer.
        source: how a Hub model is opened.

    Raises:
        RequestError: no Conformer with a CTC head, or options that its weights don't allow.
    """
    opened: Source | None = None
    if model is None:
        size = SPEECH[str(settings.preset)]
        config, name = speech_config(size), str(settings.preset)
        rate, mels = size.rate, size.mels
    else:
        config, name, opened = _read(model, source)
        encoder: Any = config.encoder_config
        rate, mels = _RATE, int(encoder.num_mel_bins)
    if opened is not None and opened.tensors:
        _check_trained(settings, name)
        return Start(name, config, open_processor(opened), opened, tuple(opened.companions()))
    extractor = _own_extractor(opened, settings)
    extractor = extractor or make_extractor(settings.sample_rate or rate, settings.mels or mels)
    processor = make_processor(extractor, _tokenizer(settings, recordings))
    _fit(config, processor, recordings, settings)
    return Start(name, config, processor)


def _read(model: str | Path, source: Any) -> tuple[ParakeetCTCConfig, str, Source | None]:
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".json":
        config, name, opened = read_config_file(path), str(model), None
    else:
        opened = open_source(model, weights=holds_weights(path), **source)
        config, name = opened.config, opened.name
    if not isinstance(config, ParakeetCTCConfig):
        raise RequestError(
            f"`{name}` is a `{config.model_type}`; speech is trained as a `parakeet_ctc`, a "
            "Conformer with a CTC head",
            f"start from such a config, or from --preset {', '.join(SPEECH)}",
        )
    return config, name, opened


def _check_trained(settings: ScratchSettings, name: str) -> None:
    for option in ("tokenizer", "sample_rate", "mels", "start"):
        if getattr(settings, option) is not None:
            raise RequestError(
                f"`--{option.replace('_', '-')}` can't act: `{name}` has trained weights",
                "start from its config alone, or leave the option out",
            )


def _own_extractor(opened: Source | None, settings: ScratchSettings) -> Any:
    """Return the extractor beside a config, unless the options ask for another."""
    names = ("preprocessor_config.json", "processor_config.json")
    asked = settings.sample_rate is not None or settings.mels is not None
    if opened is None or asked or not any((opened.directory / n).is_file() for n in names):
        return None
    return open_processor(opened).feature_extractor


def _tokenizer(settings: ScratchSettings, recordings: Sequence[Recording]) -> Any:
    wanted = settings.tokenizer or UNITS[0]
    if wanted in UNITS:
        return make_tokenizer((recording.text for recording in recordings), wanted)
    try:
        found = AutoTokenizer.from_pretrained(wanted)
    except Exception as error:  # the library raises a dozen kinds
        raise RequestError(
            f"`--tokenizer {wanted}` can't be used: {first_line(error)}",
            "char, word, or a directory with tokenizer files",
        ) from error
    if found.pad_token_id is None:
        raise RequestError(
            f"`--tokenizer {wanted}` has no padding token, which is CTC's blank",
            "give it one, its last",
        )
    return found


def _fit(
    config: ParakeetCTCConfig,
    processor: Any,
    recordings: Sequence[Recording],
    settings: ScratchSettings,
) -> None:
    """Write symbols, blank and the width of a frame into a config."""
    encoder: Any = config.encoder_config
    config.vocab_size = len(processor.tokenizer)
    config.pad_token_id = processor.tokenizer.pad_token_id
    for name in ("bos_token_id", "eos_token_id"):
        setattr(config, name, None)
    mels, step = int(processor.feature_extractor.feature_size), int(encoder.subsampling_factor)
    encoder.num_mel_bins = mels
    if settings.visual:
        width = read_visual(recordings[0], None).shape[1]
        encoder.num_mel_bins = mels + width + -(mels + width) % step
        setattr(config, VISUAL, width)
    elif mels % step:
        raise RequestError(
            f"{mels} log-mel bins aren't a multiple of the subsampling factor, {step}",
            f"use `--mels {mels - mels % step or step}`",
        )


def build_speech(start: Start, settings: ScratchSettings) -> PreTrainedModel:
    """Make the model in memory, on CPU: trained weights, or transformers' start from the seed.

    Its loss knows nothing of accumulation: the Trainer must divide by it (`accepts_loss_kwargs`).

    Raises:
        RequestError: the config describes no model that transformers can build.
    """
    dtype = torch.bfloat16 if settings.precision == "pure-bf16" else torch.float32
    model: Any
    if start.source is not None:
        model = start.source.load(dtype)
        off_the_file(model)
        model.train()
    else:
        config: Any = copy.deepcopy(start.config)
        config.encoder_config.layerdrop = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            try:
                model = ParakeetForCTC(config)
                torch.nn.Module.to(model, dtype)
            except (ValueError, TypeError, RuntimeError, AttributeError) as error:
                raise RequestError(
                    f"`{start.name}` doesn't describe a ParakeetForCTC: {first_line(error)}"
                ) from error
    model.accepts_loss_kwargs = False
    return model
