"""A checkpoint's config.json: read, and refused where its model can't be worked on."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compress.checkpoints.tensorfiles import read_json
from compress.errors import RequestError, near_names


def read_config(directory: Path, trust_remote_code: bool) -> PretrainedConfig:
    """Return the checked config of `directory`.

    Raises:
        RequestError: config.json is missing or broken, its architecture is unknown or needs code
            that the user hasn't allowed, or the weights are quantized by another package.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise RequestError(
            f"`{directory}` is no checkpoint: it has no config.json", _looks(directory)
        )
    raw = read_json(path)
    _check_model_type(path, raw, trust_remote_code)
    _check_quantization(path, raw)
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise RequestError(
            f"`{path}`: {first_line(error).partition(' but ')[0]}, which isn't installed",
            "install it, or take a checkpoint of transformers' own class of this network",
        ) from error
    except Exception as error:
        raise RequestError(f"`{path}` is not usable: {first_line(error)}") from error


def _check_model_type(path: Path, raw: dict, trust_remote_code: bool) -> None:
    """Refuse an architecture that transformers doesn't have and the user hasn't trusted."""
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    own_code = isinstance(raw.get("auto_map"), dict) and "AutoConfig" in raw["auto_map"]
    if own_code and trust_remote_code:
        return
    if own_code:
        raise RequestError(
            f"`{path}` needs Python code that the checkpoint brings (model_type `{kind}`)",
            "read that code; if you trust it, say so with --trust-remote-code",
        )
    if not isinstance(kind, str) or not kind:
        raise RequestError(f"`{path}` names no model_type", "it may be no transformers checkpoint")
    raise RequestError(
        f"`{path}` has model_type `{kind}`, which transformers {transformers.__version__} "
        "doesn't know",
        near_names(kind, CONFIG_MAPPING.keys()),
    )


def _check_quantization(path: Path, raw: dict) -> None:
    """Register our format where the checkpoint is in it; refuse every other one."""
    quantization = raw.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method != "compress":
        raise RequestError(
            f"`{path}` says that the weights are quantized by `{method or 'an unnamed method'}`, "
            "which can't be compressed further",
            "take the checkpoint that it was made from, in float32, float16 or bfloat16",
        )
    from compress.checkpoints.format import register

    register()


def _looks(directory: Path) -> str:
    """Return a hint from what lies in a directory without config.json."""
    if (directory / "adapter_config.json").is_file():
        return "it holds an adapter: merge it into its base model and save that first"
    below = sorted(path.parent.name for path in directory.glob("*/config.json"))
    if below:
        return "checkpoints lie below it: " + ", ".join(f"`{directory / n}`" for n in below[:4])
    return "name the directory that `save_pretrained` wrote or that was downloaded from the Hub"


def first_line(error: BaseException) -> str:
    """Return an error's first line that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
