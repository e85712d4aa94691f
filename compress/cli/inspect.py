"""The door of `compress inspect`."""

from __future__ import annotations

from typing import Any

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
    help="compress or weightwatcher (its analyze; with --randomize, --mp-fit 1 s a matrix)",
)
@option(
    "--no-cache",
    is_flag=True,
    heading="What to measure",
    help="measure anew, keep nothing; else tensors seen before are known by content",
)
@option(
    "--depth",
    is_flag=True,
    heading="What each layer does",
    help="variance, gradient, angular distance, and the loss without the layer",
)
@option(
    "--data",
    metavar="DATA,…",
    heading="What each layer does",
    help="text for --depth  [default: demo, the shipped corpus]",
)
@option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    heading="What each layer does",
    help="windows of it  [default: 16]",
)
@option(
    "--seqlen",
    type=click.IntRange(min=2),
    metavar="L",
    heading="What each layer does",
    help="tokens in a window  [default: 512 or the model's limit]",
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
    as_json: bool,
    quiet: bool,
    depth: bool,
    data: str | None,
    samples: int | None,
    seqlen: int | None,
    png: str | None,
    seed: int,
    device: str,
    revision: str | None,
    token: str | None,
    trust_remote_code: bool,
    **spectral: Any,
) -> None:
    """Show spectra, anatomy and size of MODEL; changes nothing.

    Example: compress inspect ./llama-1b --module model.layers.3.self_attn.q_proj

    Reads one block at a time; needs no tokenizer and no data, except with --depth, which
    runs the whole model on text.
    """
    shared: dict[str, Any] = {
        "png": png,
        "seed": seed,
        "device": device,
        "revision": revision,
        "token": token,
        "trust_remote_code": trust_remote_code,
    }
    text = {"data": data, "samples": samples, "seqlen": seqlen}
    _check_together(depth, text, spectral)
    seen: Any
    with session(as_json, quiet) as out:
        shared["progress"] = out.progress
        if depth:
            from compress.evaluation.depth_page import inspect_depth

            given: dict[str, Any] = {k: v for k, v in text.items() if v is not None}
            seen = inspect_depth(model, **given, **shared)
        else:
            from compress.spectra.inspect import inspect

            exact, cache = spectral.pop("esd_exact"), not spectral.pop("no_cache")
            seen = inspect(model, exact=exact, cache=cache, **spectral, **shared)
        out.result(seen.as_dict(), seen.render())


def _check_together(depth: bool, text: dict[str, Any], spectral: dict[str, Any]) -> None:
    """Refuse options of the other half of the command.

    Raises:
        RequestError: naming both.
    """
    from compress.errors import RequestError

    others = spectral if depth else text
    named = [name for name, value in others.items() if value and value != "compress"]
    if named:
        option_name = f"--{named[0].replace('_', '-')}"
        raise RequestError(
            f"`{option_name}` {'does nothing with' if depth else 'needs'} `--depth`",
            f"leave {'one of the two' if depth else 'it'} out"
            + ("" if depth else ", or add --depth"),
        )
