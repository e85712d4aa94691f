"""The program's own commands as a recipe sees them: their options, asked of the real ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import click

from compress.errors import CompressError, near_names
from compress.recipes.references import as_text

# What the run itself says of every step.
OWN = ("output", "overwrite", "resume", "json", "quiet", "debug", "help")
# Options that name a file to write; a bare name lies beside the step's output.
WRITES = ("csv", "html", "markdown", "latex", "png", "plan-out")
_NOT_STEPS = ("run", "completion")


def commands() -> list[str]:
    """Names of the commands that a step may run."""
    from compress.__main__ import command_names

    return [name for name in command_names() if name not in _NOT_STEPS]


class Program:
    """One command of the program.

    Args:
        name: of `commands()`.
    """

    def __init__(self, name: str) -> None:
        from compress.__main__ import command

        self.name = name
        self._click = command(name)
        self._checked: dict[tuple[str, ...], str] = {}

    @cached_property
    def options(self) -> Mapping[str, click.Option]:
        """Options by their spelling without dashes."""
        found = {}
        for param in self._click.params:
            if isinstance(param, click.Option):
                for spelling in param.opts:
                    if spelling.startswith("--"):
                        found[spelling[2:]] = param
        return found

    @cached_property
    def argument(self) -> click.Argument | None:
        """What it works on: MODEL, MODEL…, DIR…; None where it takes nothing."""
        return next((p for p in self._click.params if isinstance(p, click.Argument)), None)

    @property
    def takes(self) -> tuple[str, ...]:
        """How a step may name the argument: `model` or `models`."""
        if self.argument is None or self.argument.name is None:
            return ()
        name = self.argument.name
        return (name, name[:-1] if name.endswith("s") else f"{name}s")

    @property
    def many(self) -> bool:
        """Whether it takes several arguments."""
        return self.argument is not None and self.argument.nargs != 1

    @property
    def writes(self) -> bool:
        """Whether it makes an output directory."""
        return "output" in self.options

    def nearest(self, name: str) -> str:
        """A hint for an option that isn't there."""
        own = [n for n in self.options if n not in OWN]
        return near_names(name, [*own, *self.takes[:1], *RESERVED])

    def words(self, name: str, value: Any) -> list[str]:
        """An option as words of a command line.

        Raises:
            ValueError: the value has another form than the option; says which is needed.
        """
        option = self.options[name]
        if value is None:
            return []
        if option.is_flag or option.secondary_opts:
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` is on or off: true or false is needed")
            if value:
                return [f"--{name}"]
            return list(option.secondary_opts[:1])
        if isinstance(value, dict):
            raise ValueError(f"`{name}` can't be a mapping")
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, (dict, list)) for v in values):
            raise ValueError(f"`{name}` can't hold lists or mappings")
        texts = [as_text(v) for v in values]
        if option.nargs > 1:
            if len(texts) != option.nargs:
                raise ValueError(f"`{name}` needs {option.nargs} values")
            return [f"--{name}", *texts]
        if option.multiple:
            return [f"--{name}={text}" for text in texts]
        return [f"--{name}={','.join(texts)}"]

    def fault(self, name: str, value: Any) -> str:
        """What the command itself finds wrong with an option's value; empty if nothing."""
        try:
            words = tuple(self.words(name, value))
        except ValueError as error:
            return str(error)
        if words and words not in self._checked:
            self._checked[words] = self._tried(name, words)
        return self._checked.get(words, "")

    def _tried(self, name: str, words: Sequence[str]) -> str:
        context = click.Context(self._click, info_name=self.name)
        try:
            parsed, rest, _ = self._click.make_parser(context).parse_args(list(words))
            self.options[name].handle_parse_result(context, parsed, rest)
        except click.ClickException as error:
            message = error.format_message().rstrip(".").replace("\n", " ")
            return message[:1].lower() + message[1:]
        except CompressError as error:
            return error.message
        return ""

    def settings(self, words: Sequence[str]) -> dict[str, Any]:
        """All parameters of a command line as the command would get them."""
        context = self._click.make_context(self.name, list(words), resilient_parsing=False)
        return {k: v for k, v in context.params.items() if k != "debug"}


RESERVED = ("run", "needs", "with", "retain")


def near_command(name: str) -> str:
    """A hint for a command that isn't there."""
    near = difflib.get_close_matches(name, _NOT_STEPS, n=1, cutoff=0.9)
    if near:
        return "to join recipes, use `include:`"
    return near_names(name, commands(), 20)
