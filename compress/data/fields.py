"""Fields and templates of a registry entry: how a row of a data set becomes prompt and answer.

A template is a string with `{name}` in it, where name is a column or a field. A field is made of a
column by a few fixed steps (see Field), so that an entry stays data: nothing in it is run.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import RequestError

TEMPLATES = ("raw", "prompt", "answer", "rationale")
LETTERS = string.ascii_uppercase


class Unusable(Exception):
    """A row that lacks something, such as a label of a test split; it is passed over."""


@dataclass(frozen=True)
class Field:
    """One field of an entry, made of a column in this order of steps.

    Attributes:
        sources: columns, the first that a row has is taken; `a.b` reaches into a nested one.
        turn: the content of the i-th message, where the column is a conversation.
        choices: turn a list of answers into lines `A. first`, `B. second`, …
        names: what whole numbers stand for, in order; a value that is a name already stays.
        before, after: keep what stands before the first, or after the last, occurrence of a string.
        drop: a regular expression of what is taken out.
        ends: a string put at the end unless it ends with punctuation.
    """

    sources: tuple[str, ...]
    turn: int | None = None
    choices: bool = False
    names: tuple[str, ...] = ()
    before: str | None = None
    after: str | None = None
    drop: str | None = None
    ends: str | None = None

    def value(self, row: Mapping[str, Any], where: str) -> str:
        """Return the field of a row.

        Raises:
            RequestError: the row has none of the columns; lists those that it has.
            Unusable: the value is empty, or a label that stands for nothing.
        """
        found = self._found(row, where)
        if self.turn is not None:
            found = _turn(found, self.turn, where)
        if self.choices:
            found = _choices(found, where)
        if self.names:
            found = self._named(found, where)
        text = plain(found, where)
        for mark, keep in ((self.before, 0), (self.after, 2)):
            if mark is not None:
                parts = text.partition(mark) if keep == 0 else text.rpartition(mark)
                if not parts[1]:
                    raise Unusable
                text = parts[keep].strip()
        if self.drop is not None:
            text = re.sub(self.drop, "", text).strip()
        if not text:
            raise Unusable
        if self.ends is not None and not text.endswith((".", "!", "?", self.ends)):
            text += self.ends
        return text

    def _found(self, row: Mapping[str, Any], where: str) -> Any:
        empty = False
        for source in self.sources:
            value: Any = row
            for part in source.split("."):
                value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
            if value is None:
                empty = True
            elif value is not _ABSENT:
                return value
        if empty:
            raise Unusable
        wanted = " or ".join(f"`{source}`" for source in self.sources)
        raise RequestError(f"{where}: no column {wanted}", f"its columns: {', '.join(row)}")

    def _named(self, value: Any, where: str) -> str:
        if isinstance(value, str) and value in self.names:
            return value
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = len(self.names)
        if number == -1:
            raise Unusable
        if not 0 <= number < len(self.names):
            raise RequestError(
                f"{where}: label {value!r} stands for nothing",
                f"labels are 0 to {len(self.names) - 1}: {', '.join(self.names)}",
            )
        return self.names[number]


_ABSENT = object()


def plain(value: Any, where: str) -> str:
    """Return a text, number or truth value as text; RequestError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    raise RequestError(f"{where}: a text is needed, is {type(value).__name__}")


def _turn(value: Any, index: int, where: str) -> Any:
    """Return the content of one message of a conversation."""
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RequestError(f"{where}: a list of messages is needed, is {type(value).__name__}")
    if index >= len(value):
        raise Unusable
    return value[index].get("content", "")


def _choices(value: Any, where: str) -> str:
    """Return answers as lettered lines; they come as {label: […], text: […]}, dicts, or texts."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts = value["text"]
        labels = value.get("label") or LETTERS
    elif isinstance(value, list):
        texts = [item.get("text") if isinstance(item, Mapping) else item for item in value]
        named = [item.get("label") for item in value if isinstance(item, Mapping)]
        labels = named if len(named) == len(texts) and all(named) else LETTERS
    else:
        raise RequestError(f"{where}: a list of answers is needed, is {type(value).__name__}")
    return "\n".join(f"{label}. {plain(text, where)}" for label, text in zip(labels, texts))


def names_in(template: str) -> list[str]:
    """Return the names in a template's braces.

    Raises:
        ValueError: braces that don't match, or something else than a plain name in them.
    """
    found = []
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if form or conversion or not re.fullmatch(r"\w+", name):
            raise ValueError(f"`{{{name}}}` is no plain name")
        found.append(name)
    return found


def render(template: str, row: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> str:
    """Fill a template from a row.

    Args:
        template: with `{name}` for each field or column.
        row: column -> value.
        fields: the entry's fields.
        where: file and row, for messages.

    Raises:
        RequestError: a column that isn't there, or holds no text.
        Unusable: a value is empty.
    """
    values = {}
    for name in names_in(template):
        field = fields.get(name) or Field((name,))
        values[name] = field.value(row, where)
    return template.format_map(values)
