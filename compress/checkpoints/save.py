"""Save and load a model in one call; where a run builds its output is `workspace.py`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compress.checkpoints.workspace import (
    Workspace,
    check_output,
    copy_companions,
    partial_path,
    write_json,
    writing,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Workspace",
    "check_output",
    "copy_companions",
    "load",
    "on_disk",
    "partial_path",
    "save",
    "write_json",
    "writing",
]


def save(
    model: PreTrainedModel,
    path: str | Path,
    *,
    companions: Iterable[Path] = (),
    overwrite: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Save a model, edited or not, as a checkpoint that `from_pretrained` opens; whole or not.

    Args:
        model: a transformers model in memory.
        path: the directory to make.
        companions: files to copy beside the weights byte for byte, such as a tokenizer's.
        overwrite: whether a directory with content is replaced.
        max_shard_size: size from which the weights are split into several files.

    Raises:
        RequestError: the directory can't be used.
        RunError: the disk is full.
    """
    with Workspace.open(path, overwrite=overwrite) as workspace:
        try:
            with writing(workspace.result, "free some space there, then try again"):
                model.save_pretrained(workspace.result, max_shard_size=max_shard_size)
            copy_companions(companions, workspace.result)
            workspace.commit()
        except BaseException:
            workspace.discard()  # the model is still in memory: nothing is worth a resume
            raise


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    semi_structured: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a checkpoint, edited or stock, as the class that its config names, in eval mode.

    Args:
        path: a local directory or a Hub id.
        revision: branch, tag or commit of a Hub repository.
        token: Hub access token.
        trust_remote_code: run code that the checkpoint brings. Only if you trust it.
        semi_structured: turn the weights with 2:4 zeros into torch's semi-structured form on CUDA,
            in float16 or bfloat16. What became of each matrix is in the model's `semi_structured`
            attribute, and a warning sums it up. The model can't be trained or saved afterwards.
        options: passed on to `from_pretrained`; `dtype` is what is on disk unless given.

    Raises:
        RequestError: no such model, an unknown architecture, a missing or damaged weight file, a
            tensor missing in an edited module, a format newer than this package; semi_structured
            without a CUDA device of compute capability 8.0.
    """
    from compress.checkpoints.source import open_source

    if semi_structured:
        import torch

        from compress.checkpoints.semi_structured import require_cuda, to_semi_structured

        require_cuda()  # before anything is read
    source = open_source(path, revision=revision, token=token, trust_remote_code=trust_remote_code)
    model = source.model_class().from_pretrained(source.directory, **{"dtype": "auto", **options})
    if semi_structured:
        if "device_map" not in options:
            torch.nn.Module.to(model, "cuda")
        found = to_semi_structured(model)
        model.__dict__["semi_structured"] = found
        warnings.warn(str(found), stacklevel=2)
    return model


def on_disk(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stack: ExitStack
) -> Path:
    """Save a model in memory where a walk can read it, for as long as `stack` is open.

    Args:
        model: a transformers model.
        tokenizer: saved beside it, where there is one.
        stack: removes the place when it closes.
    """
    place = Path(stack.enter_context(TemporaryDirectory(prefix="compress-"))) / "model"
    save(model, place)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
    return place


def placed(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    stack: ExitStack,
) -> str | Path:
    """Return a model's path or id as it is; one in memory is saved, see `on_disk`."""
    return model if isinstance(model, (str, Path)) else on_disk(model, tokenizer, stack)


def named_places(
    models: Sequence[str | Path | PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None,
    stack: ExitStack,
) -> list[tuple[str, str | Path]]:
    """Return (name, path or id) of each model; one in memory goes by its class.

    Args:
        models: directories, Hub ids, and models in memory.
        tokenizer: of the latter.
        stack: removes what was saved for them when it closes.
    """
    found: list[tuple[str, str | Path]] = []
    for model in models:
        if isinstance(model, (str, Path)):
            found.append((str(model), model))
            continue
        kind = type(model).__name__
        same = sum(name == kind or name.startswith(f"{kind} ") for name, _ in found)
        found.append((f"{kind} {same + 1}" if same else kind, on_disk(model, tokenizer, stack)))
    return found
