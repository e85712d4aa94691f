"""The options of the train-* commands; the three differ in defaults alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from compress.cli import options as opt
from compress.cli.options import option

F = TypeVar("F", bound=Callable[..., Any])

LENGTH = "Length and schedule"
TEXT = "Text"
OBJECTIVE = "Objective"
OPTIMIZER = "Optimizer"
NORM = "Norms and start"
MACHINE = "Machine"
WATCH = "Watching"


def training_options(defaults: Mapping[str, Any]) -> Callable[[F], F]:
    """All options of a train-* command.

    Args:
        defaults: what the help names as default where the commands differ: `objective`,
            `optimizer`, `norm`, `seqlen`, `batch_size`, `weight_decay`, `betas`.
    """
    return opt.options(
        opt.OUTPUT,
        opt.PUSH,
        _text(defaults),
        _length(defaults),
        _objective(defaults),
        _optimizer(defaults),
        _norm(defaults),
        _machine(),
        _watching(),
        opt.EVALUATION,
        opt.RESUME,
        opt.SEED,
        opt.DEVICE,
        opt.DTYPE,
        opt.CONFIG,
        opt.SOURCE,
        opt.SAY,
    )


def _number(name: str, kind: Any, metavar: str, heading: str, help_text: str) -> Callable[[F], F]:
    return option(name, type=kind, metavar=metavar, heading=heading, help=help_text)


def _name(name: str, heading: str, help_text: str, metavar: str = "NAME") -> Callable[[F], F]:
    return option(name, metavar=metavar, heading=heading, help=help_text)


def _flag(name: str, heading: str, help_text: str) -> Callable[[F], F]:
    return option(name, is_flag=True, default=None, heading=heading, help=help_text)


def _text(d: Mapping[str, Any]) -> Callable[[F], F]:
    return opt.options(
        option("--data", multiple=True, metavar="DATA,…", heading=TEXT,
               help="training text: files, directories, corpus names; `demo` is shipped"),
        _number("--seqlen", int, "L", TEXT,
                f"tokens a sequence  [default: {d['seqlen']} or the model's limit]"),
        _flag("--separate-documents", TEXT, "no attention across the documents of a sequence"),
        _name("--sft", TEXT, "fine-tune on answers: two columns of the data", "PROMPT:ANSWER"),
        option("--valid", multiple=True, metavar="DATA,…", heading=TEXT,
               help="held-out text; its loss is logged"),
        _name("--tokenizer", TEXT,
              "of a start without one: a directory, a Hub id, or `bytes`"),
    )  # fmt: skip


def _length(d: Mapping[str, Any]) -> Callable[[F], F]:
    return opt.options(
        _number("--steps", int, "N", LENGTH, "steps  [default with --preset: the paper's]"),
        _number("--tokens", int, "N", LENGTH, "or so many tokens, rounded up to steps"),
        _number("--batch-size", int, "N", LENGTH,
                f"sequences a step, over all processes  [default: {d['batch_size']}]"),
        _number("--micro-batch", int, "N", LENGTH,
                "of them at once in a process  [default: up to 8, on a GPU 32]"),
        _number("--lr", float, "LR", LENGTH,
                "peak  [default: the preset's; 1e-3 from random, 2e-5 from trained weights]"),
        _name("--schedule", LENGTH, "cosine, linear, constant, wsd  [default: cosine]"),
        _number("--warmup", float, "N", LENGTH,
                "steps, or a share below 1  [default: 0.1]"),
        _number("--min-lr", float, "S", LENGTH,
                "last rate, as a share of the peak  [default: 0.1]"),
    )  # fmt: skip


def _objective(d: Mapping[str, Any]) -> Callable[[F], F]:
    return opt.options(
        _name("--objective", OBJECTIVE,
              f"ntp (next token) or meap (the same, input masked)  [default: {d['objective']}]"),
        _number("--mask-ratio", float, "P", OBJECTIVE,
                "meap: share of the input masked  [default: 0.15, with --sft 0.1]"),
        _name("--mask-token", OBJECTIVE,
              "meap: [default: the tokenizer's own, an unused one, or a new one]", "TOKEN"),
        _flag("--mask-special", OBJECTIVE, "meap: beginning and end of text may be masked too"),
        _name("--p-schedule", OBJECTIVE,
              "meap: constant, or anneal, to 0 in the last tenth  [default: constant]"),
        _name("--sft-mode", OBJECTIVE,
              "meap --sft: the masked copy separate or concat  [default: separate]"),
        _number("--min-response", int, "N", OBJECTIVE,
                "meap --sft: answers of more tokens get a masked copy  [default: 50]"),
        _name("--mask-scope", OBJECTIVE,
              "meap --sft: what is masked: response, prompt, all  [default: response]"),
    )  # fmt: skip


def _optimizer(d: Mapping[str, Any]) -> Callable[[F], F]:
    return opt.options(
        _name("--optimizer", OPTIMIZER,
              "spam, stable-spam, adamw, adafactor, lion, galore, apollo, adam-mini, muon, soap, "
              f"adamw-8bit  [default: {d['optimizer']}]"),
        option("--train-only", multiple=True, metavar="GLOB", heading=OPTIMIZER,
               help="train what these name, freeze the rest: '*.layers.3.mlp'"),
        _number("--weight-decay", float, "W", OPTIMIZER,
                f"decoupled  [default: {d['weight_decay']:g}]"),
        option("--betas", type=(float, float), metavar="B1 B2", heading=OPTIMIZER, default=None,
               help=f"of the moments  [default: {d['betas'][0]:g} {d['betas'][1]:g}]"),
        _number("--eps", float, "E", OPTIMIZER, "[default: the optimizer's own]"),
        _number("--max-grad-norm", float, "C", OPTIMIZER,
                "clip the whole gradient to this norm, 0 is off  [default: 1]"),
        _number("--theta", float, "T", OPTIMIZER,
                "spam: clip entries with g² > T v  [default: 5000]"),
        _number("--reset-every", int, "N", OPTIMIZER,
                "spam, stable-spam: forget the moments  [default: 500, 1000]"),
        _number("--reset-warmup", int, "N", OPTIMIZER,
                "spam: steps of warm-up after that  [default: 150]"),
        _number("--settle", int, "N", OPTIMIZER,
                "spam: steps without clipping after that  [default: 20]"),
        _name("--bias", OPTIMIZER,
              "restart the bias correction too, or legacy, as published  [default: restart]"),
        _number("--density", float, "D", OPTIMIZER,
                "spam: share of the entries that have moments and move  [default: 1]"),
        _number("--gamma1", float, "G", OPTIMIZER, "stable-spam: of the mean norm  [default: 0.7]"),
        _number("--gamma2", float, "G", OPTIMIZER, "stable-spam: of its square  [default: 0.9]"),
        _number("--gamma3", float, "G", OPTIMIZER,
                "stable-spam: of the largest entry  [default: 0.999]"),
        _name("--adaclip", OPTIMIZER, "stable-spam: scale or clamp entries  [default: scale]"),
        _name("--beta-decay", OPTIMIZER, "stable-spam: none or cosine  [default: none]"),
        _number("--rank", int, "R", OPTIMIZER, "galore, apollo: of the projection"),
        _name("--quantise", OPTIMIZER,
              "compute with 4-bit weights: 4 (int4) or fp4; the optimizer moves whole ones",
              "BITS"),
        _number("--quantise-group", int, "N", OPTIMIZER,
                "quantise: weights that share a scale  [default: 256]"),
        _flag("--quantise-activations", OPTIMIZER, "quantise: 4-bit inputs of these layers too"),
        _name("--quantise-save", OPTIMIZER,
              "quantise: weights in OUT, rounded or master  [default: rounded]"),
    )  # fmt: skip


def _norm(d: Mapping[str, Any]) -> Callable[[F], F]:
    return opt.options(
        _name("--norm", NORM,
              f"pre, post, mix, lns, sandwich, deepnorm, …  [default: {d['norm']}]"),
        _number("--post-fraction", float, "F", NORM,
                "mix: share of the blocks, the first, with norms behind  [default: 0.25]"),
        _name("--preset", NORM,
              "in place of MODEL_OR_CONFIG: llama-9m, 20m, 35m, 60m, 71m, 130m, 250m, 350m, "
              "1b, 7b"),
        _name("--init", NORM,
              "normal, or scaled: residual matrices / sqrt(2 blocks)  [default: normal]"),
        _number("--embed-std", float, "S", NORM, "of random embeddings  [default: the config's]"),
    )  # fmt: skip


def _machine() -> Callable[[F], F]:
    return opt.options(
        _name("--precision", MACHINE,
              "float32; bf16, fp16: mixed; pure-bf16  [default: float32]"),
        _flag("--gradient-checkpointing", MACHINE, "compute activations twice to save memory"),
        _flag("--compile", MACHINE, "torch.compile the model"),
        _flag("--fsdp", MACHINE, "shard over the GPUs of torchrun (FSDP2)"),
        option("--deepspeed", type=click.Path(), metavar="FILE", heading=MACHINE,
               help="shard by this DeepSpeed config"),
        _number("--workers", int, "N", MACHINE, "processes that make batches  [default: 0]"),
    )  # fmt: skip


def _watching() -> Callable[[F], F]:
    return opt.options(
        _number("--log-every", int, "N", WATCH, "steps a logged mean is over  [default: up to 10]"),
        _number("--eval-every", int, "N", WATCH,
                "steps between validations  [default: steps / 10]"),
        _number("--save-every", int, "N", WATCH,
                "steps between checkpoints  [default: steps / 10, at most 1000]"),
        _number("--keep", int, "N", WATCH, "checkpoints that stay until the end  [default: 2]"),
        option("--spikes/--no-spikes", default=None, heading=WATCH,
               help="count gradient spikes by parameter  [default: up to 250 M parameters]"),
        _number("--spike-threshold", float, "T", WATCH,
                "spikes: g² above T times its running mean  [default: 5000]"),
        _name("--inject-spikes", WATCH,
              "put spikes in, for experiments: global, noise, layer or sparse, share of the "
              "steps, factor: noise:0.02:1000", "KIND[:S[:F]]"),
        _number("--skip-nonfinite", int, "N", WATCH,
                "leave out up to N steps whose loss isn't finite  [default: 0]"),
    )  # fmt: skip
