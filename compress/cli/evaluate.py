"""The door of `compress eval`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session


@click.command("eval", cls=opt.Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@option(
    "--against",
    metavar="MODEL",
    heading="Evaluation",
    help="compare every MODEL with this one, on the same examples",
)
@opt.EVALUATION
@opt.REGISTRY
@opt.SEED
@opt.DEVICE
@opt.DTYPE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(models: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Measure perplexity, tasks, speed and memory of one model or several.

    Example: compress eval ./llama-1b-s60 --against ./llama-1b --ppl wiki.txt
    """
    with session(as_json, quiet) as out:
        from compress.evaluation.evaluate import evaluate

        found = evaluate(list(models), progress=out.progress, **given)
        out.result(found.as_dict(), found.render())
