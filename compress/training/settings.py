"""The options of the train-* commands: defaults, and all that can be checked before reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from compress.errors import check_options, refuse
from compress.evaluation.settings import EvaluationSettings
from compress.training import injecting, quantising
from compress.training.optimizers import OPTIMIZERS
from compress.training.schedule import warmup_steps
from compress.training.sizes import PRESETS

DOORS: dict[str, dict[str, Any]] = {
    "train-spam": {
        "optimizer": "spam",
        "default_seqlen": 256,
        "batch_size": 512,
        "weight_decay": 0.0,
    },
    "train-meap": {
        "objective": "meap",
        "default_seqlen": 4096,
        "batch_size": 256,
        "weight_decay": 0.05,
        "default_betas": (0.9, 0.95),
    },
    "train-mixln": {
        "norm": "mix",
        "default_seqlen": 256,
        "batch_size": 512,
        "weight_decay": 0.0,
    },
}
"""Each command's defaults, those of its paper; every option can be given to every command."""

OBJECTIVES = ("ntp", "meap")
SCHEDULES = ("cosine", "linear", "constant", "wsd")
PRECISIONS = ("float32", "bf16", "fp16", "pure-bf16")
SFT_MODES = ("separate", "concat")
MASK_SCOPES = ("response", "prompt", "all")
P_SCHEDULES = ("constant", "anneal")
INITS = ("normal", "scaled")

_OPTIMIZER_OPTIONS = (
    *("theta", "reset_every", "reset_warmup", "settle", "bias", "density"),
    *("gamma1", "gamma2", "gamma3", "adaclip", "beta_decay", "rank"),
)
OPTIMIZER_OPTIONS: dict[str, tuple[str, ...]] = {
    name: tuple(option for option in _OPTIMIZER_OPTIONS if option in info.options)
    for name, info in OPTIMIZERS.items()
}
"""Which optimizer takes which of the options that not every one has."""

_OWN_BETAS, NO_BETAS, NO_EPS = ("lion",), ("adafactor",), ("lion",)

QUANTISE = ("4", *quantising.FORMATS)
STORED = ("rounded", "master")

# What a resumed run may change, since it changes neither weights nor losses.
FREE_ON_RESUME = ("skip_nonfinite", "keep", "workers")


