"""The door of `compress demo`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.session import session


@click.command("demo", cls=opt.Command)
@opt.OUTPUT
@opt.option(
    "--all", "everything", is_flag=True, help="condense the shipped mixture of experts as well"
)
@opt.SEED
@opt.SAY
def command(as_json: bool, quiet: bool, **given: Any) -> None:
    """Prune the shipped tiny Llama at two sparsities, uniform against alpha, and compare.

    Needs no network and takes about two minutes. Without -o nothing is kept.
    """
    with session(as_json, quiet) as out:
        from compress.demonstration import demo

        seen = demo(progress=out.progress, say=out.say, **given)
        out.result(seen.as_dict(), seen.render())
