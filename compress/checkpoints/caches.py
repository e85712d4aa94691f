"""Where results that can be made again are kept: by content, never by name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

VARIABLE = "COMPRESS_CACHE"


def cache_directory() -> Path:
    """$COMPRESS_CACHE, else $XDG_CACHE_HOME/compress, else ~/.cache/compress; may not exist."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "compress"


def put_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that others never see half of it.

    Raises:
        OSError: it couldn't be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except OSError:
        Path(partial).unlink(missing_ok=True)
        raise
