"""The door of `compress alpha-prune`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session
from compress.errors import RequestError

REMOVE = opt.options(
    option(
        "--sparsity",
        type=float,
        heading="What to remove",
        metavar="S",
        help="fraction of the weights in the blocks  [default: 0.6]",
    ),
    option(
        "--method",
        default="wanda",
        show_default=True,
        heading="What to remove",
        metavar="NAME",
        help="magnitude, wanda, sparsegpt, ria, admm, alps, dsnot",
    ),
    option(
        "--refit",
        default="none",
        show_default=True,
        heading="What to remove",
        metavar="NAME",
        help="new values for the kept weights: none, exact, cg, block",
    ),
    option(
        "--refit-steps",
        type=int,
        default=100,
        show_default=True,
        metavar="N",
        heading="What to remove",
        help="refit block: steps of Adam for each block",
    ),
    option(
        "--refit-lr",
        type=float,
        default=0.01,
        show_default=True,
        metavar="R",
        heading="What to remove",
        help="refit block: learning rate, times a matrix's RMS weight",
    ),
    option(
        "--pattern",
        metavar="N:M",
        heading="What to remove",
        help="keep N of every M consecutive weights, e.g. 2:4; mixed:8: an N for each matrix",
    ),
    option(
        "--channel-permutation",
        is_flag=True,
        heading="What to remove",
        help="reorder channels inside blocks so that N:M keeps more",
    ),
    option(
        "--skip",
        multiple=True,
        metavar="GLOB",
        heading="What to remove",
        help="modules to leave alone; repeatable",
    ),
)
SPREAD = opt.options(
    option(
        "--allocation",
        metavar="NAME",
        heading="How much from which layer",
        help="alpha, farms, uniform, owl, dlp, atp, er, global, trim; or --plan FILE  "
        "[default: alpha; uniform with --pattern N:M]",
    ),
    option(
        "--rows",
        default="even",
        show_default=True,
        metavar="NAME",
        heading="How much from which layer",
        help="rows inside a matrix: even, or trim: by what each output keeps; beside any "
        "allocation (--allocation trim: uniform with it)",
    ),
    option(
        "--metric",
        default="alpha_peak",
        show_default=True,
        metavar="NAME",
        heading="How much from which layer",
        help="shape metric of the spectra; `compress inspect` shows all",
    ),
    option(
        "--metric-sign",
        default="auto",
        show_default=True,
        metavar="SIGN",
        heading="How much from which layer",
        help="1: a larger metric is pruned more; -1: less",
    ),
    option(
        "--epsilon",
        type=float,
        default=0.3,
        show_default=True,
        metavar="E",
        heading="How much from which layer",
        help="alpha, farms: spread of the shares: from 1-E to 1+E times S",
    ),
    option(
        "--compare-allocations",
        is_flag=True,
        heading="How much from which layer",
        help="prune by uniform, a straight line and atp too, in the same walk, and score all by "
        "--ppl, --tasks",
    ),
    option(
        "--granularity",
        metavar="NAME",
        heading="How much from which layer",
        help="one share per block or matrix; mixed: mean of both  [default: block; matrix with er, "
        "global]",
    ),
    option(
        "--min-sparsity",
        type=float,
        default=0.0,
        show_default=True,
        metavar="S",
        heading="How much from which layer",
        help="least share of a matrix",
    ),
    option(
        "--max-sparsity",
        type=float,
        default=0.99,
        show_default=True,
        metavar="S",
        heading="How much from which layer",
        help="greatest share of a matrix",
    ),
    option(
        "--farms-window",
        type=int,
        default=2000,
        show_default=True,
        metavar="M",
        heading="How much from which layer",
        help="farms: rows of a window; the default is cut to fit",
    ),
    option(
        "--farms-aspect",
        type=float,
        default=1.0,
        show_default=True,
        metavar="Q",
        heading="How much from which layer",
        help="farms: columns per row",
    ),
    option(
        "--farms-grid",
        type=int,
        default=10,
        show_default=True,
        metavar="N",
        heading="How much from which layer",
        help="farms: windows along each side",
    ),
    option(
        "--owl-multiple",
        type=float,
        default=5.0,
        show_default=True,
        metavar="M",
        heading="How much from which layer",
        help="owl: an outlier is M times the mean score",
    ),
    option(
        "--owl-spread",
        type=float,
        default=0.08,
        show_default=True,
        metavar="L",
        heading="How much from which layer",
        help="owl: shares stay within S-2L and S+2L",
    ),
    option(
        "--dlp-mean",
        default="mean",
        show_default=True,
        metavar="NAME",
        heading="How much from which layer",
        help="dlp: mean or median of the scores",
    ),
    option(
        "--dlp-spread",
        type=float,
        metavar="A",
        heading="How much from which layer",
        help="dlp: shares stay within S-2A and S+2A  [default: 0.04 to 0.15, by S]",
    ),
    option(
        "--atp-beta",
        default="auto",
        show_default=True,
        metavar="B",
        heading="How much from which layer",
        help="atp: rise from block to block; auto searches it",
    ),
    option(
        "--atp-candidates",
        type=int,
        default=6,
        show_default=True,
        metavar="N",
        heading="How much from which layer",
        help="atp: slopes that the search prunes with",
    ),
    option(
        "--atp-held-out",
        type=int,
        metavar="N",
        heading="How much from which layer",
        help="atp: windows of --calib to search by  [default: an eighth of --samples]",
    ),
    option(
        "--esd-exact",
        is_flag=True,
        heading="How much from which layer",
        help="fp64 singular values, several times slower",
    ),
)
STATISTICS = opt.options(
    option(
        "--propagate",
        default="pruned",
        show_default=True,
        metavar="NAME",
        heading="Calibration",
        help="what later blocks see: pruned, dense, true-sequential",
    ),
    option(
        "--damp",
        type=float,
        default=0.01,
        show_default=True,
        metavar="D",
        heading="Calibration",
        help="sparsegpt, admm, alps, refit: damping, times the diagonal",
    ),
    option(
        "--block-size",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        metavar="N",
        heading="Calibration",
        help="sparsegpt: columns decided together",
    ),
)
FORMAT = option(
    "--format",
    default="dense",
    show_default=True,
    metavar="NAME",
    help="how zeros are stored in OUT: dense, bitmask",
)


@click.command("alpha-prune", cls=opt.Command)
@click.argument("model")
@opt.OUTPUT
@opt.PUSH
@REMOVE
@SPREAD
@opt.CALIBRATION
@STATISTICS
@opt.EVALUATION
@opt.REGISTRY
@opt.PLAN
@FORMAT
@opt.RESUME
@opt.SEED
@opt.DEVICE
@opt.DTYPE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(model: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Zero the least useful weights of MODEL, more in layers whose spectra say
    they are under-trained, and write a checkpoint that from_pretrained loads.

    Example: compress alpha-prune ./llama-1b -o ./llama-1b-s60 --sparsity 0.6

    Zeros alone don't make inference faster, and files smaller only with --format
    bitmask: see --pattern.
    Needs about 2 forward passes over the calibration set (none with magnitude).
    """
    if given["output"] is None and not given["dry_run"]:
        raise RequestError("no output directory", "add `-o OUT`, or `--dry-run` to see the plan")
    with session(as_json, quiet) as out:
        from compress.sparsity.command import alpha_prune

        result = alpha_prune(model, progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
