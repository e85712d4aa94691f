"""TrainingArguments from a run's settings, with the stock defaults that do harm set right."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from transformers import TrainingArguments

from compress.errors import RequestError
from compress.training.schedule import make_schedule
from compress.training.sharding import check_deepspeed

if TYPE_CHECKING:
    from compress.training.settings import TrainSettings

_MOST_AT_ONCE = {"cpu": 8, "cuda": 32, "mps": 8}
_LEAST_SAVED = 1000


class Arranged(Protocol):
    """The options of a training run that the Trainer's arguments are made of.

    TrainSettings has them for text, LoopSettings for all else.
    """

    @property
    def lr(self) -> float | None:
        """Peak learning rate."""

    @property
    def schedule(self) -> str:
        """Shape of the rate."""

    @property
    def warmup(self) -> float:
        """Steps, or below 1 a share of them."""

    @property
    def min_lr(self) -> float:
        """Last rate over the peak."""

    @property
    def max_grad_norm(self) -> float:
        """Norm to which gradients are clipped; 0 is off."""

    @property
    def precision(self) -> str:
        """float32, bf16, fp16 or pure-bf16."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are computed again."""

    @property
    def compile(self) -> bool:
        """Whether the model is compiled."""

    @property
    def fsdp(self) -> bool:
        """Whether the model is sharded."""

    @property
    def deepspeed(self) -> str | None:
        """A DeepSpeed config."""

    @property
    def workers(self) -> int:
        """Processes that make batches."""

    @property
    def seed(self) -> int:
        """Of every random choice."""

    @property
    def log_every(self) -> int | None:
        """Steps between logs."""

    @property
    def save_every(self) -> int | None:
        """Steps between checkpoints."""

    def run_steps(self) -> int:
        """Length of the run in steps."""


class Arrangement(NamedTuple):
    """How a step's sequences are spread: processes * accumulation * micro = batch."""

    micro: int
    accumulation: int


def arrange(batch: int, processes: int, micro: int | None, device: str) -> Arrangement:
    """Split a step's sequences.

    Args:
        batch: sequences in a step over all processes.
        processes: how many share them.
        micro: sequences that one computes at once; None takes the largest divisor up to 8 on CPU,
            32 on a GPU.
        device: of the run.

    Raises:
        RequestError: the batch can't be split so.
    """
    if batch % processes:
        raise RequestError(
            f"`--batch-size {batch}` can't be shared by {processes} processes",
            f"use a multiple of {processes}",
        )
    own = batch // processes
    most = _MOST_AT_ONCE.get(device.partition(":")[0], 8)
    micro = micro or next(n for n in range(min(own, most), 0, -1) if own % n == 0)
    if own % micro:
        raise RequestError(
            f"`--micro-batch {micro}` doesn't divide the {own} sequences of a process",
            f"`--batch-size {batch}` over {processes} processes leaves {own} for each",
        )
    return Arrangement(micro, own // micro)


def check_device(settings: Arranged, device: str) -> None:
    """Refuse what the device can't do.

    Raises:
        RequestError: fp16 or FSDP on a CPU, a GPU chosen by number, what DeepSpeed can't do.
    """
    kind, _, number = device.partition(":")
    if kind == "cuda" and number not in ("", "0"):
        raise RequestError(
            f"`--device {device}`: training takes the first GPU that it sees",
            f"choose it by CUDA_VISIBLE_DEVICES={number}",
        )
    if settings.precision == "fp16" and kind != "cuda":
        raise RequestError(
            f"`--precision fp16` needs a GPU, not {kind}", "use float32 or bf16 here"
        )
    if kind == "cpu" and (settings.fsdp or launched_with_fsdp()):
        asked = "`--fsdp`" if settings.fsdp else "FSDP, which `accelerate launch` asks for,"
        raise RequestError(
            f"{asked} needs GPUs: on a CPU the libraries fall back to whole copies without a word",
            "leave it out; every process then holds the whole model",
        )
    if settings.deepspeed:
        check_deepspeed(settings.deepspeed, getattr(settings, "optimizer", "adamw"))


def launched_with_fsdp() -> bool:
    """Whether `accelerate launch` asks for FSDP, which it does by the environment."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def training_arguments(
    settings: Arranged, directory: Path, device: str, arrangement: Arrangement
) -> TrainingArguments:
    """Make the arguments of the transformers Trainer.

    Args:
        settings: of the run.
        directory: where checkpoints go.
        device: what resolve_device returned.
        arrangement: what `arrange` returned.
    """
    steps = settings.run_steps()
    plan = make_schedule(settings.schedule, steps, settings.warmup, settings.min_lr)
    extra: dict[str, Any] = {}
    if settings.fsdp:
        extra |= {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": None}}
    if settings.gradient_checkpointing:
        known = {field.name for field in dataclasses.fields(TrainingArguments)}
        name = "activation_checkpointing"  # its name from 5.23 on
        extra[name if name in known else "gradient_checkpointing"] = True
    args = TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=arrangement.micro,
        gradient_accumulation_steps=arrangement.accumulation,
        learning_rate=settings.lr or 0.0,
        lr_scheduler_type=plan.kind,
        lr_scheduler_kwargs=plan.options,
        warmup_steps=plan.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        torch_compile=settings.compile,
        deepspeed=settings.deepspeed,
        use_cpu=torch.device(device).type == "cpu",
        dataloader_num_workers=settings.workers,
        dataloader_drop_last=True,
        train_sampling_strategy="sequential",  # the dataset knows the order
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # it would hide a loss that isn't finite
        ddp_find_unused_parameters=False,
        ddp_timeout=24 * 3600,
        logging_strategy="steps",
        logging_steps=log_every(settings),
        save_strategy="steps",
        save_steps=save_every(settings),
        save_total_limit=None,  # we rotate, after the new one is in place
        disable_tqdm=True,
        report_to=[],
        **extra,
    )
    if args.n_gpu > 1:  # else the Trainer would take every GPU through DataParallel
        args._n_gpu = 1
    return args


def log_every(settings: Arranged) -> int:
    """Return how many steps a logged mean is over: a hundredth of the run, at most 10."""
    return settings.log_every or min(max(settings.run_steps() // 100, 1), 10)


def save_every(settings: Arranged) -> int:
    """Return the steps between checkpoints: a tenth of the run, at most 1000."""
    return settings.save_every or min(max(settings.run_steps() // 10, 1), _LEAST_SAVED)


def eval_every(settings: TrainSettings) -> int:
    """Return the steps between validations: a tenth of the run."""
    return settings.eval_every or max(settings.run_steps() // 10, 1)
