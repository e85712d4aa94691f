"""`compress lowrank-svd`: layers become products of two thin ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from click.core import ParameterSource

from compress.cli import options as opt
from compress.cli.lowrank_scratch import BOTH, ONLY, SCRATCH, scratch_options
from compress.cli.options import option
from compress.cli.session import session
from compress.errors import RequestError

SIZE = opt.options(
    option(
        "--keep",
        type=float,
        metavar="K",
        heading="How much to keep",
        help="weights of the chosen layers that their factors may hold, a share  [default: 0.8]",
    ),
    option(
        "--keep-model",
        type=float,
        metavar="K",
        heading="How much to keep",
        help="the same of the whole model, embeddings and all",
    ),
    option("--rank", type=int, metavar="R", heading="How much to keep", help="one rank everywhere"),
    option(
        "--rank-ratio",
        type=float,
        metavar="P",
        heading="How much to keep",
        help="a rank as a share of a layer's smaller side; 0.5 of a square one saves nothing",
    ),
    option(
        "--energy",
        type=float,
        metavar="E",
        heading="How much to keep",
        help="share of each layer's output energy that its rank keeps",
    ),
    option(
        "--budget-ms",
        type=float,
        metavar="MS",
        heading="How much to keep",
        help="as much as lets a forward take so many milliseconds here; measured afterwards",
    ),
    option(
        "--budget-tokens",
        type=int,
        default=256,
        show_default=True,
        metavar="N",
        heading="How much to keep",
        help="tokens of that forward",
    ),
)
LAYERS = opt.options(
    option(
        "--include",
        multiple=True,
        callback=opt.comma_list,
        default=("all",),
        metavar="GLOB,…",
        heading="Which layers",
        help="attention, ffn, conv (pointwise), all, or globs of names  [default: all]",
    ),
    option(
        "--exclude",
        multiple=True,
        callback=opt.comma_list,
        metavar="GLOB,…",
        heading="Which layers",
        help="leave these alone; never chosen: embeddings, heads, routers",
    ),
    option(
        "--share",
        multiple=True,
        callback=opt.comma_list,
        metavar="NAME,…",
        heading="Which layers",
        help="one down factor for qkv, for gate-up",
    ),
)
HOW = opt.options(
    option(
        "--method",
        default="sequential",
        show_default=True,
        metavar="NAME",
        heading="How",
        help="svd (no data), asvd, whiten, sequential (behind the factors before it), kfac",
    ),
    option(
        "--alloc",
        metavar="NAME",
        heading="How",
        help="ranks by knapsack, uniform, energy, greedy, lems, svdllm-v2, swift, or a JSON file "
        "of ranks  [default: knapsack]",
    ),
    option(
        "--round",
        type=int,
        metavar="N",
        heading="How",
        help="ranks are multiples of N  [default: 8, less in small layers]",
    ),
    option(
        "--min-rank",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        heading="How",
        help="least rank of a layer",
    ),
    option(
        "--damp",
        default="auto",
        show_default=True,
        metavar="L",
        heading="How",
        help="shrinkage of Gram matrices; auto: 0.01 below 10 tokens a feature, else 0",
    ),
    option(
        "--beta",
        default="auto",
        show_default=True,
        metavar="B",
        heading="How",
        help="sequential: 0 aims at the layer's outputs behind the factors, 1 at the dense "
        "model's; auto: by held-out tokens",
    ),
    option(
        "--asvd-power",
        type=float,
        default=0.5,
        show_default=True,
        metavar="A",
        heading="How",
        help="asvd: of the column scales mean|x|^A",
    ),
    option(
        "--mean-correction/--no-mean-correction",
        default=True,
        show_default=True,
        heading="How",
        help="let biases take up what the mean input loses",
    ),
    option(
        "--factor-dtype",
        default="auto",
        show_default=True,
        metavar="NAME",
        heading="How",
        help="of the factors in the files, no wider than the model's",
    ),
    option(
        "--trial-samples",
        type=int,
        default=8,
        show_default=True,
        metavar="N",
        heading="How",
        help="lems, swift: sequences on which whole models are tried",
    ),
    option(
        "--gradient-samples",
        type=int,
        default=16,
        show_default=True,
        metavar="N",
        heading="How",
        help="kfac: sequences that gradients come from; the model is whole in memory",
    ),
    option(
        "--recover",
        type=int,
        default=0,
        show_default=True,
        metavar="N",
        heading="How",
        help="train the factors N steps towards the dense model's outputs",
    ),
    option(
        "--recover-lr",
        type=float,
        default=1e-4,
        show_default=True,
        metavar="LR",
        heading="How",
        help="its learning rate",
    ),
)
STATISTICS = opt.options(
    option(
        "--save-stats",
        type=click.Path(),
        metavar="DIR",
        heading="Calibration",
        help="keep the statistics: one calibration, many ratios",
    ),
    option(
        "--load-stats",
        type=click.Path(),
        metavar="DIR",
        heading="Calibration",
        help="take those of --save-stats",
    ),
)


@click.command("lowrank-svd", cls=opt.Command)
@click.argument("model", required=False, metavar="[MODEL]")
@opt.OUTPUT
@opt.PUSH
@SIZE
@LAYERS
@HOW
@opt.CALIBRATION
@STATISTICS
@opt.REGISTRY
@opt.EVALUATION
@opt.SPEECH
@SCRATCH
@opt.PLAN
@opt.RESUME
@opt.SEED
@opt.DEVICE
@opt.DTYPE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
@click.pass_context
def command(
    ctx: click.Context, model: str | None, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Make layers of MODEL products of two thin ones, which lose as little of what
    the layers put out on calibration text as their ranks allow.

    Example: compress lowrank-svd ./llama-1b -o ./llama-1b-k80 --keep 0.8

    Three measures of how much: weights kept of the chosen layers (--keep), of the
    model (--keep-model), rank over a layer's smaller side (--rank-ratio); the
    result states all. SVD papers' "ratio" is 1 - keep.
    Few tokens at once gain from fewer bytes, many from fewer operations; a rank
    near a layer's break-even one gains nothing, and such layers stay as they are.
    Needs one pass over the calibration text, and with --method sequential about
    five more of each block.
    """
    if not given["from_scratch"]:
        _refuse(ctx, ONLY, "means something with `--from-scratch` alone")
        for name in ONLY:
            given.pop(name)
        if model is None:
            raise RequestError("no model", "`compress lowrank-svd MODEL -o OUT`")
        if given["output"] is None and not given["dry_run"]:
            raise RequestError(
                "no output directory", "add `-o OUT`, or `--dry-run` to see the plan"
            )
    else:
        idle = [name for name in given if name not in (*ONLY, *BOTH, "from_scratch")]
        _refuse(ctx, idle, "can't act with `--from-scratch`")
        given = scratch_options(given, lambda name: _chosen(ctx, name))
    with session(as_json, quiet) as out:
        from compress.lowrank.command import lowrank_svd

        result = lowrank_svd(model, progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())


def _refuse(ctx: click.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that were given and can't act.

    Raises:
        RequestError: naming the first.
    """
    for name in names:
        if _chosen(ctx, name) and name != "token":
            raise RequestError(f"`--{name.replace('_', '-')}` {why}", "leave one of them out")


def _chosen(ctx: click.Context, name: str) -> bool:
    """Whether an option was given, on the command line, in --config or by the environment."""
    return ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
