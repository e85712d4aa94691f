"""What is wrong with the options of a train-* command, as far as that shows before reading."""

from __future__ import annotations

from collections.abc import Iterator

from compress.errors import Fault, RequestError, near_names
from compress.training import injecting
from compress.training.optimizers import OPTIMIZERS
from compress.training.settings import (
    INITS,
    MASK_SCOPES,
    NO_BETAS,
    NO_EPS,
    OBJECTIVES,
    OPTIMIZER_OPTIONS,
    P_SCHEDULES,
    PRECISIONS,
    QUANTISE,
    SCHEDULES,
    SFT_MODES,
    STORED,
    TrainSettings,
)


def faults_of(settings: TrainSettings, norms: tuple[str, ...]) -> Iterator[Fault]:
    """Yield each fault with its remedy.

    Args:
        settings: of the run.
        norms: names that `norm` may have.
    """
    yield from _names(settings, norms)
    yield from _numbers(settings)
    yield from _masks(settings)
    yield from _company(settings)
    yield from _gradients(settings)


def _names(s: TrainSettings, norms: tuple[str, ...]) -> Iterator[Fault]:
    choices = [
        ("objective", s.objective, OBJECTIVES),
        ("optimizer", s.optimizer, tuple(OPTIMIZERS)),
        ("quantise", s.quantise, QUANTISE),
        ("quantise-save", s.quantise_save, STORED),
        ("norm", s.norm, norms),
        ("schedule", s.schedule, SCHEDULES),
        ("precision", s.precision, PRECISIONS),
        ("preset", s.preset, s.presets),
        ("sft-mode", s.sft_mode, SFT_MODES),
        ("mask-scope", s.mask_scope, MASK_SCOPES),
        ("p-schedule", s.p_schedule, P_SCHEDULES),
        ("init", s.init, INITS),
        ("bias", s.bias, ("restart", "legacy")),
        ("adaclip", s.adaclip, ("scale", "clamp")),
        ("beta-decay", s.beta_decay, ("none", "cosine")),
    ]
    for option, value, known in choices:
        if value is not None and value not in known:
            yield f"`--{option} {value}` isn't known", near_names(value, known) + "."
    if s.sft is not None and not all(s.columns or ()):
        yield f"`--sft {s.sft}` isn't PROMPT:ANSWER", "name two columns of the data."
    if not s.data:
        yield "no training text", "name it: `--data FILE`."


def _numbers(s: TrainSettings) -> Iterator[Fault]:
    whole: tuple[str, ...] = (
        "steps",
        "tokens",
        "batch_size",
        "micro_batch",
        "reset_every",
        "rank",
        "quantise_group",
    )
    whole += ("log_every", "save_every", "eval_every", "keep")
    for name in whole:
        yield from _least(s, name, 1)
    for name in ("workers", "reset_warmup", "settle", "min_response", "skip_nonfinite", "seed"):
        yield from _least(s, name, 0)
    yield from _least(s, "seqlen", 2)
    for name in ("lr", "eps", "theta", "embed_std", "spike_threshold"):
        value = getattr(s, name)
        if value is not None and not 0 < value < float("inf"):
            yield f"`{_option(name)} {value:g}` isn't a positive number", ""
    for name in ("weight_decay", "max_grad_norm", "warmup"):
        value = getattr(s, name)
        if not 0 <= value < float("inf"):
            yield f"`{_option(name)} {value:g}` isn't 0 or more", ""
    for name in ("min_lr", "post_fraction"):
        value = getattr(s, name)
        if value is not None and not 0 <= value <= 1:
            yield f"`{_option(name)} {value:g}` is outside [0, 1]", ""
    if s.density is not None and not 0 < s.density <= 1:
        yield f"`--density {s.density:g}` is outside (0, 1]", "1 keeps every moment."
    shares = [("--betas", beta) for beta in s.betas or ()]
    shares += [(f"--{n}", getattr(s, n)) for n in ("gamma1", "gamma2", "gamma3")]
    for option, value in shares:
        if value is not None and not 0 <= value < 1:
            yield f"`{option} {value:g}` is outside [0, 1)", ""
    if s.warmup >= 1 and s.run_steps() and s.warmup > s.run_steps():
        yield f"`--warmup {s.warmup:g}` is longer than the run of {s.run_steps()}", ""
    if not s.run_steps() and s.preset is None:
        yield "no length of the run", "say `--steps N` or `--tokens N`."


