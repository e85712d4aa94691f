"""The door of `compress calib-study`."""

from __future__ import annotations

import re
from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session
from compress.errors import RequestError


def _numbers(ctx: click.Context, param: click.Parameter, value: Any) -> tuple[float, ...]:
    """Split `0.5,0.6` into numbers."""
    try:
        return tuple(float(part) for part in opt.comma_list(ctx, param, value))
    except ValueError as error:
        raise RequestError(f"`--{param.name} {value}`: numbers with commas are needed") from error


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Turn "90s", "30m", "2h" or "1h30m" into seconds."""
    if value is None:
        return None
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", value)
    if not value or parts is None or not any(parts.groups()):
        raise RequestError(f"`--budget {value}` isn't a time", "30m, 2h, 1h30m or 90s")
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return 3600 * hours + 60 * minutes + seconds


DATA = opt.options(
    option(
        "--calib",
        multiple=True,
        required=True,
        metavar="A,B,…",
        heading="What to compare",
        help="sets to compare: corpora or files, with @FORMAT; a=0.7+b=0.3 is a mix",
    ),
    option(
        "--formats",
        multiple=True,
        callback=opt.comma_list,
        metavar="F,…",
        heading="What to compare",
        help="try sets without @FORMAT in each: raw, zero-shot, icl, icl-K, cot, icl-cot",
    ),
    option(
        "--reference",
        metavar="A",
        heading="What to compare",
        help="the set that all are compared with  [default: the first]",
    ),
    option(
        "--seeds",
        type=int,
        default=5,
        show_default=True,
        metavar="N",
        heading="What to compare",
        help="draws of each set, from --seed on",
    ),
    option(
        "--samples",
        type=int,
        default=128,
        show_default=True,
        metavar="N",
        heading="What to compare",
        help="sequences of a set",
    ),
    option(
        "--seqlen",
        type=int,
        metavar="L",
        heading="What to compare",
        help="tokens a sequence  [default: 2048 or the model's limit]",
    ),
    option(
        "--disjoint",
        is_flag=True,
        heading="What to compare",
        help="the draws of a set share no window",
    ),
    option(
        "--doc-sampling",
        default="packed",
        show_default=True,
        metavar="NAME",
        heading="What to compare",
        help="packed: whole documents; isolated: each sees itself; long: windows of long ones",
    ),
    option(
        "--select",
        default="random",
        show_default=True,
        metavar="NAME",
        heading="What to compare",
        help="which windows: random; diverse: by words; cola: by activations",
    ),
    option(
        "--chat-template/--no-chat-template",
        default=True,
        show_default=True,
        heading="What to compare",
        help="write prompt formats as conversations if the tokenizer can",
    ),
    option(
        "--allow-leakage",
        is_flag=True,
        heading="What to compare",
        help="let text be calibrated on and evaluated on",
    ),
)
PRUNING = opt.options(
    option(
        "--methods",
        multiple=True,
        callback=opt.comma_list,
        default=("wanda",),
        metavar="M,…",
        heading="How to prune",
        help="wanda, sparsegpt, magnitude, ria, …  [default: wanda]",
    ),
    option(
        "--sparsity",
        multiple=True,
        callback=_numbers,
        metavar="S,…",
        heading="How to prune",
        help="fractions of the weights  [default: 0.5 without --patterns]",
    ),
    option(
        "--patterns",
        multiple=True,
        callback=opt.comma_list,
        metavar="N:M,…",
        heading="How to prune",
        help="N:M patterns, beside the sparsities",
    ),
    option(
        "--allocations",
        multiple=True,
        callback=opt.comma_list,
        default=("uniform",),
        metavar="R,…",
        heading="How to prune",
        help="uniform, alpha, owl, dlp, …  [default: uniform]",
    ),
    option(
        "--stats",
        default="exact",
        show_default=True,
        metavar="NAME",
        heading="How to prune",
        help="exact: behind pruned blocks; dense: one pass for all, approximate",
    ),
    option(
        "--damp",
        type=float,
        default=0.01,
        show_default=True,
        metavar="D",
        heading="How to prune",
        help="sparsegpt, admm, alps: damping, times the diagonal",
    ),
    option(
        "--block-size",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        metavar="N",
        heading="How to prune",
        help="sparsegpt: columns decided together",
    ),
    option(
        "--skip",
        multiple=True,
        metavar="GLOB",
        heading="How to prune",
        help="modules to leave alone; repeatable",
    ),
)
EVALUATION = opt.options(
    *(
        option(
            *names,
            multiple=many,
            callback=opt.comma_list if names[0] == "--tasks" else None,
            type=kind,
            metavar=metavar,
            heading="Evaluation",
            help=text,
        )
        for names, many, kind, metavar, text in (
            (("--ppl",), True, None, "DATA,…", "loss on these texts"),
            (("--tasks",), True, None, "TASK,…", "lm-eval tasks"),
            (("--task-dir", "task_dirs"), True, click.Path(), "DIR", "your own task YAMLs"),
            (("--limit",), False, click.IntRange(min=1), "N", "most items a task, windows a text"),
            (("--stride",), False, click.IntRange(min=1), "N", "windows advance by N tokens"),
            (("--eval-seqlen",), False, click.IntRange(min=2), "L", "tokens in a scored window"),
        )
    ),
    option(
        "--eval-batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        heading="Evaluation",
        help="windows scored at once",
    ),
    option(
        "--controls",
        default="full",
        show_default=True,
        metavar="NAME",
        heading="Evaluation",
        help="full or none: magnitude, a repeated cell, dots, random characters",
    ),
    option(
        "--predictors/--no-predictors",
        default=True,
        show_default=True,
        heading="Evaluation",
        help="how well cheap predictors rank the sets: a dense pass each",
    ),
    option(
        "--bootstrap",
        type=int,
        default=10_000,
        show_default=True,
        metavar="B",
        heading="Evaluation",
        help="resamples of seeds and items",
    ),
)
WORK = opt.options(
    option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
           help="sequences run at once"),
    option("--budget", callback=_duration, metavar="TIME",
           help="begin nothing more after 30m, 2h; what is done is balanced"),
    option("--shard", callback=opt.shard_of, metavar="I/N", help="only the I-th of N parts"),
    option("--reuse", multiple=True, type=click.Path(), metavar="STUDY",
           help="take equal cells of a study or shard over; repeatable"),
    option("--backend", default="local", show_default=True, metavar="NAME", help="local or ray"),
    option("--dry-run", is_flag=True, help="count cells, passes and time; write nothing"),
)  # fmt: skip


@click.command("calib-study", cls=opt.Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@opt.OUTPUT
@DATA
@PRUNING
@EVALUATION
@opt.REGISTRY
@WORK
@opt.RESUME
@opt.SEED
@opt.DEVICE
@opt.DTYPE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(models: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Prune MODEL with many calibration sets and say which is better, or that none is.

    Example: compress calib-study ./llama-1b -o ./study --calib c4,gsm8k@icl,self --sparsity 0.5,0.6
    --methods wanda,sparsegpt --ppl wikitext2

    Needs 2 forward passes for each cell over its set, and one evaluation; --stats dense one pass
    for all cells of a set. Keeps no pruned model.
    """
    if given["output"] is None and not given["dry_run"]:
        raise RequestError("no output directory", "add `-o OUT`, or `--dry-run` to see the cost")
    with session(as_json, quiet) as out:
        from compress.study.command import calib_study

        result = calib_study(list(models), progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
