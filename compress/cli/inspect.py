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
    "--plot",
    metavar="METRIC",
    heading="What to show",
    help="draw a metric by block and matrix type, also with --png and --html",
)
@option(
    "--farms",
    metavar="m,Q,ops",
    heading="What to measure",
    help="FARMS' exponent too: windows of m × mQ at ops × ops places, such as 2000,1,10",
)
@option(
    "--randomize",
    is_flag=True,
    heading="What to measure",
    help="distance to the spectrum of the shuffled matrix too",
)
@option(
    "--mp-fit",
    is_flag=True,
    heading="What to measure",
    help="the Marchenko-Pastur bulk too: soft rank, scale, spikes",
)
@option(
    "--esd-exact",
    is_flag=True,
    heading="What to measure",
    help="fp64 singular values, several times slower",
)
@option(
    "--engine",
    default="compress",
    show_default=True,
    metavar="NAME",
    heading="What to measure",
    help="compress or weightwatcher, whose analyze then measures the same matrices",
)
@option(
    "--no-cache",
    is_flag=True,
    heading="What to measure",
    help="measure anew, keep nothing; else tensors seen before are known by content",
)
@option("--csv", type=click.Path(), metavar="FILE", heading="Files", help="the table as CSV")
@option(
    "--png",
    type=click.Path(),
    metavar="FILE",
    heading="Files",
    help="a picture: of the spectrum with --module, else of a metric by block and type",
)
@option(
    "--html",
    type=click.Path(),
    metavar="FILE",
    heading="Files",
    help="tables that sort and pictures in one file, no network",
)
@opt.SEED
@opt.DEVICE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(
    model: str,
    module: str | None,
    plot: str | None,
    farms: str | None,
    randomize: bool,
    mp_fit: bool,
    esd_exact: bool,
    engine: str,
    no_cache: bool,
    csv: str | None,
    png: str | None,
    html: str | None,
    seed: int,
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
            farms=farms,
            randomize=randomize,
            mp_fit=mp_fit,
            seed=seed,
            engine=engine,
            plot=plot,
            csv=csv,
            png=png,
            html=html,
            cache=not no_cache,
            device=device,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
            progress=out.progress,
        )
        out.result(seen.as_dict(), seen.render())
