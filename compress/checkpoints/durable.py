"""Files that a crash can't leave half-written, and a full disk said in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from compress.errors import RunError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_RESUME = "free some space there (finished parts are kept), then run again with --resume"


def partial_path(output: str | Path) -> Path:
    """Return where a run into `output` works: `OUT.partial`, beside the real OUT."""
    output = Path(output).expanduser().resolve()
    return output.with_name(output.name + ".partial")


@contextlib.contextmanager
def writing(path: str | Path, hint: str = _RESUME) -> Iterator[None]:
    """Turn a full disk, also one met by safetensors, into a RunError naming `path`.

    Raises:
        RunError: no space or quota is left.
    """
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        # safetensors wraps the system's error in its own class and keeps only the text
        if full or any(f"(os error {code})" in str(error) for code in _FULL):
            raise RunError(
                f"`{path}`: no space left on the disk",
                hint,
            ) from error
        raise


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a crash leaves the old file or the new one, never half of one."""
    beside = path.with_name(path.name + ".tmp")
    with writing(path):
        with beside.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync(path.parent)


def copy_companions(files: Iterable[Path], directory: Path) -> None:
    """Copy files byte for byte into `directory`, under their own names.

    A symbolic link (Hub snapshots are made of them) is copied as the file that it leads to.
    """
    with writing(directory):
        for file in files:
            target = directory / Path(file).name
            if target.is_symlink():
                target.unlink()
            shutil.copyfile(file, target)


def sync(path: Path) -> None:
    """Push one file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems have no fsync here
            raise
    finally:
        os.close(descriptor)
