"""The door of `compress doctor`."""

from __future__ import annotations

import click

from compress.cli import options as opt
from compress.cli.session import session


@click.command("doctor", cls=opt.Command)
@opt.SAY
def command(as_json: bool, quiet: bool) -> None:
    """Say what this machine has, what is missing, and what to install."""
    with session(as_json, quiet) as out:
        from compress.diagnosis import doctor

        found = doctor()
        out.result(found.as_dict(), found.render())
