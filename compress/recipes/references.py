"""`${…}` in a recipe: what it names, and its value.

    ${model}  ${matrix.method}  ${vars.model}     an axis of the grid, a variable
    ${env.HOME}  ${env.HOME:-/tmp}                an environment variable, or else this value
    ${here}  ${shipped.tiny-llama}                the recipe's directory; a path of the shipped data
    ${steps.NAME.output}                          what a step wrote
    ${steps.NAME.files}                           the directory of its other files
    ${steps.NAME.receipt.after.bytes}             a value of its receipt
    ${all.NAME.output}                            of every cell, as a list

A string that is one reference keeps the type of what it names. `$${` is a plain `${`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from compress.errors import RequestError, near_names
from compress.recipes.marks import Mark, Node
from compress.recipes.mistakes import Mistakes

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_PART = re.compile(r"""\[(?:"([^"]*)"|'([^']*)'|(\d+))\]|\.?([^.\[\]]+)""")
WHOLE = ("env", "steps", "all", "matrix", "vars", "shipped", "here")
STEP_PARTS = ("output", "files", "receipt")


class Later:
    """A value that is known only when a step is done."""


LATER = Later()


class Reference(NamedTuple):
    """One `${…}`: its text and its parts, `steps`, `prune`, `output`."""

    text: str
    parts: tuple[str, ...]

    @property
    def head(self) -> str:
        """What kind of thing it names."""
        return self.parts[0] if self.parts else ""


class Steps(Protocol):
    """What references learn of other steps, seen from one instance of a step."""

    def value(self, reference: Reference, mark: Mark) -> Any:
        """The value of `${steps.…}` or `${all.…}`, LATER if it isn't known yet."""


def references(text: str) -> Iterator[Reference]:
    """The references in a string, in order."""
    for match in _REFERENCE.finditer(text):
        if match[1] is not None:
            yield _parse(match[1])


def _parse(text: str) -> Reference:
    name, sign, rest = text.strip().partition(":-")
    if name.startswith("env.") and sign:
        return Reference(text, ("env", name[4:], rest))
    parts = [next(p for p in m.groups() if p is not None) for m in _PART.finditer(text.strip())]
    return Reference(text, tuple(parts))


def strings(node: Node) -> Iterator[Node]:
    """Every string below a node."""
    if isinstance(node.value, str):
        yield node
    elif isinstance(node.value, dict):
        for child in node.value.values():
            yield from strings(child)
    elif isinstance(node.value, list):
        for child in node.value:
            yield from strings(child)


