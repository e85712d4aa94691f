"""`python -m compress` and the console script; and what the program's commands are, for recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click


def main() -> None:
    """Run the command line."""
    from compress.cli.main import run

    run()


def call(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code, the error (if any) told on stderr."""
    from compress.cli.main import call

    return call(argv)


def command_names() -> list[str]:
    """Names of all commands, in the order of the help screen."""
    from compress.cli.main import COMMANDS

    return list(COMMANDS)


def command(name: str) -> click.Command:
    """The click command of a name; its file is imported, not what it runs."""
    import importlib

    from compress.cli.main import COMMANDS

    found: click.Command = importlib.import_module(COMMANDS[name].module).command
    return found


if __name__ == "__main__":
    main()
