"""YAML whose every value knows its file, line and column, read without running anything.

Scalars follow YAML 1.2's core schema, so that `2:4` stays a pattern (YAML 1.1 makes it 124) and
`1e-3` is a number. Merge keys (`<<`) and anchors work; tags don't.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from compress.errors import RequestError

_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_PLAIN = "tag:yaml.org,2002:"
_KNOWN_TAGS = {_PLAIN + name for name in (
    "str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp", "value",
)}  # fmt: skip
_MOST_NODES = 100_000
_DEEPEST = 40


class Mark(NamedTuple):
    """Where something stands; line and column count from 1, `file` is as the user named it."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Node:
    """A value with its place.

    Attributes:
        value: a scalar, {name: Node}, or a list of Nodes.
        mark: where the value begins.
        key: where its name stands, in a mapping; else `mark`.
    """

    value: Any
    mark: Mark
    key: Mark = field(default=Mark(""))

    @property
    def place(self) -> Mark:
        """Where a mistake about it is told: at its name, if it has one."""
        return self.key if self.key.file else self.mark

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def scalar(text: str) -> Any:
    """An unquoted word of YAML 1.2: true, null, a number, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def read_text(text: str, file: str) -> Node:
    """Read one YAML document.

    Args:
        text: the document; an empty one is an empty mapping.
        file: what the marks call it.

    Raises:
        RequestError: it isn't YAML, has tags, a name twice, or is too large; names the place.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        mark = Mark(file, place.line + 1, place.column + 1) if place else Mark(file)
        problem = getattr(error, "problem", None) or "not YAML"
        raise RequestError(f"{mark}: {problem}") from error
    except RecursionError as error:
        raise RequestError(f"{file}: too deeply nested") from error
    return Node({}, Mark(file, 1, 1)) if root is None else _Reader(file).read(root, 0)


def read_file(path: Path, shown: str | None = None) -> Node:
    """Read a YAML file; see read_text.

    Raises:
        RequestError: as read_text; or the file can't be read.
    """
    name = shown or str(path)
    try:
        return read_text(path.read_text(encoding="utf-8"), name)
    except OSError as error:
        raise RequestError(f"`{name}` can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"`{name}` can't be read: it isn't UTF-8 text") from error


class _Reader:
    """Turns composed nodes into Nodes; counts them, since anchors can multiply."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._count = 0

    def read(self, node: yaml.Node, depth: int) -> Node:
        mark = self._mark(node)
        self._count += 1
        if self._count > _MOST_NODES or depth > _DEEPEST:
            raise RequestError(f"{mark}: too deeply nested, or too many values")
        if node.tag not in _KNOWN_TAGS:
            raise RequestError(f"{mark}: tags such as `{node.tag}` aren't allowed")
        if isinstance(node, yaml.ScalarNode):
            # An unquoted word is judged by YAML 1.2, also where 1.1 takes it for text.
            return Node(scalar(node.value) if node.style is None else node.value, mark)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.read(child, depth + 1) for child in node.value], mark)
        return Node(dict(self._pairs(node, depth)), mark)

    def _pairs(self, node: yaml.Node, depth: int) -> Iterator[tuple[str, Node]]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RequestError(f"{self._mark(key)}: names of a mapping are plain words")
            value = self.read(child, depth + 1)
            if key.tag == _PLAIN + "merge":
                parts = value.value if isinstance(value.value, list) else [value]
                for part in parts:
                    if not isinstance(part.value, dict):
                        raise RequestError(f"{self._mark(key)}: `<<` needs a mapping")
                    merged = {**part.value, **merged}
            elif key.value in own:
                raise RequestError(f"{self._mark(key)}: `{key.value}` stands here twice")
            else:
                own[key.value] = Node(value.value, value.mark, self._mark(key))
        yield from {**merged, **own}.items()

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self._file, node.start_mark.line + 1, node.start_mark.column + 1)
