"""`compress cd-moe-condense`: mixture-of-experts layers become small dense ones."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session
from compress.errors import RequestError

CONDENSE = opt.options(
    option(
        "--mode",
        default="dense",
        show_default=True,
        metavar="NAME",
        heading="What to condense",
        help="dense; or layers that stay sparse with K experts: prune, merge (clusters of experts)",
    ),
    option(
        "--layers",
        metavar="N",
        heading="What to condense",
        help="how many layers (the search says which), prefix:N, all, or i:1,4,7: decoder layers "
        "from 0  [default: a third of them]",
    ),
    option(
        "--experts",
        type=int,
        metavar="K",
        heading="What to condense",
        help="routed experts kept in a layer; 0 keeps the shared one alone  [default: as many as a "
        "token is routed to; prune, merge: half]",
    ),
    option(
        "--target-bytes",
        type=int,
        metavar="N",
        heading="What to condense",
        help="as many layers as bring the weights down to N bytes",
    ),
    option(
        "--target-speed",
        metavar="1.3x",
        heading="What to condense",
        help="as many layers as make decoding so many times as fast, measured with both forms in "
        "memory; prefill:1.3x reads a prompt so fast",
    ),
    option(
        "--paper",
        is_flag=True,
        heading="What to condense",
        help="the published procedure: greedy-js, mean weights, no refit, js-hidden, on 100 "
        "sequences of 256 tokens",
    ),
    option(
        "--score",
        metavar="NAME",
        heading="How",
        help="chooses experts: greedy-ls, greedy-js, reap, frequency, soft-frequency, cp, ean, "
        "mass, acp, do-acp, random  [default: greedy-ls; reap with --mode prune]",
    ),
    option(
        "--weights",
        default="least-squares",
        show_default=True,
        metavar="NAME",
        heading="How",
        help="constants of the kept experts: least-squares, conditional-mean",
    ),
    option(
        "--refit",
        default="ridge",
        show_default=True,
        metavar="NAME",
        heading="How",
        help="down projection fitted to what the layer returned: ridge, sequential (behind the "
        "condensed layers before it), none",
    ),
    option(
        "--ridge",
        default="auto",
        show_default=True,
        metavar="R",
        heading="How",
        help="strength of the refit's pull to the constants; auto: by held-out tokens",
    ),
    option(
        "--shared-gate",
        metavar="NAME",
        heading="How",
        help="a shared expert's sigmoid gate: refit, constant, keep  [default: refit; constant "
        "with --refit none]",
    ),
    option(
        "--layer-search",
        default="greedy",
        show_default=True,
        metavar="NAME",
        heading="How",
        help="greedy, beam:N, or single: layers ranked one by one",
    ),
    option(
        "--metric",
        default="kl-logits",
        show_default=True,
        metavar="NAME",
        heading="How",
        help="what the layer search compares: kl-logits, js-hidden, loss",
    ),
    option(
        "--search-samples",
        type=int,
        default=16,
        show_default=True,
        metavar="N",
        heading="How",
        help="calibration sequences that the layer search runs on",
    ),
    option(
        "--stock-only",
        is_flag=True,
        heading="How",
        help="refuse what only an edit could store; plain transformers then loads OUT",
    ),
)


TUNING = opt.options(
    option(
        "--finetune",
        type=int,
        metavar="STEPS",
        heading="Fine-tuning",
        help="train the condensed layers' experts, all else frozen, for so many steps: AdamW, "
        "linear decay; needs the whole model in memory",
    ),
    option(
        "--finetune-data",
        multiple=True,
        metavar="DATA,…",
        heading="Fine-tuning",
        help="its text  [default: that of --calib]",
    ),
    option(
        "--finetune-sft",
        metavar="PROMPT:ANSWER",
        heading="Fine-tuning",
        help="on answers: two columns of the data",
    ),
    option(
        "--finetune-lr", type=float, metavar="LR", heading="Fine-tuning", help="[default: 5e-5]"
    ),
    option(
        "--finetune-batch",
        type=int,
        metavar="N",
        heading="Fine-tuning",
        help="sequences a step  [default: 8]",
    ),
    option(
        "--finetune-seqlen",
        type=int,
        metavar="L",
        heading="Fine-tuning",
        help="tokens a sequence  [default: 256 or the model's limit]",
    ),
)


@click.command("cd-moe-condense", cls=opt.Command)
@click.argument("model")
@opt.OUTPUT
@opt.PUSH
@CONDENSE
@TUNING
@opt.CALIBRATION
@opt.REGISTRY
@opt.EVALUATION
@opt.PLAN
@opt.RESUME
@opt.SEED
@opt.DEVICE
@opt.DTYPE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(model: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Turn mixture-of-experts layers of MODEL into small dense ones: the experts
    that matter, with constant weights, merged with the shared expert into one MLP
    that is refitted to what the whole layer returned.

    Example: compress cd-moe-condense ./qwen1.5-moe -o ./condensed --layers 9

    Needs one pass over the calibration set with every expert on every token, and
    a part of a pass for each layer that the search tries.
    With as many experts kept as a token is routed to, each token costs as many
    operations as before: memory falls, and decoding gains where batches are small.
    """
    if given["output"] is None and not given["dry_run"]:
        raise RequestError("no output directory", "add `-o OUT`, or `--dry-run` to see the plan")
    with session(as_json, quiet) as out:
        from compress.experts.command import cd_moe_condense

        result = cd_moe_condense(model, progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
