"""The door of `compress completion`."""

from __future__ import annotations

import click

from compress.cli import options as opt
from compress.errors import RequestError, nearest

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", cls=opt.Command)
@click.argument("shell", metavar="|".join(SHELLS))
@opt.SAY
def command(shell: str, as_json: bool, quiet: bool) -> None:
    """Print the lines that let a shell complete commands, options and files.

    Example: compress completion bash >> ~/.bashrc

    For fish the file is ~/.config/fish/completions/compress.fish. Bash needs 4.4.
    """
    if shell not in SHELLS:
        raise RequestError(f"`{shell}` isn't a shell that is known here", nearest(shell, SHELLS))
    from click.shell_completion import get_completion_class

    from compress.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    text = kind(cli, {}, "compress", "_COMPRESS_COMPLETE").source()
    if as_json:
        import json

        text = json.dumps({"schema": 1, "shell": shell, "script": text})
    if not quiet:
        click.echo(text)
