"""The door of `compress inspect`."""

from __future__ import annotations

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session


@click.command("inspect", cls=opt.Command)
@click.argument("model")
@option(
    "--module", metavar="NAME", heading="What to show", help="one matrix: its spectrum and tail"
)
@option(
    "--esd-exact",
    is_flag=True,
    heading="What to show",
    help="fp64 singular values, several times slower",
)
@option("--csv", type=click.Path(), metavar="FILE", heading="Files", help="the table as CSV")
@option(
    "--png",
    type=click.Path(),
    metavar="FILE",
    heading="Files",
    help="a picture: of the spectrum with --module, else of every block's metric",
)
@opt.DEVICE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(
    model: str,
    module: str | None,
    esd_exact: bool,
    csv: str | None,
    png: str | None,
    device: str,
    revision: str | None,
    token: str | None,
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show spectra, anatomy and size of MODEL; changes nothing.

    Example: compress inspect ./llama-1b --module model.layers.3.self_attn.q_proj

    Reads one block at a time; needs no tokenizer and no data.
    """
    with session(as_json, quiet) as out:
        from compress.spectra.inspect import inspect

        seen = inspect(
            model,
            module=module,
            exact=esd_exact,
            csv=csv,
            png=png,
            device=device,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
            progress=out.progress,
        )
        out.result(seen.as_dict(), seen.render())
