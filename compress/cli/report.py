"""The door of `compress report`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session


@click.command("report", cls=opt.Command)
@click.argument("paths", nargs=-1, required=True, metavar="DIR…")
@option("--csv", type=click.Path(), metavar="FILE", heading="Files", help="the table as CSV")
@option(
    "--markdown",
    type=click.Path(),
    metavar="FILE",
    heading="Files",
    help="the table as Markdown",
)
@option("--latex", type=click.Path(), metavar="FILE", heading="Files", help="as LaTeX's tabular")
@option(
    "--html",
    type=click.Path(),
    metavar="FILE",
    heading="Files",
    help="one page: the tables, sortable, and sparsity by block drawn",
)
@option(
    "--png",
    type=click.Path(),
    metavar="FILE",
    heading="Files",
    help="sparsity by block; forest plot",
)
@option(
    "--rows",
    multiple=True,
    callback=opt.comma_list,
    metavar="NAME,…",
    heading="What to show",
    help="these rows, or globs of their names; the first is the reference",
)
@option(
    "--columns",
    multiple=True,
    callback=opt.comma_list,
    metavar="TITLE,…",
    heading="What to show",
    help="these columns, in this order",
)
@option(
    "--pareto",
    metavar="TITLE",
    heading="What to show",
    help="draw quality against this cost, such as non-zero or tokens/s; also as --png",
)
@option(
    "--sort",
    metavar="TITLE",
    heading="What to show",
    help="order the rows by a measure or setting, smallest first",
)
@opt.CONFIG
@opt.SAY
def command(paths: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Show one run's receipt, or several as a table, the first row the reference.

    Example: compress report runs/*
    """
    with session(as_json, quiet) as out:
        from compress.reports.compare import report

        found = report(list(paths), **given)
        out.result(found.as_dict(), found.render())
