"""`compress pass-prune`: channels, heads and MLP units leave a vision network."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import comma_list, option
from compress.cli.session import session
from compress.errors import RequestError

BUDGET = opt.options(
    option(
        "--keep", type=float, metavar="SHARE", heading="Budget (one of)",
        help="share of the multiply-adds kept, such as 0.5",
    ),
    option(
        "--keep-params", type=float, metavar="SHARE", heading="Budget (one of)",
        help="share of the parameters kept",
    ),
    option(
        "--target-latency", metavar="1.5x", heading="Budget (one of)",
        help="times faster than dense, measured in this run",
    ),
    option(
        "--ratio", type=float, metavar="SHARE", heading="Budget (one of)",
        help="share of the units removed from every coupled group",
    ),
)  # fmt: skip
CHOICE = opt.options(
    option(
        "--method", default="pass", show_default=True, metavar="NAME", heading="What goes",
        help="pass; l1, l2, bn, fpgm, group, random: by weights; taylor, fisher, isomorphic: by "
        "gradients; growreg",
    ),
    option(
        "--scope", metavar="NAME", heading="What goes",
        help="ranked together: global, isomorphic (groups of one structure), uniform  [default: "
        "global for pass, else isomorphic]",
    ),
    option(
        "--prune", callback=comma_list, default="channels,mlp,heads,head-dims",
        show_default=True, metavar="KIND,…", heading="What goes",
        help="also: streams, the residual streams under a layer norm (never exact)",
    ),
    option(
        "--min-keep", type=float, default=0.1, show_default=True, metavar="SHARE",
        heading="What goes", help="of each group's units stays",
    ),
    option(
        "--round-to", type=int, default=8, show_default=True, metavar="N", heading="What goes",
        help="channel counts become multiples of N, within the budget",
    ),
    option(
        "--baselines", callback=comma_list, metavar="NAME,…", heading="What goes",
        help="other methods on the same budget, repaired and trained alike; only scored",
    ),
)  # fmt: skip
SEARCH = opt.options(
    option(
        "--prompt", default="pad", show_default=True, metavar="NAME", heading="PASS",
        help="visual prompt: pad (on the image's edges), expand (around it), none",
    ),
    option(
        "--prompt-size", type=int, metavar="N", heading="PASS",
        help="pixels of its frame  [default: a fourteenth of the side]",
    ),
    option(
        "--drop-prompt/--keep-prompt", default=True, show_default=True, heading="PASS",
        help="the saved model needs no prompt",
    ),
    option("--mask-epochs", type=int, default=5, show_default=True, metavar="N", heading="PASS",
           help="of the search"),
    option("--mask-lr", type=float, default=1e-3, show_default=True, metavar="LR", heading="PASS",
           help="of the search, AdamW"),
    option("--hidden", type=int, default=64, show_default=True, metavar="N", heading="PASS",
           help="width of the recurrent hyper-network"),
    option("--ste", default="identity", show_default=True, metavar="NAME", heading="PASS",
           help="straight-through step: identity, sigmoid"),
    option("--stats", default="mean", show_default=True, metavar="NAME", heading="PASS",
           help="weight statistics that it reads: mean, quantiles, none"),
    option("--mapper", default="group", show_default=True, metavar="NAME", heading="PASS",
           help="from its state to scores: a map for each group, or one shared by all"),
    option("--recurrence/--no-recurrence", "recurrent", default=True, show_default=True,
           heading="PASS", help="each group looked at after those before it, or alone"),
    option("--search-norms", default="running", show_default=True, metavar="NAME",
           heading="PASS", help="search by batch norms' running statistics, or the batch's"),
    option("--start", metavar="CRITERION", heading="PASS",
           help="begin from this method's scores and learn what to add  [default: none]"),
    option("--prompt-share", type=float, metavar="SHARE", heading="PASS",
           help="of the fine-tuning that sees the prompt  [default: two thirds, all of it with "
           "--keep-prompt]"),
)  # fmt: skip
AFTER = opt.options(
    option(
        "--repair", default="bn", show_default=True, metavar="NAME", heading="After the cut",
        help="bn: batch norms measured anew; lsq: least squares on what reads the removed "
        "channels, then bn; none",
    ),
    option("--finetune-epochs", type=int, default=0, show_default=True, metavar="N",
           heading="After the cut", help="of training"),
    option("--lr", type=float, metavar="LR", heading="After the cut", help="of the training"),
    option("--distill", type=float, default=0.0, show_default=True, metavar="W",
           heading="After the cut", help="share of the dense network's word in the loss"),
    option("--distill-temperature", type=float, default=2.0, show_default=True, metavar="T",
           heading="After the cut", help="softens it"),
    option("--precision", default="float32", show_default=True, metavar="NAME",
           heading="After the cut", help="of search and training: float32, bf16, fp16"),
    option("--growreg-epochs", type=int, default=2, show_default=True, metavar="N",
           heading="After the cut", help="of growreg's penalty, before its cut"),
    option("--growreg-lr", type=float, default=0.01, show_default=True, metavar="LR",
           heading="After the cut", help="of the same"),
    option("--export", callback=comma_list, metavar="FORM,…", heading="After the cut",
           help="also write onnx"),
)  # fmt: skip
SCRATCH = opt.options(
    option("--preset", metavar="NAME", heading="From scratch, without MODEL",
           help="train resnet-20 (also 8, 14, 32, 56, 110; -slim, -fast) first, into OUT-dense"),
    option("--dense-epochs", type=int, default=30, show_default=True, metavar="N",
           heading="From scratch, without MODEL", help="of that training"),
    option("--dense-lr", type=float, default=0.1, show_default=True, metavar="LR",
           heading="From scratch, without MODEL", help="of that training"),
)  # fmt: skip
DATA = opt.options(
    option("--data", metavar="DATA", heading="Data",
           help="labelled images: class folders, ZIP, parquet, a data set's name"),
    option("--image-size", type=int, metavar="N", heading="Data",
           help="bring images to N x N  [default: as the checkpoint's processor says]"),
    option("--skip-bad", is_flag=True, heading="Data", help="leave out images that can't be read"),
    option("--augment", callback=comma_list, default="flip,crop", show_default=True,
           metavar="NAME,…", heading="Data", help="training images: flip, crop, mixup, or none"),
    option("--new-head", is_flag=True, heading="Data",
           help="a new classifier for the data's classes, trained before anything is chosen"),
    option("--head-epochs", type=int, default=10, show_default=True, metavar="N", heading="Data",
           help="of that training"),
    option("--head-lr", type=float, default=0.01, show_default=True, metavar="LR",
           heading="Data", help="of that training"),
    option("--calib-samples", type=int, default=512, show_default=True, metavar="N",
           heading="Data", help="training images that criteria and repair look at"),
    option("--batch-size", type=int, default=64, show_default=True, metavar="N", heading="Data",
           help="images in a training step, and at once elsewhere"),
    option("--micro-batch", type=int, metavar="N", heading="Data",
           help="images of a training step computed at once  [default: all that share a process]"),
    option("--latency-batch", type=int, default=64, show_default=True, metavar="N",
           heading="Data", help="batch size that --target-latency is about"),
)  # fmt: skip


@click.command("pass-prune", cls=opt.Command)
@click.argument("model", required=False)
@opt.OUTPUT
@BUDGET
@CHOICE
@DATA
@SEARCH
@AFTER
@SCRATCH
@opt.PLAN
@opt.RESUME
@opt.SEED
@opt.DEVICE
@opt.DTYPE
@opt.CONFIG
@opt.SOURCE
@opt.SAY
def command(model: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Remove channels, attention heads and MLP units from an image classifier: the
    network is smaller afterwards, not only masked. PASS searches what goes by a
    visual prompt and a recurrent hyper-network; other criteria need no search.

    Example: compress pass-prune ./resnet-50 -o ./half --data ./photos --keep 0.5

    PASS trains --mask-epochs over the training images, about two thirds of a
    training step each; other methods take a pass over --calib-samples or none.
    A row "no search: l1" is always scored beside it. Fewer multiply-adds are not
    as much faster: the receipt has both.
    """
    if given["output"] is None and not given["dry_run"]:
        raise RequestError("no output directory", "add `-o OUT`, or `--dry-run` to see the plan")
    with session(as_json, quiet) as out:
        from compress.channels.command import pass_prune

        result = pass_prune(model, progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
