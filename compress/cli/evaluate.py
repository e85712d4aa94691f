"""The door of `compress eval`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session

LONG = "Long context (tasks needle, multidoc, longreason)"

LAYERS = "Layer by layer (with --against)"


@click.command("eval", cls=opt.Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@option(
    "--against",
    metavar="MODEL",
    heading="Evaluation",
    help="compare every MODEL with this one, on the same examples",
)
@option(
    "--changed",
    type=click.IntRange(min=0),
    metavar="N",
    heading="Evaluation",
    help="with --against: show N examples that changed, 0 none  [default: 5]",
)
@opt.EVALUATION
@opt.options(
    option(
        "--distances",
        is_flag=True,
        heading=LAYERS,
        help="how far each block's weights and outputs are from those of that model",
    ),
    option(
        "--data",
        metavar="DATA,…",
        heading=LAYERS,
        help="text to run both on  [default: demo, the shipped corpus]",
    ),
    option(
        "--samples",
        type=click.IntRange(min=1),
        metavar="N",
        heading=LAYERS,
        help="windows of it  [default: 16]",
    ),
    option(
        "--seqlen",
        type=click.IntRange(min=2),
        metavar="L",
        heading=LAYERS,
        help="tokens in a window  [default: 512 or the models' limit]",
    ),
    option(
        "--accuracy",
        multiple=True,
        callback=opt.comma_list,
        metavar="DATA,…",
        heading="Evaluation",
        help="top-1 and top-5 on labelled images: class folders, parquet, a Hub id",
    ),
    option(
        "--image-size",
        type=click.IntRange(min=1),
        metavar="N",
        heading="Evaluation",
        help="side of these images  [default: that of the model's processor]",
    ),
    option(
        "--skip-bad",
        is_flag=True,
        heading="Evaluation",
        help="leave out images that can't be read, and say how many",
    ),
)
@opt.SPEECH
@opt.REGISTRY
@opt.options(
    option(
        "--context-lengths",
        multiple=True,
        callback=opt.number_list(int),
        metavar="L,…",
        heading=LONG,
        help="tokens of a prompt with its answer  [default: 1/4, 1/2, 1 of the limit or 4096]",
    ),
    option(
        "--depths",
        multiple=True,
        callback=opt.number_list(float),
        metavar="D,…",
        heading=LONG,
        help="needle: shares of the text before it  [default: 0,0.25,0.5,0.75,1]",
    ),
    option(
        "--documents",
        multiple=True,
        callback=opt.number_list(int),
        metavar="N,…",
        heading=LONG,
        help="multidoc: documents a prompt  [default: those of 3,5,10,20 that fit]",
    ),
    option(
        "--hops",
        multiple=True,
        callback=opt.number_list(int),
        metavar="N,…",
        heading=LONG,
        help="longreason: links from the question to the value  [default: 1,2,4]",
    ),
    option(
        "--per-cell",
        type=int,
        metavar="N",
        heading=LONG,
        help="items of each cell, such as a depth at a length  [default: 8]",
    ),
    option(
        "--choices",
        type=int,
        metavar="N",
        heading=LONG,
        help="answers of which one is right  [default: 4]",
    ),
    option(
        "--haystack",
        metavar="DATA,…",
        heading=LONG,
        help="text around needles and chains  [default: demo, the shipped corpus]",
    ),
    option(
        "--qa",
        type=click.Path(),
        metavar="FILE",
        heading=LONG,
        help="multidoc: questions, passages, answers  [default: from templates]",
    ),
    option(
        "--attention",
        is_flag=True,
        heading=LONG,
        help="where the model looks while it answers, by layer",
    ),
    option(
        "--png", type=click.Path(), metavar="FILE", heading=LONG, help="the heat maps as a picture"
    ),
)
@opt.SEED
@opt.DEVICE
@opt.DTYPE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(models: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Measure perplexity, tasks, accuracy, word errors, speed, memory of models.

    Example: compress eval ./llama-1b-s60 --against ./llama-1b --ppl wiki.txt

    The tasks needle, multidoc and longreason ask for what stands in a long prompt, and stand
    beside lm-eval's: --tasks needle,arc_easy. They cost a forward pass over each prompt.

    Example: compress eval ./llama-1b-s60 --against ./llama-1b --distances
    """
    with session(as_json, quiet) as out:
        from compress.evaluation.evaluate import evaluate

        found = evaluate(list(models), progress=out.progress, **given)
        out.result(found.as_dict(), found.render())
