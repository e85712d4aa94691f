"""Save and load a model in one call; where a run builds its output is `workspace.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.workspace import (
    Workspace,
    check_output,
    copy_companions,
    partial_path,
    write_json,
    writing,
)
from compress.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Workspace",
    "check_output",
    "copy_companions",
    "load",
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


def load(path: str | Path, **options: Any) -> PreTrainedModel:
    """Load a checkpoint, edited or stock, as the class that its config names.

    Args:
        path: a local directory or a Hub id.
        options: passed on to `from_pretrained`; `dtype` is "auto" unless given.

    Raises:
        RequestError: no such model, or its architecture is unknown to transformers.
    """
    import transformers

    from compress.checkpoints.format import register

    register()
    options.setdefault("dtype", "auto")
    shared = {
        key: options[key]
        for key in ("revision", "token", "trust_remote_code", "local_files_only", "cache_dir")
        if key in options
    }
    try:
        config = transformers.AutoConfig.from_pretrained(path, **shared)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise RequestError(
            f"`{path}` can't be opened as a model: {first}",
            "give a directory with a config.json, or the id of a model on the Hub",
        ) from error
    names = getattr(config, "architectures", None) or ["AutoModel"]
    cls = getattr(transformers, names[0], None)
    if cls is None and not options.get("trust_remote_code"):
        raise RequestError(
            f"`{path}`: transformers {transformers.__version__} has no class `{names[0]}`",
            "upgrade transformers, or pass trust_remote_code=True if the model brings its own code",
        )
    return (cls or transformers.AutoModelForCausalLM).from_pretrained(path, **options)
