"""The door of `compress train-spam`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.session import session
from compress.cli.training_options import training_options

DEFAULTS = {
    "objective": "ntp",
    "optimizer": "spam",
    "norm": "as they are",
    "seqlen": 256,
    "batch_size": 512,
    "weight_decay": 0.0,
    "betas": (0.9, 0.999),
}


@click.command("train-spam", cls=opt.Command)
@click.argument("model", required=False, metavar="[MODEL_OR_CONFIG]")
@training_options(DEFAULTS)
def command(model: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train with SPAM, an Adam that clips gradient spikes and forgets its moments
    now and then, or with Stable-SPAM or any other optimizer.

    Starts from MODEL_OR_CONFIG: a checkpoint, or a directory or .json file with a
    config alone for random weights; or from --preset.

    Example: compress train-spam --preset llama-60m --tokenizer t5-base --data c4
    -o ./llama-60m-spam

    The whole gradient is clipped to norm 1 as well, the strongest single
    protection; the papers' runs have --max-grad-norm 0.
    """
    with session(as_json, quiet) as out:
        from compress.training.command import train_spam

        result = train_spam(model, progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
