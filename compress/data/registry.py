"""The corpus registry: names that a data spec may use, and the files that travel with the package.

`calib_data/registry.yaml` describes each corpus once: where it lies, which split serves which role,
its text column and licence. A corpus has two roles, calibration and evaluation, on different splits
wherever it has more than one, so that naming it in both `--calib` and `--ppl` shares no rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import compress
from compress.errors import RequestError

ROLES = ("calibration", "evaluation")
_TEXTS = {"hub", "config", "revision", "column", "licence", "about"}
_BY_ROLE = {"local", "splits", "files", "rows", "joined"}
_REQUIRED = ("column", "columns", "licence")


@dataclass(frozen=True)
class Corpus:
    """One entry of the registry.

    Attributes:
        name: what a data spec calls it.
        column: the text column used when the spec names none.
        columns: every text column.
        licence: as the dataset's own card or paper states it.
        hub: dataset id on the Hub; empty for a corpus that ships with the package.
        config, revision: configuration and pinned revision on the Hub, or None.
        local: role -> file beside the registry, for shipped corpora.
        splits: role -> split name on the Hub.
        files: role -> the one data file of the repository to read, where a split is too large.
        rows: role -> how many leading rows are read; a role that is absent reads all.
        joined: role -> the string that joins all rows into one document, as published protocols do.
        about: one line for people.
    """

    name: str
    column: str
    columns: tuple[str, ...]
    licence: str
    hub: str = ""
    config: str | None = None
    revision: str | None = None
    local: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    joined: dict[str, str] = field(default_factory=dict)
    about: str = ""

    def has_role(self, role: str) -> bool:
        """Whether the corpus has rows for this role, "calibration" or "evaluation"."""
        return role in (self.splits if self.hub else self.local)


def shipped(relative: str) -> Path:
    """Return the path of a file or directory of `calib_data`, such as "demo/test.jsonl".

    It lies beside the package in a checkout and inside it in an installed wheel.

    Raises:
        RequestError: the installation lacks it.
    """
    package = Path(compress.__file__).resolve().parent
    for root in (package / "shipped" / "calib_data", package.parent / "calib_data"):
        if (root / relative).exists():
            return root / relative
    raise RequestError(
        f"the installed package lacks its own `calib_data/{relative}`",
        hint="reinstall it: pip install --force-reinstall compress",
    )


@functools.cache
def load_registry(path: Path | None = None) -> dict[str, Corpus]:
    """Read a registry file; by default the shipped one.

    Returns:
        name -> Corpus, in the order of the file.

    Raises:
        RequestError: the file can't be read or an entry breaks the schema; names file and line.
    """
    path = path or shipped("registry.yaml")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"registry `{path}` can't be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise RequestError(f"{path}:{line}: {problem}") from error
    top = _mapping(root, path)
    if "corpora" not in top:
        raise RequestError(f"{path}:1: no `corpora` in the registry")
    found: dict[str, Corpus] = {}
    for name, node in _mapping(top["corpora"], path).items():
        found[name] = _corpus(name, node, path)
    return found


def _where(path: Path, node: yaml.Node | None) -> str:
    return f"{path}:{node.start_mark.line + 1 if node is not None else 1}"


def _mapping(node: yaml.Node | None, path: Path) -> dict[str, yaml.Node]:
    """Return a mapping node's children by key; refuse other nodes and a key written twice."""
    if not isinstance(node, yaml.MappingNode):
        raise RequestError(f"{_where(path, node)}: a mapping is needed here")
    children: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.value in children:
            raise RequestError(f"{_where(path, key)}: `{key.value}` is written twice")
        children[key.value] = value
    return children


def _value(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _corpus(name: str, node: yaml.Node, path: Path) -> Corpus:
    """Check one entry against the schema and build it."""
    children = _mapping(node, path)
    values: dict[str, Any] = {}
    for key, child in children.items():
        values[key] = _checked(name, key, child, path)
    for key in _REQUIRED:
        if key not in values:
            raise RequestError(f"{_where(path, node)}: corpus `{name}` lacks `{key}`")
    if ("hub" in values) == ("local" in values):
        raise RequestError(f"{_where(path, node)}: corpus `{name}` needs either `hub` or `local`")
    if "hub" in values and "splits" not in values:
        raise RequestError(f"{_where(path, node)}: corpus `{name}` lacks `splits`")
    if values["column"] not in values["columns"]:
        raise RequestError(
            f"{_where(path, children['column'])}: corpus `{name}`: column `{values['column']}` "
            f"is not among its columns"
        )
    return Corpus(name=name, **values)


def _checked(name: str, key: str, node: yaml.Node, path: Path) -> Any:
    """Return the value of one field, after checking its type."""
    where = f"{_where(path, node)}: corpus `{name}`: `{key}`"
    value = _value(node)
    if key in _TEXTS:
        if not isinstance(value, str) or not value:
            raise RequestError(f"{where} needs a string, is {value!r}")
        return value
    if key == "columns":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RequestError(f"{where} needs a list of strings, is {value!r}")
        return tuple(value)
    if key in _BY_ROLE:
        kind = int if key == "rows" else str
        if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
            raise RequestError(f"{where} needs a {kind.__name__} for each role, is {value!r}")
        unknown = set(value) - set(ROLES)
        if unknown:
            raise RequestError(
                f"{where} has the role `{min(unknown)}`; roles are calibration, evaluation"
            )
        return value
    raise RequestError(f"{where} is no field of a registry entry")
