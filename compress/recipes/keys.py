"""What a step's result depends on, as one digest: equal digests, equal results.

Into it go the command, its options with references resolved, the content of every file or directory
that they name, the digests of the steps whose output it takes, and the versions of code and
libraries. Content is read once: a digest is remembered with the file's size, time and number, so
that a second look at a large checkpoint costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import compress
from compress.checkpoints.caches import cache_directory
from compress.recipes.graph import Call
from compress.reports.receipt import versions, write_atomic

_CHUNK = 1 << 20
_NOT_CODE = {"cli", "recipes", "shipped"}
_MOST_FILES = 20_000


class Contents:
    """Digests of files and directories, remembered between runs.

    Args:
        memory: the file that they are remembered in; None remembers nothing.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, str] = {}
        self._new = False
        if memory is not None:
            with suppress(OSError, ValueError):
                self._known = dict(json.loads(memory.read_text(encoding="utf-8")))

    def digest(self, path: Path) -> str:
        """The content of a file, or of every file below a directory and its name."""
        if path.is_file():
            return self._file(path)
        whole = hashlib.sha256()
        for file in sorted(_files(path)):
            whole.update(f"{file.relative_to(path).as_posix()}\0{self._file(file)}\n".encode())
        return whole.hexdigest()

    def save(self) -> None:
        """Remember what was learnt."""
        if self._memory is not None and self._new:
            with suppress(OSError):
                self._memory.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._memory, json.dumps(self._known))
            self._new = False

    def _file(self, file: Path) -> str:
        stat = file.stat()
        # A path in the key would let a copy look new; number and time tell a change in place.
        key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        if key not in self._known:
            found = hashlib.sha256()
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    found.update(chunk)
            self._known[key] = found.hexdigest()
            self._new = True
        return self._known[key]


def contents() -> Contents:
    """Digests remembered in the user's cache."""
    return Contents(cache_directory() / "contents.json")


def key_of(command: str, call: Call, env: Mapping[str, str], known: Contents) -> str:
    """The digest of a step.

    Args:
        command: its name.
        call: arguments and options; outputs of other steps stand as `step:DIGEST`.
        env: variables that the recipe sets.
        known: digests of files.
    """
    options = {name: value for name, value in call.options.items() if value is not None}
    named = [*call.arguments, *_texts(options)]
    inputs = {}
    for text in named:
        for path in _paths(text):
            inputs[str(path)] = known.digest(path)
        revision = _hub_commit(text)
        if revision:
            inputs[text] = revision
    content = {
        "command": command,
        "arguments": call.arguments,
        "options": options,
        "inputs": inputs,
        "env": dict(env),
        "code": code_digest(),
        "versions": {k: v for k, v in versions().items() if k not in ("python", "compress")},
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@cache
def code_digest() -> str:
    """The package's version and sources, doors and recipes aside; and the data that it ships."""
    from compress.data.registry import shipped

    package = Path(compress.__file__).resolve().parent
    found = hashlib.sha256(compress.__version__.encode())
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        if inside.parts[0] not in _NOT_CODE:
            found.update(inside.as_posix().encode() + file.read_bytes())
    for name in ("registry.yaml", "demo", "tasks"):
        for file in sorted(_files(shipped(name)) if shipped(name).is_dir() else [shipped(name)]):
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def _paths(text: str) -> Iterator[Path]:
    """Existing files and directories that a model, path or data spec names."""
    for part in dict.fromkeys([text, *text.split(","), *text.split("+")]):
        bare = part.strip()
        for sign in ("", "=", "@", ":"):
            bare = bare.rpartition(sign)[0] if sign and sign in bare else bare
            path = Path(bare).expanduser()
            with suppress(OSError, ValueError):
                # A word such as `wanda` may be a directory's name by chance: harmless, it counts.
                if bare and path.exists() and bare not in (".", "..", "/"):
                    yield path
                    break


def _files(path: Path) -> Iterator[Path]:
    count = 0
    for place, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = Path(place) / name
            if file.is_file():
                count += 1
                if count > _MOST_FILES:
                    return
                yield file


def _hub_commit(text: str) -> str:
    """The commit of a Hub model that lies in the local cache; empty if it doesn't."""
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        return ""
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"), "hub"
    )
    place = Path(home) / f"models--{text.replace('/', '--')}" / "refs" / "main"
    with suppress(OSError):
        return place.read_text(encoding="utf-8").strip()
    return ""
