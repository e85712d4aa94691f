"""The door of `compress train-meap`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.session import session
from compress.cli.training_options import training_options

DEFAULTS = {
    "objective": "meap",
    "optimizer": "adamw",
    "norm": "as they are",
    "seqlen": 4096,
    "batch_size": 256,
    "weight_decay": 0.05,
    "betas": (0.9, 0.95),
}


@click.command("train-meap", cls=opt.Command)
@click.argument("model", required=False, metavar="[MODEL_OR_CONFIG]")
@training_options(DEFAULTS)
def command(model: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train to predict the next token from an input of which a share is masked, so
    that the model learns to find what matters; or fine-tune so, with --sft.

    Starts from MODEL_OR_CONFIG: a checkpoint, or a directory or .json file with a
    config alone for random weights; or from --preset.

    Example: compress train-meap ./llama-1b --data answers.jsonl
    --sft question:answer --steps 1000 --batch-size 32 -o ./llama-1b-meap

    Costs no more than plain training; with --sft up to twice the tokens. Its
    training loss lies above the plain one: compare by --valid.
    """
    with session(as_json, quiet) as out:
        from compress.training.command import train_meap

        result = train_meap(model, progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