@dataclass
class Scope:
    """Where references of one instance of a step are looked up.

    Attributes:
        vars: the recipe's variables.
        cell: the values of the grid's axes.
        axes: names of all axes.
        here: the recipe's directory.
        steps: what other steps have to say.
        mistakes: where wrong references go.
    """

    vars: Mapping[str, Node]
    cell: Mapping[str, Any]
    axes: Sequence[str]
    here: Path
    steps: Steps
    mistakes: Mistakes
    _open: list[str] = field(default_factory=list)

    def resolve(self, node: Node) -> Any:
        """The value of a node with every reference replaced; LATER if one isn't known yet."""
        if isinstance(node.value, dict):
            return {name: self.resolve(child) for name, child in node.value.items()}
        if isinstance(node.value, list):
            found: list[Any] = []
            for child in node.value:
                value = self.resolve(child)
                # A list named inside a list is joined to it.
                whole = isinstance(child.value, str) and isinstance(value, list)
                found += value if whole else [value]
            return LATER if LATER in found else found
        if not isinstance(node.value, str):
            return node.value
        return self._text(node.value, node.mark)

    def _text(self, text: str, mark: Mark) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole and whole[1] is not None:
            return self._value(_parse(whole[1]), mark)
        out, end = [], 0
        for match in _REFERENCE.finditer(text):
            out.append(text[end : match.start()])
            end = match.end()
            if match[1] is None:
                out.append("${")
                continue
            value = self._value(_parse(match[1]), mark)
            if value is LATER:
                return LATER
            if isinstance(value, (dict, list)):
                self.mistakes.add(mark, f"`${{{match[1]}}}` is no single value, so it can't "
                                  "stand inside a text")  # fmt: skip
            out.append(as_text(value))
        return "".join([*out, text[end:]])

    def _value(self, reference: Reference, mark: Mark) -> Any:
        head, rest = reference.head, reference.parts[1:]
        if head in ("steps", "all"):
            return self.steps.value(reference, mark)
        if head == "env":
            return self._environment(rest, mark)
        if head == "here":
            return str(self.here)
        if head == "shipped":
            return self._shipped("/".join(rest), mark)
        if head == "matrix" and rest and rest[0] in self.axes:
            return self._axis(rest[0], rest[1:], reference, mark)
        if head in self.axes:
            return self._axis(head, rest, reference, mark)
        if head == "vars" and rest and rest[0] in self.vars:
            return self._variable(rest[0], rest[1:], reference, mark)
        if head in self.vars:
            return self._variable(head, rest, reference, mark)
        known = {*self.axes, *self.vars, *(f"{w}." for w in WHOLE)}
        wanted = rest[0] if head in ("matrix", "vars") and rest else head
        self.mistakes.add(mark, f"`${{{reference.text}}}` names nothing", near_names(wanted, known))
        return LATER

    def _shipped(self, name: str, mark: Mark) -> Any:
        from compress.data.registry import shipped

        try:
            return str(shipped(name))
        except RequestError:
            hint = near_names(name, ("tiny-llama", "tiny-moe", "demo"))
            self.mistakes.add(mark, f"the package ships no `{name}`", hint)
            return LATER

    def _environment(self, rest: Sequence[str], mark: Mark) -> Any:
        if not rest:
            self.mistakes.add(mark, "`${env.NAME}` needs a name")
            return LATER
        value = os.environ.get(rest[0], rest[1] if len(rest) > 1 else None)
        if value is None:
            self.mistakes.add(
                mark,
                f"the environment has no `{rest[0]}`",
                f"set it, or give a value to fall back on: `${{env.{rest[0]}:-…}}`",
            )
            return LATER
        return value

    def _axis(self, name: str, rest: Sequence[str], reference: Reference, mark: Mark) -> Any:
        if name not in self.cell:
            return LATER
        return self._inside(self.cell[name], rest, reference, mark)

    def _variable(self, name: str, rest: Sequence[str], reference: Reference, mark: Mark) -> Any:
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            self.mistakes.add(mark, f"variables in a circle: {chain}")
            return LATER
        self._open.append(name)
        try:
            value = self.resolve(self.vars[name])
        finally:
            self._open.pop()
        return value if value is LATER else self._inside(value, rest, reference, mark)

    def _inside(self, value: Any, rest: Sequence[str], reference: Reference, mark: Mark) -> Any:
        try:
            return dig(value, rest)
        except KeyError as error:
            self.mistakes.add(mark, f"`${{{reference.text}}}` names nothing", str(error.args[0]))
            return LATER


def dig(value: Any, parts: Sequence[str]) -> Any:
    """What lies under a path of names; a name may itself hold dots (`wiki.txt`).

    Raises:
        KeyError: nothing lies there; its argument is a hint of the names there.
    """
    if not parts:
        return value
    if isinstance(value, list):
        if parts[0].isdigit() and int(parts[0]) < len(value):
            return dig(value[int(parts[0])], parts[1:])
        raise KeyError(f"there are {len(value)} entries, from 0")
    if not isinstance(value, Mapping):
        raise KeyError(f"`{parts[0]}` is asked of a single value")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        if name in value:
            return dig(value[name], parts[count:])
    raise KeyError(near_names(parts[0], map(str, value)))


def as_text(value: Any) -> str:
    """A value as it stands on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)