def _least(s: TrainSettings, name: str, least: int) -> Iterator[Fault]:
    value = getattr(s, name)
    if value is not None and value < least:
        yield f"`{_option(name)} {value}` is less than {least}", ""


def _masks(s: TrainSettings) -> Iterator[Fault]:
    if s.mask_ratio is not None and not 0 <= s.mask_ratio < 1:
        yield (
            f"`--mask-ratio {s.mask_ratio:g}` is outside [0, 1)",
            "the paper's are 0.15, and 0.1 for fine-tuning.",
        )
    masking = ("mask_ratio", "mask_token", "p_schedule", "mask_scope", "sft_mode")
    if s.objective != "meap":
        for name in (*masking, "min_response"):
            if getattr(s, name) is not None:
                yield (
                    f"`{_option(name)}` can't act with `--objective {s.objective}`",
                    "masks belong to `--objective meap`.",
                )
        if s.mask_special:
            yield "`--mask-special` can't act without `--objective meap`", ""
    elif s.sft is None:
        for name in ("mask_scope", "sft_mode", "min_response"):
            if getattr(s, name) is not None:
                yield (
                    f"`{_option(name)}` can't act without `--sft`",
                    "it is about prompts and answers.",
                )


def _company(s: TrainSettings) -> Iterator[Fault]:
    if s.steps is not None and s.tokens is not None:
        yield "`--steps` and `--tokens` both say how long the run is", "leave one out."
    if s.sft is not None and s.separate_documents:
        yield "`--separate-documents` can't act with `--sft`, which packs nothing", ""
    if s.fsdp and s.deepspeed:
        yield "`--fsdp` and `--deepspeed` are two ways to shard", "leave one out."
    if s.post_fraction is not None and s.norm != "mix":
        yield (
            f"`--post-fraction` can't act with `--norm {s.norm or 'pre'}`",
            "it belongs to `--norm mix`.",
        )
    for name, without in (("betas", NO_BETAS), ("eps", NO_EPS)):
        if getattr(s, name) is not None and s.optimizer in without:
            yield f"`--{name}` can't act with `--optimizer {s.optimizer}`", "leave it out."
    taken = OPTIMIZER_OPTIONS.get(s.optimizer, ())
    for name in sorted({n for names in OPTIMIZER_OPTIONS.values() for n in names} - {*taken}):
        if getattr(s, name) is not None:
            whose = [o for o, names in OPTIMIZER_OPTIONS.items() if name in names]
            yield (
                f"`{_option(name)}` can't act with `--optimizer {s.optimizer}`",
                f"it belongs to {' and '.join(f'`{o}`' for o in whose)}.",
            )


def _gradients(s: TrainSettings) -> Iterator[Fault]:
    if s.quantise is None:
        for name in ("quantise_group", "quantise_activations", "quantise_save"):
            if getattr(s, name):
                yield f"`{_option(name)}` can't act without `--quantise`", "add `--quantise 4`."
    if s.spikes is False and s.spike_threshold is not None:
        yield "`--spike-threshold` can't act with `--no-spikes`", "leave one out."
    if s.deepspeed and (s.spikes or s.inject_spikes):
        yield "DeepSpeed keeps gradients to itself: no spikes to see, or to put in", ""
    if s.fsdp and s.inject_spikes:
        yield "`--inject-spikes` changes whole gradients: not with `--fsdp`", ""
    try:
        if s.inject_spikes is not None:
            injecting.parse_injection(s.inject_spikes)
    except RequestError as error:
        yield error.message, (error.hint or "").rstrip(".") + "." * bool(error.hint)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
