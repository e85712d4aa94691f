"""Where a run starts: trained weights, a config with random ones, or a preset; and its tokenizer.

`open_start` checks all that needs no weights; `build_model` makes the model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from compress.checkpoints.anatomy import matrix_view, read_anatomy
from compress.checkpoints.configs import first_line
from compress.checkpoints.source import Source, open_source
from compress.checkpoints.tensorfiles import read_json
from compress.errors import RequestError, near_names
from compress.training.byte_tokens import byte_tokenizer
from compress.training.checkpointing import off_the_file
from compress.training.objectives.mask_token import (
    MaskToken,
    choose_mask_token,
    give_embedding,
)
from compress.training.settings import TrainSettings
from compress.training.sizes import PRESETS, preset_config

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}
_RESIDUAL = ("o", "down", "fc2")  # roles of the matrices that write into the residual stream


@dataclass
class Start:
    """Where a run starts.

    Attributes:
        name: the model as the user named it.
        config: of the model to be built.
        tokenizer: with the mask token, where one is needed.
        source: of trained weights, else None.
        companions: files that travel with the model as they are; empty where the tokenizer is new.
        mask: the mask token, None where nothing is masked.
    """

    name: str
    config: PretrainedConfig
    tokenizer: Any
    source: Source | None = None
    companions: tuple[Path, ...] = ()
    mask: MaskToken | None = None

    @property
    def fresh(self) -> bool:
        """Whether weights are random at the start."""
        return self.source is None

    def digest(self) -> str:
        """Return "sha256:…" of the weights and config, or of the config alone."""
        if self.source is not None:
            return self.source.digest()
        fields = self.config.to_dict()
        for volatile in ("transformers_version", "_name_or_path"):
            fields.pop(volatile, None)
        text = json.dumps(fields, sort_keys=True, default=str)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def token_limit(self) -> int | None:
        """Return the longest sequence that the model is made for."""
        if self.source is not None:
            return self.source.token_limit()
        return Source(self.name, Path(), self.config, None, {}).token_limit()


def open_start(
    model: str | Path | None,
    settings: TrainSettings,
    *,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Start:
    """Find the model, or the config, and the tokenizer.

    Args:
        model: a checkpoint, a directory or .json file with a config and no weights, a Hub id, or
            None with a preset.
        settings: of the run.
        revision, token, trust_remote_code: of a Hub model.

    Raises:
        RequestError: neither or both of model and preset; as open_source; no tokenizer, or one with
            more tokens than the model has embeddings; no causal language model.
    """
    if (model is None) == (settings.preset is None):
        both = "a model and `--preset` are both named" if model else "no model"
        raise RequestError(both, f"name MODEL_OR_CONFIG, or one of --preset {', '.join(PRESETS)}")
    start = _open(model, settings, revision, token, trust_remote_code)
    if settings.objective == "meap" and settings.ratio > 0:
        start.mask = choose_mask_token(start.tokenizer, settings.mask_token)
        if start.mask.origin != "own":
            start.companions = ()
    _check_causal(start)
    if start.fresh:
        _fit_vocabulary(start)
    else:
        _check_trained(start, settings)
    return start


def _open(
    model: str | Path | None,
    settings: TrainSettings,
    revision: str | None,
    token: str | None,
    trust_remote_code: bool,
) -> Start:
    if settings.preset is not None:
        tokenizer = _tokenizer(settings, None, settings.preset)
        size = preset_config(settings.preset, len(tokenizer), settings.length)
        return Start(settings.preset, size, tokenizer)
    assert model is not None
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".json":
        config = read_config_file(path)
        return Start(str(model), config, _tokenizer(settings, path.parent, str(model)))
    source = open_source(
        model,
        revision=revision,
        token=token,
        weights=holds_weights(path),
        trust_remote_code=trust_remote_code,
    )
    tokenizer = _tokenizer(settings, source.directory, source.name)
    if not source.tensors:
        return Start(source.name, source.config, tokenizer)
    own = tuple(source.companions()) if settings.tokenizer is None else ()
    return Start(source.name, source.config, tokenizer, source, own)


def holds_weights(path: Path) -> bool:
    """Whether weights are to be expected: a Hub id, or a directory with such a file."""
    return not path.is_dir() or any(p.suffix in _WEIGHTS for p in path.iterdir())


def read_config_file(path: Path) -> PretrainedConfig:
    """Read a config from a .json file.

    Raises:
        RequestError: not JSON, or no config that transformers knows.
    """
    fields = read_json(path)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        hint = near_names(str(kind), CONFIG_MAPPING.keys()) if kind else None
        said = f"has the unknown model_type `{kind}`" if kind else "names no model_type"
        raise RequestError(f"`{path}` {said}", hint or "such as `llama`")
    try:
        return AutoConfig.for_model(kind, **fields)
    except Exception as error:  # each config class checks itself in its own way
        raise RequestError(f"`{path}` is not usable: {first_line(error)}") from error


def _tokenizer(settings: TrainSettings, directory: Path | None, name: str) -> Any:
    """Return the tokenizer that --tokenizer names, else the directory's."""
    wanted = settings.tokenizer
    if wanted == "bytes":
        return byte_tokenizer()
    try:
        if wanted is not None:
            return AutoTokenizer.from_pretrained(wanted)
    except Exception as error:  # the library raises a dozen kinds
        raise RequestError(
            f"`--tokenizer {wanted}` can't be used: {first_line(error)}",
            "name a directory with tokenizer files, a Hub id, or `bytes`",
        ) from error
    found = None
    if directory is not None:
        found = Source(name, directory, PretrainedConfig(), None, {}).tokenizer()
    if found is None:
        raise RequestError(
            f"`{name}` has no tokenizer, which text needs",
            "add `--tokenizer DIR_OR_HUB_ID`, or `--tokenizer bytes` for one token a byte",
        )
    return found


