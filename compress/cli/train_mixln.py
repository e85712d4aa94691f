"""The door of `compress train-mixln`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.session import session
from compress.cli.training_options import training_options

DEFAULTS = {
    "objective": "ntp",
    "optimizer": "adamw",
    "norm": "mix",
    "seqlen": 256,
    "batch_size": 512,
    "weight_decay": 0.0,
    "betas": (0.9, 0.999),
}


@click.command("train-mixln", cls=opt.Command)
@click.argument("model", required=False, metavar="[MODEL_OR_CONFIG]")
@training_options(DEFAULTS)
def command(model: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train with norms placed anew: behind the first quarter of the blocks (mix),
    scaled by depth (lns), or in another way, so that deep layers do their part.

    Starts from MODEL_OR_CONFIG: a checkpoint, or a directory or .json file with a
    config alone for random weights; or from --preset.

    Example: compress train-mixln --preset llama-71m --tokenizer t5-base --data c4
    -o ./llama-71m-mix

    With --norm lns the result is a stock checkpoint; others need `import compress`
    to load. Use at least a tenth of warm-up with norms behind.
    """
    with session(as_json, quiet) as out:
        from compress.training.command import train_mixln

        result = train_mixln(model, progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
