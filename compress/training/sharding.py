"""What sharding over processes by DeepSpeed asks of a run, and weights brought together again."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress.errors import RequestError
from compress.launcher import launched

# Each entry is updated by its own gradients alone. ZeRO hands an optimizer one flat piece of all
# tensors, in which matrices, rows and a tensor's norm aren't to be found.
ENTRY_BY_ENTRY = ("adamw", "lion", "spam")
_GATHERED = "stage3_gather_16bit_weights_on_model_save"


def check_deepspeed(path: str, optimizer: str) -> None:
    """Refuse a run with DeepSpeed that can't be, before anything is made.

    Args:
        path: DeepSpeed's config, a JSON file.
        optimizer: by name.

    Raises:
        RequestError: the package is missing, the file isn't such a config, nothing launched this
            process, or the optimizer needs whole tensors and ZeRO would cut them up.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise RequestError(
            "`--deepspeed` needs the package deepspeed, which isn't installed",
            "`pip install deepspeed`, or use `--fsdp`",
        )
    zero = _zero(path)
    stage = zero.get("stage", 0)
    if stage == 3 and not zero.get(_GATHERED):
        raise RequestError(
            f"`--deepspeed {path}`: with stage 3 no process has the weights to store at the end",
            f'add "{_GATHERED}": true to its "zero_optimization"',
        )
    if stage and optimizer not in ENTRY_BY_ENTRY:
        raise RequestError(
            f"`--deepspeed {path}`: ZeRO's stage {stage} cuts tensors into flat pieces, of which "
            f"{optimizer} can't tell matrices and norms",
            f"stage 0, `--fsdp`, or one of {', '.join(ENTRY_BY_ENTRY)}",
        )
    if not launched():
        raise RequestError(
            "`--deepspeed` needs a launcher, even for one process",
            "`torchrun --nproc-per-node 1 -m compress …`, or `deepspeed -m compress …`",
        )


def _zero(path: str) -> dict[str, Any]:
    """What a config says of ZeRO."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"`--deepspeed {path}` can't be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"`--deepspeed {path}` isn't JSON: {error}") from error
    zero = found.get("zero_optimization", {}) if isinstance(found, dict) else None
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise RequestError(
            f"`--deepspeed {path}` isn't a config of DeepSpeed",
            'such as {"zero_optimization": {"stage": 1}, "train_batch_size": "auto", …}',
        )
    return zero


def save_whole(model: Any, directory: Path, whole: Mapping[str, Tensor] | None) -> None:
    """Save a model with weights that were gathered from several processes.

    Args:
        model: of which they are.
        directory: where `save_pretrained` writes.
        whole: name -> gathered tensor; None where the model holds its weights itself.
    """
    if whole is None:
        model.save_pretrained(directory)
        return
    found = tied_again(model, whole)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        model.save_pretrained(directory, state_dict=found)
        return
    # Of an edited model `save_pretrained` asks its quantizer, and drops what it was given.
    quantizer.get_state_dict_and_metadata = lambda _: (found, {})
    try:
        model.save_pretrained(directory)
    finally:
        del quantizer.get_state_dict_and_metadata


def tied_again(model: nn.Module, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return gathered weights in which tied ones are one tensor, as `save_pretrained` needs it.

    Gathering and rounding copy every weight, and a copy of a tied one would be stored too.

    Args:
        model: knows which of its weights are tied.
        whole: name -> gathered tensor.
    """
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    found = dict(whole)
    for name, first in tied.items():
        if name in found and first in found:
            found[name] = found[first]
    return found
