"""Task definitions of lm-evaluation-harness that lie in directories of our own or the user's.

A YAML may name its data files relative to itself, so that a directory of tasks can be moved; the
harness would read them relative to the working directory. So each such YAML gets a stub, in a
temporary directory, that includes it and gives the absolute paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from compress.errors import RequestError

_LOCAL = {"json", "csv", "parquet", "text", "arrow"}  # builders of `datasets` that read local files


class _Loader(yaml.SafeLoader):
    """Reads a task YAML without running its `!function` tags."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


def write_stubs(directories: Sequence[Path], into: Path) -> None:
    """Write a stub for every task whose data files have relative paths.

    Args:
        directories: searched for *.yaml at any depth.
        into: an existing empty directory; also holds the prepared data of these tasks, so that
            nothing is written to the user's own cache.

    Raises:
        RequestError: a YAML can't be read, or one of its data files isn't there; names the file.
    """
    for directory in directories:
        for path in sorted(directory.rglob("*.yaml")):
            config = _merged(path, set())
            if not isinstance(config.get("task"), str) or config.get("dataset_path") not in _LOCAL:
                continue
            arguments = {"cache_dir": str(into / "cache"), **(config.get("dataset_kwargs") or {})}
            stub = {
                "include": str(path.resolve()),
                "task": config["task"],
                "dataset_kwargs": arguments,
            }
            target = into / f"{len(list(into.glob('*.yaml')))}.yaml"
            target.write_text(yaml.safe_dump(stub), encoding="utf-8")


def _merged(path: Path, seen: set[Path]) -> dict[str, Any]:
    """Return a task's config with its includes, data files absolute to the YAML that names them."""
    path = path.resolve()
    if path in seen:
        raise RequestError(f"task file `{path}` includes itself")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = str(error).replace("\n", " ")
        raise RequestError(f"task file `{path}` can't be read: {line}") from error
    if not isinstance(config, dict):
        return {}
    arguments = config.get("dataset_kwargs")
    if isinstance(arguments, dict) and "data_files" in arguments:
        files = _absolute(arguments["data_files"], path)
        config["dataset_kwargs"] = {**arguments, "data_files": files}
    included = config.pop("include", None) or []
    base: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        base.update(_merged(path.parent / name, seen | {path}))
    return {**base, **config}


def _absolute(files: Any, path: Path) -> Any:
    """Return data files with the relative ones made absolute, after looking that they exist."""
    if isinstance(files, dict):
        return {split: _absolute(value, path) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, path) for value in files]
    if "://" in files:
        return files
    resolved = path.parent / files  # an absolute path stays what it is
    if not any(character in files for character in "*?[") and not resolved.is_file():
        raise RequestError(f"task file `{path}` names `{files}`, which is not there")
    return str(resolved)


def harness_names(wanted: Iterable[str]) -> tuple[set[str], set[str]]:
    """Look for names in the harness's own task files, without parsing their YAML.

    Its index takes ten times as long to build, too long to learn of a misspelt name.

    Returns:
        Those of `wanted` that occur in any of the files, and all names of tasks and groups.
    """
    import lm_eval.tasks

    assert lm_eval.tasks.__file__ is not None
    missing, found, names = set(wanted), set[str](), set[str]()
    for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        here = {name for name in missing if name in text}
        found |= here
        missing -= here
        names.update(re.findall(r"^(?:task|group): *[\"']?([\w.-]+)", text, re.MULTILINE))
    return found, names
