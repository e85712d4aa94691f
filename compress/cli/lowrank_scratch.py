"""The options of `lowrank-svd --from-scratch` alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from compress.cli import options as opt
from compress.cli.options import option

F = TypeVar("F", bound=Callable[..., Any])
SCRATCH_HEADING = "From scratch"
SPEECH_HEADING = "From scratch: speech"
TRAINING_HEADING = "From scratch: training"


def _option(heading: str, name: str, metavar: str, text: str, **more: Any) -> Callable[[F], F]:
    return option(name, heading=heading, metavar=metavar, help=text, **more)


def _flag(heading: str, name: str, text: str) -> Callable[[F], F]:
    return option(name, is_flag=True, default=None, heading=heading, help=text)


def _factors() -> Callable[[F], F]:
    heading = SCRATCH_HEADING
    return opt.options(
        option("--from-scratch", is_flag=True, heading=heading,
               help="train a low-rank model from a config instead: speech, or text"),
        _option(heading, "--preset", "NAME",
                "in place of MODEL: conformer-tiny, conformer-small, conformer-base, llama-9m, …"),
        _option(heading, "--data", "DATA,…",
                "recordings (a folder with manifest.csv, an audio column) or text", multiple=True),
        _option(heading, "--valid", "DATA,…", "held-out ones; their loss is logged",
                multiple=True),
        _option(heading, "--tokenizer", "NAME",
                "speech: char, word (of the transcripts) or a directory  [default: char]"),
        _flag(heading, "--dense", "no factors: the run to compare with"),
        _option(heading, "--init", "NAME",
                "of factors: svd of W0, svd-scaled, orthogonal, gaussian  [default: svd]"),
        _option(heading, "--rank-schedule", "NAME",
                "--rank-ratio by depth: uniform, linear-up, linear-down, or a share a block"),
        _option(heading, "--rank-slope", "S",
                "half the spread of the linear ones  [default: 0.5]", type=float),
        _option(heading, "--factor-decay", "NAME",
                "what --weight-decay does to factors: none, l2, frobenius (of their product)  "
                "[default: l2]"),
        _option(heading, "--start", "NAME",
                "W0 by torch's reset_parameters, or the family's  [default: reset; text: family]"),
    )  # fmt: skip


def _speech() -> Callable[[F], F]:
    heading = SPEECH_HEADING
    return opt.options(
        _option(heading, "--sample-rate", "HZ",
                "samples a second  [default: the preset's or 16000]", type=int),
        _option(heading, "--mels", "N", "log-mel bins  [default: the model's or 80]", type=int),
        _option(heading, "--max-seconds", "S", "the longest recording  [default: 30]", type=float),
        _flag(heading, "--visual", "join the .npy of visual features beside each recording"),
        _flag(heading, "--drop-short", "leave out recordings too short for their transcript"),
    )  # fmt: skip


def _training() -> Callable[[F], F]:
    heading = TRAINING_HEADING
    number = {"type": int}
    real = {"type": float}
    return opt.options(
        _option(heading, "--steps", "N", "of --batch-size recordings [default: 16]", **number),
        _option(heading, "--micro-batch", "N", "of them at once; BatchNorm sees these", **number),
        _option(heading, "--lr", "LR", "peak  [default: 1e-3, from trained weights 1e-4]", **real),
        _option(heading, "--schedule", "NAME", "cosine, linear, constant, wsd  [default: cosine]"),
        _option(heading, "--warmup", "N", "steps, or a share below 1  [default: 0.1]", **real),
        _option(heading, "--min-lr", "S", "last rate over the peak  [default: 0.1]", **real),
        _option(heading, "--optimizer", "NAME", "as in train-spam  [default: adamw]"),
        _option(heading, "--weight-decay", "W", "decoupled  [default: 0.01]", **real),
        _option(heading, "--max-grad-norm", "C", "clip to this, 0 is off  [default: 1]", **real),
        _option(heading, "--precision", "NAME", "float32, bf16, fp16, pure-bf16"),
        _option(heading, "--workers", "N", "processes that make batches  [default: 0]", **number),
        _option(heading, "--log-every", "N", "steps a logged mean is over", **number),
        _option(heading, "--eval-every", "N", "steps between validations", **number),
        _option(heading, "--save-every", "N", "steps between checkpoints", **number),
        _option(heading, "--skip-nonfinite", "N",
                "leave out up to N steps whose loss isn't finite", **number),
    )  # fmt: skip


SCRATCH = opt.options(_factors(), _speech(), _training())
ONLY: tuple[str, ...] = (
    *("preset", "data", "valid", "tokenizer", "dense", "init", "rank_schedule", "rank_slope"),
    *("factor_decay", "start", "sample_rate", "mels", "max_seconds", "visual"),
    *("drop_short", "steps", "micro_batch", "lr", "schedule", "warmup", "min_lr", "optimizer"),
    *("weight_decay", "max_grad_norm", "precision", "workers", "log_every", "eval_every"),
    *("save_every", "skip_nonfinite"),
)
"""Names of the parameters that mean something with --from-scratch alone."""
BOTH: tuple[str, ...] = (
    *("output", "overwrite", "resume", "seed", "device", "dtype", "include", "exclude"),
    *("rank_ratio", "batch_size", "seqlen", "ppl", "tasks", "task_dirs", "limit", "stride"),
    *("eval_seqlen", "speed", "wer", "resample", "revision", "token", "trust_remote_code"),
)
"""Names of the door's other parameters that `train_from_scratch` takes too."""
_RENAMED = {"init": "factor_init"}


def scratch_options(given: dict[str, Any], chosen: Callable[[str], bool]) -> dict[str, Any]:
    """Return the keywords of `train_from_scratch`.

    Args:
        given: the door's parameters.
        chosen: whether the user said a parameter; of BOTH, the others have defaults of their own.
    """
    kept = {name: value for name, value in given.items() if name in ONLY or chosen(name)}
    return {_RENAMED.get(name, name): value for name, value in kept.items()}