@dataclass(frozen=True)
class TrainSettings(EvaluationSettings):
    """Everything that decides what a train-* command does.

    Attributes:
        data: data specs of the training text.
        sft: "PROMPT:ANSWER", columns of `data`: fine-tune on answers.
        valid: data specs of held-out text whose loss is logged.
        seqlen: tokens in a sequence, at most the model's limit; None is default_seqlen or that.
        separate_documents: no attention across documents of a packed row.
        train_only: globs of the parameters that are trained; all others stay as they are.
        steps, tokens: length of the run, one of the two; with a preset by default the paper's.
        batch_size: sequences in a step over all processes.
        micro_batch: sequences that one process computes at once; None chooses a divisor.
        lr: peak learning rate; None takes the preset's, 1e-3 for a random start, 2e-5 else.
        schedule, warmup, min_lr: shape of the rate; warmup below 1 is a share of the steps, min_lr
            a share of the peak.
        weight_decay, betas, eps: of the optimizer; betas None are default_betas, but Lion's are its
            own; eps None is its own default.
        max_grad_norm: the gradient's norm is clipped to this; 0 is off.
        precision: float32, bf16 or fp16 (mixed: weights stay float32), pure-bf16.
        gradient_checkpointing, compile: trade time for memory; torch.compile the model.
        fsdp, deepspeed: shard over processes; a DeepSpeed config file.
        workers: processes that make batches; 0 makes them in this one.
        objective: ntp, or meap with mask_ratio, mask_token, mask_special, p_schedule; and with sft
            also mask_scope, min_response, sft_mode.
        optimizer: a name of optimizers.OPTIMIZERS, with theta … rank as they apply.
        quantise: "4" or "int4", "fp4": compute with 4-bit weights in groups of quantise_group,
            with quantise_activations on 4-bit inputs too; quantise_save is what OUT holds,
            "rounded" weights or the "master" ones that the optimizer moved.
        norm, post_fraction: where norms stand.
        preset, tokenizer: a model of the papers, and whose tokens it gets.
        init, embed_std: of a random start.
        log_every, save_every, eval_every: in steps; None chooses from the length of the run.
        keep: checkpoints that stay on the disk.
        spikes: whether gradient spikes are counted, by spike_threshold; None does it up to 250
            million parameters.
        inject_spikes: KIND:SHARE:FACTOR, spikes put in for experiments.
        skip_nonfinite: so many steps whose loss isn't finite are left out before the run ends.
        ppl … speed: what is measured before and after.
        seed: of every random choice.
        device, dtype: where; type of the weights in OUT.
    """

    data: tuple[str, ...] = ()
    sft: str | None = None
    valid: tuple[str, ...] = ()
    seqlen: int | None = None
    default_seqlen: int = 256
    separate_documents: bool = False
    train_only: tuple[str, ...] = ()
    steps: int | None = None
    tokens: int | None = None
    batch_size: int = 512
    micro_batch: int | None = None
    lr: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    min_lr: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    default_betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    max_grad_norm: float = 1.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    deepspeed: str | None = None
    workers: int = 0
    objective: str = "ntp"
    mask_ratio: float | None = None
    mask_token: str | None = None
    mask_special: bool = False
    mask_scope: str | None = None
    min_response: int | None = None
    sft_mode: str | None = None
    p_schedule: str | None = None
    optimizer: str = "adamw"
    theta: float | None = None
    reset_every: int | None = None
    reset_warmup: int | None = None
    settle: int | None = None
    bias: str | None = None
    density: float | None = None
    gamma1: float | None = None
    gamma2: float | None = None
    gamma3: float | None = None
    adaclip: str | None = None
    beta_decay: str | None = None
    rank: int | None = None
    quantise: str | None = None
    quantise_group: int | None = None
    quantise_activations: bool = False
    quantise_save: str | None = None
    norm: str | None = None
    post_fraction: float | None = None
    preset: str | None = None
    tokenizer: str | None = None
    init: str = "normal"
    embed_std: float | None = None
    log_every: int | None = None
    save_every: int | None = None
    eval_every: int | None = None
    keep: int = 2
    spikes: bool | None = None
    spike_threshold: float | None = None
    inject_spikes: str | None = None
    skip_nonfinite: int = 0
    device: str = "auto"
    dtype: str = "auto"

    @classmethod
    def of_door(cls, door: str, options: Mapping[str, Any]) -> TrainSettings:
        """Make the settings of a command; what is None, or not given, has the command's default.

        Raises:
            TypeError: an option that there isn't.
        """
        check_options(door, options, (f.name for f in fields(cls)))
        given = {key: value for key, value in options.items() if value is not None}
        for name in ("data", "valid", "train_only", "ppl", "tasks", "task_dirs"):
            if isinstance(given.get(name), str):
                given[name] = (given[name],)
            elif name in given:
                given[name] = tuple(given[name])
        return cls(**{**DOORS[door], **given})

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def presets(self) -> tuple[str, ...]:
        """Names that `preset` may have."""
        return tuple(PRESETS)

    @property
    def columns(self) -> tuple[str, str] | None:
        """The prompt and answer columns of --sft."""
        if self.sft is None:
            return None
        prompt, _, answer = self.sft.partition(":")
        return prompt, answer

    @property
    def ratio(self) -> float:
        """The mask ratio asked for, or the paper's; 0 where nothing is masked."""
        if self.objective != "meap":
            return 0.0
        if self.mask_ratio is None:
            return 0.15 if self.sft is None else 0.10
        return self.mask_ratio

    @property
    def length(self) -> int:
        """Tokens in a sequence."""
        return self.default_seqlen if self.seqlen is None else self.seqlen

    @property
    def moments(self) -> tuple[float, float] | None:
        """The betas asked for, or the command's; None where the optimizer has better ones."""
        if self.betas is None and self.optimizer in (*_OWN_BETAS, *NO_BETAS):
            return None
        return self.default_betas if self.betas is None else self.betas

    def optimizer_options(self) -> dict[str, Any]:
        """The options given for the optimizer alone."""
        every = sorted({name for names in OPTIMIZER_OPTIONS.values() for name in names})
        given = {name: getattr(self, name) for name in every}
        options = {name: value for name, value in given.items() if value is not None}
        options["weight_decay"] = self.weight_decay
        if self.moments is not None:
            options["betas"] = self.moments
        known = OPTIMIZERS[self.optimizer].options
        if "total_steps" in known:
            options["total_steps"] = self.run_steps()
        if "seed" in known:
            options["seed"] = self.seed
        return options if self.eps is None else {**options, "eps": self.eps}

    def quantisation(self) -> quantising.Scheme | None:
        """How weights are rounded in the forward pass; None where they aren't."""
        if self.quantise is None:
            return None
        group = self.quantise_group or quantising.GROUP
        kind = quantising.format_of(self.quantise)
        return quantising.Scheme(kind, group, self.quantise_activations)

    def injection(self) -> injecting.Injection | None:
        """The spikes that are put in, after the rate's warm-up; None where there are none.

        Raises:
            RequestError: `inject_spikes` can't be read.
        """
        if self.inject_spikes is None:
            return None
        start = warmup_steps(self.warmup, self.run_steps())
        return injecting.parse_injection(self.inject_spikes, start, self.seed)

    def run_steps(self) -> int:
        """Length of the run in steps."""
        if self.steps is not None:
            return self.steps
        if self.tokens is not None:
            return max(-(-self.tokens // (self.batch_size * self.length)), 1)
        return PRESETS[self.preset].steps if self.preset in PRESETS else 0

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share."""
        return {k: v for k, v in self.as_dict().items() if k not in FREE_ON_RESUME}

    def check(self, norms: tuple[str, ...]) -> None:
        """Refuse what can't be meant, all faults in one error.

        Args:
            norms: names that `norm` may have.

        Raises:
            RequestError: one or more settings are wrong.
        """
        from compress.training.checking import faults_of  # which knows this class

        refuse(faults_of(self, norms))
