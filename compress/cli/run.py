"""The door of `compress run`."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from compress.cli import options as opt
from compress.cli.options import option, shard_of
from compress.cli.session import session
from compress.errors import RequestError

WORK = opt.options(
    option("--jobs", type=int, default=1, show_default=True, metavar="N", heading="Work",
           help="steps at a time"),
    option("--keep-going", is_flag=True, heading="Work",
           help="after a failure go on with what doesn't need that step"),
    option("--backend", default="local", show_default=True, metavar="NAME", heading="Work",
           help="local or ray"),
    option("--shard", callback=shard_of, metavar="I/N", heading="Work",
           help="only the I-th of N parts of the grid"),
    option("--reuse", multiple=True, type=click.Path(), metavar="RUN", heading="Work",
           help="take equal steps of another run or shard over; repeatable"),
    option("--max-cells", type=int, default=500, show_default=True, metavar="N", heading="Work",
           help="a larger grid is taken for a mistake"),
    option("--no-cache", is_flag=True, heading="Work", help="run every step anew"),
    option("--dry-run", is_flag=True, heading="Work",
           help="check all, show the graph, sizes and time; run nothing"),
)  # fmt: skip


def _recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped recipes and files, for the completion of a shell."""
    from compress.recipes.reading import shipped_recipes

    names = [name for name in shipped_recipes() if name.startswith(incomplete)]
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


@click.command("run", cls=opt.Command)
@click.argument("recipe", required=False, shell_complete=_recipes)
@opt.OUTPUT
@option(
    "--set",
    "set_",
    multiple=True,
    metavar="KEY=VALUE",
    heading="Recipe",
    help="a variable, or a part such as steps.prune.sparsity; repeatable",
)
@option("--list", "listed", is_flag=True, heading="Recipe", help="the shipped recipes")
@WORK
@opt.RESUME
@opt.SAY
def command(
    recipe: str | None,
    as_json: bool,
    quiet: bool,
    listed: bool,
    set_: tuple[str, ...],
    **given: Any,
) -> None:
    """Run RECIPE, a YAML file or a shipped recipe's name: commands of this program
    as steps, in every cell of a grid, and their receipts as one table.

    Example: compress run alpha-prune-s70 --set quick=true

    The recipe is checked whole before anything starts. A second run does only
    what changed; a killed one goes on. Without -o the output is runs/NAME.
    """
    with session(as_json, quiet) as out:
        if listed:
            from compress.recipes.listing import shipped_list

            found = shipped_list()
            out.result(found.as_dict(), found.render())
            return
        if recipe is None:
            raise RequestError("no recipe", "name a YAML file, or see `compress run --list`")
        from compress.recipes.command import run

        result = run(recipe, set=set_, quiet=quiet, say=out.say, **given)
        out.result(result.as_dict(), result.render())
