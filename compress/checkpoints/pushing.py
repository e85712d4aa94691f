"""A finished result, uploaded to the Hub."""

from __future__ import annotations

from pathlib import Path

from compress.checkpoints.hub import reason
from compress.errors import RequestError, RunError

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_push(name: str) -> None:
    """Make sure, before any work, that a result could be uploaded under a name.

    Args:
        name: a Hub id: `org/name`, or `name` for the account's own.

    Raises:
        RequestError: it is no Hub id, the network is off, or no account is logged in.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RequestError(
            f"`--push-to-hub {name}`: not a Hub id: {str(error).splitlines()[0]}",
            "give `org/name`, or a name for your own account",
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise RequestError(
            f"`--push-to-hub {name}`: offline mode is on (HF_HUB_OFFLINE)",
            "unset it, or leave the option out and upload later: `hf upload`",
        )
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        raise RequestError(f"`--push-to-hub {name}`: no account is logged in", _LOG_IN) from None
    except (HfHubHTTPError, OSError) as error:
        raise RequestError(
            f"`--push-to-hub {name}`: the Hub doesn't take the token: {reason(error)}", _LOG_IN
        ) from None


def push(directory: str | Path, name: str) -> str:
    """Upload a result, files that the repository has already included; returns its address.

    Args:
        directory: with a config.json and weights.
        name: the repository, made if it doesn't exist.

    Raises:
        RunError: the upload failed; the directory is whole, and can be uploaded by hand.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        made = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=directory, commit_message="Upload from compress"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError(
            f"`{directory}` is complete, but its upload to `{name}` failed: {reason(error)}",
            f"try again: `hf upload {name} {directory} .`",
        ) from error
    return str(made)
