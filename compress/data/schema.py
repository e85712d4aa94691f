"""The schema of a registry file: every fault is told with file and line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from compress.data.fields import TEMPLATES, Field, names_in
from compress.data.registry import ROLES, SOURCES, Corpus, Sampling
from compress.errors import RequestError, near_names

MADE = ("dots", "characters")
_REQUIRED = ("column", "columns", "licence")
_TEXTS = ("hub", "config", "revision", "column", "licence", "separator", "group", "size", "about")
_LISTS = ("columns", "tasks")
_BY_ROLE = {"local": str, "splits": str, "files": str, "rows": int, "skip": int, "joined": str}
_WORDS = {str: "string", int: "whole number", float: "number", bool: "true or false"}
_KEYS = (*_TEXTS, *_LISTS, *_BY_ROLE, "made", "sampled", "fields", "templates", "like")
_OF_SOURCE = (*SOURCES, "config", "revision", "splits", "files", "rows", "skip")


class Place:
    """A node of a registry file, with what it belongs to, for messages."""

    def __init__(self, node: yaml.Node | None, path: Path, what: str = "") -> None:
        self.node, self.path, self.what = node, path, what

    def fault(self, text: str, hint: str | None = None) -> RequestError:
        """Return the error that names this place."""
        line = self.node.start_mark.line + 1 if self.node is not None else 1
        prefix = f"{self.what}: " if self.what else ""
        return RequestError(f"{self.path}:{line}: {prefix}{text}", hint)

    def mapping(self) -> dict[str, Place]:
        """Return a mapping's children by key; refuse other nodes and a key written twice."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.fault("a mapping is needed here")
        children: dict[str, Place] = {}
        for key, value in self.node.value:
            if key.value in children:
                raise Place(key, self.path, self.what).fault(f"`{key.value}` is written twice")
            children[key.value] = Place(value, self.path, self.what)
        return children

    def value(self) -> Any:
        """Return what stands here as plain Python values."""
        assert self.node is not None
        try:
            return yaml.safe_load(yaml.serialize(self.node))
        except yaml.YAMLError as error:
            raise self.fault("not a plain YAML value") from error

    def under(self, key: str) -> Place:
        """Return the same place, of which `key` is told too."""
        return Place(self.node, self.path, f"{self.what}: `{key}`" if self.what else f"`{key}`")


def read_entries(
    root: yaml.Node | None, path: Path, base: Mapping[str, Corpus], place: Path | None
) -> dict[str, Corpus]:
    """Check a registry and build its corpora.

    Args:
        root: the file's YAML.
        path: the file.
        base: corpora that `like` may name beside earlier ones of the file.
        place: directory that local files are relative to; None for the shipped registry.

    Raises:
        RequestError: the first fault, with file and line.
    """
    top = Place(root, path).mapping()
    if "corpora" not in top:
        raise RequestError(f"{path}:1: no `corpora` in the registry")
    found: dict[str, Corpus] = {}
    for name, child in top["corpora"].mapping().items():
        entry = Place(child.node, path, f"corpus `{name}`")
        found[name] = _corpus(name, entry, {**base, **found}, place)
    return found


def _corpus(name: str, entry: Place, known: Mapping[str, Corpus], place: Path | None) -> Corpus:
    """Check one entry against the schema and build it."""
    children = entry.mapping()
    values: dict[str, Any] = {}
    for key, child in children.items():
        if key not in _KEYS:
            raise child.under(key).fault("is no field of a registry entry", near_names(key, _KEYS))
        values[key] = _checked(key, child.under(key))
    likened = values.pop("like", None)
    if likened is not None:
        if likened not in known:
            raise children["like"].fault(f"no corpus `{likened}`", near_names(likened, known))
        values = {**_inherited(known[likened], values), **values}
    if "made" in values or "sampled" in values:  # text from nowhere has one column
        values = {"column": "text", "columns": ("text",), **values}
    for key in _REQUIRED:
        if key not in values:
            raise entry.fault(f"lacks `{key}`")
    if sum(bool(values.get(source)) for source in SOURCES) != 1:
        raise entry.fault("needs either `hub` or `local` (or `made`, or `sampled`), one of them")
    if values.get("hub") and not values.get("splits"):
        raise entry.fault("lacks `splits`")
    if values["column"] not in values["columns"]:
        where = children.get("column", entry)
        raise where.fault(f"column `{values['column']}` is not among its columns")
    if "templates" in children or "fields" in children:
        _check_names(children.get("templates", entry), values)
    return Corpus(name=name, place=place, **values)


