"""Where the model is that a user named: a local directory, or a snapshot from the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from compress.errors import RequestError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_UNUSED = ["*/*", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack"]
_UNUSED += ["*.onnx", "*.gguf", "*.ot", "*.tflite", "*.zip", "*.tar*", "*.png", "*.jpg", "*.gif"]


def locate(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    weights: bool = True,
    code: bool = False,
) -> tuple[Path, str | None]:
    """Return the directory that holds `model` and, from the Hub, the snapshot's commit.

    Args:
        model: a directory, or a Hub id (`org/name` or `name`). What starts with `.`, `/` or `~`, or
            has more than one `/`, is always a directory.
        revision: a branch, tag or commit of the Hub repository.
        token: an access token for private or gated repositories.
        weights: fetch weights as well.
        code: fetch the repository's Python files as well.

    Raises:
        RequestError: no such directory, a file, no such repository or revision, or no network.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise RequestError(
                f"`{model}` is a directory, so it has no revision `{revision}`",
                "leave the revision out, or name the Hub repository",
            )
        return path, None
    if path.exists():
        raise RequestError(
            f"`{model}` is a file, not a checkpoint directory",
            f"name the directory that holds config.json, here perhaps `{path.parent}`",
        )
    name = str(model)
    if isinstance(model, Path) or not _HUB_NAME.fullmatch(name):
        raise RequestError(f"no such directory: `{model}`", _nearest(path))
    return _snapshot(name, revision, token, weights, code)


def _nearest(path: Path) -> str:
    """Return a hint that says how far the path exists and what lies there."""
    parent = next((p for p in path.parents if p.is_dir()), Path())
    below = sorted(p.name for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    listed = ", ".join(below[:8]) + (", …" if len(below) > 8 else "")
    return f"`{parent}` exists and holds {'the directories ' + listed if below else 'no directory'}"


def _snapshot(
    name: str, revision: str | None, token: str | None, weights: bool, code: bool
) -> tuple[Path, str | None]:
    """Download (or find in the cache) what is needed of a Hub repository."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    skipped = _UNUSED + ([] if weights else _WEIGHTS) + ([] if code else ["*.py"])
    where = f"`{name}`" + (f" at `{revision}`" if revision else "")
    local = "give the path of a local copy, such as `./" + name.rsplit("/", 1)[-1] + "`"
    try:
        found = snapshot_download(name, revision=revision, token=token, ignore_patterns=skipped)
        if weights and not any(Path(found).glob("*.safetensors")):
            snapshot_download(name, revision=revision, token=token, allow_patterns=_PICKLES)
    except GatedRepoError:
        raise RequestError(
            f"{where} on the Hugging Face Hub is gated and this account has no access",
            "accept its terms on its page, then log in with `hf auth login` or pass a token",
        ) from None
    except RevisionNotFoundError:
        raise RequestError(
            f"`{name}` on the Hugging Face Hub has no revision `{revision}`"
        ) from None
    except RepositoryNotFoundError:
        raise RequestError(
            f"no directory {where} here, and no such model on the Hugging Face Hub",
            "check the spelling; a private repository needs a token (`hf auth login`)",
        ) from None
    except HFValidationError as error:
        raise RequestError(f"`{name}` is neither a directory nor a Hub id: {error}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else reason(error)
        raise RequestError(
            f"no directory {where} here, it is not in the Hugging Face cache, and the Hub "
            f"can't be asked: {why}",
            f"{local}, or fetch it once with the network on: `hf download {name}`",
        ) from None
    return Path(found), Path(found).name


def reason(error: BaseException) -> str:
    """Return the first line of the error at the root of a chain."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error) or type(error).__name__).splitlines()[0][:160]