def _check_causal(start: Start) -> None:
    kind = type(start.config)
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING or start.source is not None
    if start.source is not None:
        known = start.source.model_class().can_generate()
    if not known or getattr(start.config, "is_encoder_decoder", False):
        raise RequestError(
            f"`{start.name}` (`{start.config.model_type}`) is no causal language model",
            "next-token training needs one, such as llama, qwen3, mistral or gpt2",
        )


def _fit_vocabulary(start: Start) -> None:
    """Make room for every token of the tokenizer in a config of random weights."""
    needed = len(start.tokenizer)
    config: Any = start.config.get_text_config()
    short = needed - config.vocab_size
    if short > 0 and (start.mask is None or start.mask.origin != "new" or short > 1):
        raise RequestError(
            f"`{start.name}` has vocab_size {config.vocab_size}, and the tokenizer {needed} tokens",
            f"set vocab_size to {needed + -needed % 64} in the config",
        )
    config.vocab_size = max(config.vocab_size, needed + -needed % 64 if short > 0 else 0)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(start.tokenizer, name, None))


def _check_trained(start: Start, settings: TrainSettings) -> None:
    if settings.init != "normal" or settings.embed_std is not None:
        option = "--embed-std" if settings.init == "normal" else f"--init {settings.init}"
        raise RequestError(
            f"`{option}` can't act: `{start.name}` has trained weights",
            "start from its config alone, or leave the option out",
        )
    if settings.tokenizer is not None:
        config: Any = start.config.get_text_config()
        if len(start.tokenizer) > config.vocab_size:
            raise RequestError(
                f"`--tokenizer {settings.tokenizer}` has {len(start.tokenizer)} tokens, and "
                f"`{start.name}` {config.vocab_size} embeddings",
                "take the model's own tokenizer",
            )


def build_model(start: Start, settings: TrainSettings) -> PreTrainedModel:
    """Make the model in memory, on CPU.

    Weights are float32, except pure-bf16 ones: mixed precision casts on the way. Random ones are
    drawn from the seed: N(0, initializer_range), embeddings N(0, embed_std) where given, and with
    `scaled` the matrices that write into the residual stream divided by sqrt(2 * blocks).

    Raises:
        RequestError: the config describes no model that transformers can build.
    """
    dtype = torch.bfloat16 if settings.precision == "pure-bf16" else torch.float32
    if start.source is not None:
        model = start.source.load(dtype)
        off_the_file(model)
        if start.mask is not None:
            give_embedding(model, start.mask, len(start.tokenizer))
        return model
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(start.config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            model = kind(copy.deepcopy(start.config))
        except (ValueError, TypeError, RuntimeError, AttributeError, ZeroDivisionError) as error:
            raise RequestError(
                f"`{start.name}` doesn't describe a `{kind.__name__}`: {first_line(error)}"
            ) from error
        if settings.embed_std is not None:
            torch.nn.init.normal_(model.get_input_embeddings().weight, 0.0, settings.embed_std)
    if settings.init == "scaled":
        _scale_residual(model)
    return model.to(dtype)


@torch.no_grad()
def _scale_residual(model: PreTrainedModel) -> None:
    anatomy = read_anatomy(model)
    parameters = dict(model.named_parameters())
    factor = 1 / math.sqrt(2 * len(anatomy.blocks))
    for matrix in anatomy.matrices:
        if matrix.role in _RESIDUAL:
            matrix_view(parameters[matrix.parameter], matrix).mul_(factor)
