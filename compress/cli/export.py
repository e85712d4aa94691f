"""The door of `compress export`."""

from __future__ import annotations

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session
from compress.errors import RequestError


@click.command("export", cls=opt.Command)
@click.argument("model")
@opt.OUTPUT
@opt.PUSH
@option(
    "--to",
    "to",
    metavar="FORM",
    default="stock",
    show_default=True,
    help="stock, bitmask, remote-code, onnx",
)
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(
    model: str,
    output: str | None,
    overwrite: bool,
    to: str,
    revision: str | None,
    token: str | None,
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a checkpoint in a form that loads without this package (stock), with
    one file of code by which it does (remote-code), without the zeros of its blocks
    (bitmask), or, for image classifiers, as ONNX.

    Example: compress export ./llama-lowrank -o ./llama-stock --to stock

    Says what is gained and lost: low-rank layers, multiplied out, are as large as
    before; packed weights are expanded at load, which needs this package.
    """
    if output is None:
        raise RequestError("no output directory", "add `-o OUT`")
    with session(as_json, quiet) as out:
        from compress.exporting import export

        done = export(
            model,
            output,
            to=to,
            overwrite=overwrite,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
            progress=out.progress,
        )
        out.result(done.as_dict(), done.render())