def _inherited(other: Corpus, own: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry takes over from another; with a source of its own, not the other's."""
    values = {f.name: getattr(other, f.name) for f in dataclasses.fields(Corpus)}
    for key in ("name", "place"):
        del values[key]
    if any(source in own for source in SOURCES):
        values = {key: value for key, value in values.items() if key not in _OF_SOURCE}
    return values


def _checked(key: str, place: Place) -> Any:
    """Return the value of one field, after checking its type."""
    special: dict[str, Callable[[Place], Any]] = {
        "templates": _templates,
        "fields": _fields,
        "sampled": _sampled,
    }
    if key in special:
        return special[key](place)
    value = place.value()
    if key in _TEXTS or key == "like":
        return _string(value, place)
    if key == "made":
        if value not in MADE:
            raise place.fault(f"is one of {', '.join(MADE)}, not {value!r}")
        return value
    if key in _LISTS:
        return _strings(value, place)
    kind = _BY_ROLE[key]
    if not isinstance(value, dict) or not all(_is(v, kind) for v in value.values()):
        raise place.fault(f"needs a {_WORDS[kind]} for each role, is {value!r}")
    for role in value:
        if role not in ROLES:
            raise place.fault(f"has the role `{role}`; roles are calibration, evaluation")
    return value


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a type; a truth value is no number, a whole number is a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _string(value: Any, place: Place) -> str:
    if not isinstance(value, str) or not value:
        raise place.fault(f"needs a string, is {value!r}")
    return value


def _strings(value: Any, place: Place) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise place.fault(f"needs a list of strings, is {value!r}")
    return tuple(value)


def _templates(place: Place) -> dict[str, str]:
    found = {}
    for key, child in place.mapping().items():
        if key not in TEMPLATES:
            raise child.under(key).fault("is no template", f"templates: {', '.join(TEMPLATES)}")
        text = _string(child.value(), child.under(key))
        try:
            names_in(text)
        except ValueError as error:
            raise child.under(key).fault(str(error)) from error
        found[key] = text
    if "answer" in found and "prompt" not in found:
        raise place.fault("an `answer` needs a `prompt`")
    if "rationale" in found and "answer" not in found:
        raise place.fault("a `rationale` needs an `answer`")
    return found


def _fields(place: Place) -> dict[str, Field]:
    return {key: _field(child.under(key)) for key, child in place.mapping().items()}


def _field(place: Place) -> Field:
    options: dict[str, Any] = {}
    kinds = {"turn": int, "choices": bool, "before": str, "after": str, "drop": str, "ends": str}
    for key, child in place.mapping().items():
        value, where = child.value(), child.under(key)
        if key == "from":
            options["sources"] = (value,) if isinstance(value, str) else _strings(value, where)
        elif key == "names":
            options["names"] = _strings(value, where)
        elif key in kinds:
            if not _is(value, kinds[key]):
                raise where.fault(f"needs a {_WORDS[kinds[key]]}, is {value!r}")
            options[key] = value
        else:
            raise where.fault("is no step of a field", near_names(key, ["from", "names", *kinds]))
    if not options.get("sources"):
        raise place.fault("lacks `from`, the column that it is made of")
    try:
        re.compile(options.get("drop") or "")
    except re.error as error:
        raise place.fault(f"`drop` is no regular expression: {error}") from error
    return Field(**options)


def _sampled(place: Place) -> Sampling:
    options: dict[str, Any] = {}
    kinds: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(Sampling)}
    for key, child in place.mapping().items():
        where = child.under(key)
        if key not in kinds:
            raise where.fault("is no option of sampling", near_names(key, kinds))
        value = child.value()
        if not _is(value, kinds[key]):
            raise where.fault(f"needs a {_WORDS[kinds[key]]}, is {value!r}")
        options[key] = kinds[key](value)
    made = Sampling(**options)
    for key, holds, needed in (
        ("prefix_tokens", made.prefix_tokens >= 1, "at least 1"),
        ("temperature", made.temperature > 0, "above 0"),
        ("first_temperature", made.first_temperature > 0, "above 0"),
        ("ramp", made.ramp >= 0, "at least 0"),
        ("top_k", made.top_k >= 0, "at least 0"),
        ("top_p", 0 < made.top_p <= 1, "above 0, at most 1"),
        ("repetition_penalty", made.repetition_penalty > 0, "above 0"),
        ("keep", 0 < made.keep <= 1, "above 0, at most 1"),
        ("distinct", 0 <= made.distinct <= 1, "from 0 to 1"),
    ):
        if not holds:
            raise place.fault(f"`{key}` needs to be {needed}, is {getattr(made, key)}")
    return made


def _check_names(place: Place, values: Mapping[str, Any]) -> None:
    """Refuse a template that names neither a column nor a field."""
    fields = values.get("fields") or {}
    known = [*values["columns"], *(name for name in fields if name not in values["columns"])]
    for key, text in (values.get("templates") or {}).items():
        for name in names_in(text):
            if name not in known:
                raise place.fault(
                    f"template `{key}` names `{{{name}}}`, which is no column or field",
                    f"those there are: {', '.join(known)}",
                )
