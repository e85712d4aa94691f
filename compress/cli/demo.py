"""The door of `compress demo`."""

from __future__ import annotations

import click

from compress.cli import options as opt
from compress.cli.session import session


@click.command("demo", cls=opt.Command)
@opt.OUTPUT
@opt.SEED
@opt.SAY
def command(output: str | None, overwrite: bool, seed: int, as_json: bool, quiet: bool) -> None:
    """Prune the shipped tiny Llama at two sparsities, uniform against alpha, and compare.

    Needs no network and takes about two minutes. Without -o nothing is kept.
    """
    with session(as_json, quiet) as out:
        from compress.demonstration import demo

        seen = demo(output, overwrite=overwrite, seed=seed, progress=out.progress, say=out.say)
        out.result(seen.as_dict(), seen.render())
