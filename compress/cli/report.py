"""The door of `compress report`."""

from __future__ import annotations

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
@opt.CONFIG
@opt.SAY
def command(
    paths: tuple[str, ...],
    csv: str | None,
    markdown: str | None,
    html: str | None,
    png: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show one run's receipt, or several as a table, the first row the reference.

    Example: compress report runs/*
    """
    with session(as_json, quiet) as out:
        from compress.reports.compare import report

        found = report(list(paths), csv=csv, markdown=markdown, html=html, png=png)
        out.result(found.as_dict(), found.render())
