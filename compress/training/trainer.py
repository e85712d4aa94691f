"""The transformers Trainer with our optimizers, whole checkpoints, and eyes for what isn't finite.

What differs from the stock one, and why (measured on 5.23):

- Gradients are looked at before clipping: spikes are injected, counted, and a norm or loss that
  isn't finite ends the run, or skips the step, before any weight or moment is touched. The stock
  clip multiplies by max_norm / norm, which turns one infinite entry into NaN in every tensor.
- Checkpoints appear whole or not at all, and load by the loader of edited checkpoints.
- FSDP asked for and not obtained is an error: on CPU the stock Trainer falls back to DDP unasked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel, TrainingArguments

from compress.errors import RequestError, RunError
from compress.training import checkpointing
from compress.training.arguments import launched_with_fsdp
from compress.training.data import Positions

OptimizerMaker = Callable[[nn.Module], torch.optim.Optimizer]


GradientChanger = Callable[[nn.Module, int], None]
"""Changes the gradients of a model in 0-based step `step`."""


class GradientObserver(Protocol):
    """Something that looks at the gradients of each step, and counts on after a resume.

    Attributes:
        name: of its file in a checkpoint.
    """

    name: str

    def __call__(self, model: nn.Module, step: int) -> None:
        """Look at the gradients of 0-based step `step`; reads nothing back to the host."""

    def report(self) -> dict[str, Any]:
        """What the log of a step tells; every process calls it."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from that."""


class Trainer(transformers.Trainer):
    """Trains on a whole schedule of positions.

    Args:
        model: a causal language model, its norms placed and its layers quantised already; or any
            module that makes a dict with "loss" of a batch (its own tensors are the checkpoint).
        args: made by `training_arguments`.
        dataset: the run, steps * batch positions long.
        collate: makes batches.
        make_optimizer: called with the model once it is placed.
        change: called on each step's gradients first, to put spikes in.
        observers: called in order on each step's gradients, accumulated, unscaled and before
            clipping, once they are known to be finite; not in a step that is skipped.
        skip_nonfinite: how many steps whose loss or gradient isn't finite may be left out.
        keep: checkpoints that stay on the disk.
        callbacks: of transformers.

    Attributes:
        skipped: steps left out so far.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        *,
        dataset: Positions,
        collate: Callable[..., dict[str, Tensor]],
        make_optimizer: OptimizerMaker,
        change: GradientChanger | None = None,
        observers: tuple[GradientObserver, ...] = (),
        skip_nonfinite: int = 0,
        keep: int = 2,
        callbacks: list[transformers.TrainerCallback] | None = None,
    ) -> None:
        super().__init__(
            model, args, data_collator=collate, train_dataset=dataset, callbacks=callbacks
        )
        for kind in (transformers.PrinterCallback, transformers.ProgressCallback):
            self.remove_callback(kind)
        self._make_optimizer = make_optimizer
        self._change = change
        self._observers = observers
        self._skip_nonfinite = skip_nonfinite
        self._keep = keep
        self._batches: list[dict[str, Tensor]] = []
        self._skip = False
        self._saving = False
        self.skipped = 0

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that the run asked for."""
        if self.optimizer is None:
            placed: Any = self.model if model is None else model
            self.optimizer = self._make_optimizer(placed)
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Make the scheduler, of an optimizer whose step can be left out."""
        if self.lr_scheduler is None:
            _make_skippable(self.optimizer, self._take_skip)
        return super().create_scheduler(num_training_steps, optimizer)

    def _take_skip(self) -> bool:
        skip, self._skip = self._skip, False
        return skip

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        check_sharded(self.args, prepared[0])
        self.skipped = sum("skipped" in entry for entry in self.state.log_history)
        return prepared

    # Gradients

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Fetch a step's batches, and remember them and the loss sum before the step."""
        self._loss_before = self._tr_loss.clone()
        self._batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._batches, items

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = self._get_grad_norm(model)
        if not self._skip and self.accelerator.scaler is None:
            clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        elif self.accelerator.scaler is not None:  # an overflow is then the scaler's to skip
            clip = torch.where(torch.isfinite(norm), norm, torch.zeros_like(norm))
            clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, clip)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm before clipping; called once or, after clipping, twice."""
        if grad_norm is not None:
            return grad_norm
        if self.is_deepspeed_enabled:  # it clips by itself
            return super()._get_grad_norm(model)
        self.accelerator.unscale_gradients()
        own: Any = self.model  # without the wrappers, whose prefixes names would get
        if self._change is not None:
            self._change(own, self.state.global_step)
        norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        self._check_finite(norm)
        self._observe(own, norm)
        return norm

    def _observe(self, model: nn.Module, norm: Tensor) -> None:
        """Show the gradients to the observers, unless some aren't finite."""
        if not self._observers or self._skip:
            return
        if self.accelerator.scaler is not None and not bool(torch.isfinite(norm)):
            return  # the scaler will skip the step; it reads that number on the host as well
        for observe in self._observers:
            observe(model, self.state.global_step)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log, with what the observers tell."""
        if "loss" in logs:
            for observer in self._observers:
                logs |= observer.report()
        super().log(logs, start_time)

    def _check_finite(self, norm: Tensor) -> None:
        """End the run, or mark the step to be skipped, where loss or gradient isn't finite.

        Reads one number a step on the host, agreed on by all processes.
        """
        bad = ~torch.isfinite(self._tr_loss)
        if self.accelerator.scaler is None:
            bad = bad | ~torch.isfinite(norm).to(bad.device)
        if self.args.world_size > 1:
            flag = bad.to(torch.int32)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            bad = flag > 0
        if not bool(bad):
            return
        step, digest = self.state.global_step + 1, batch_digest(self._batches)
        if self.skipped >= self._skip_nonfinite:
            raise self._not_finite(step, digest)
        self.skipped += 1
        self._skip = self.accelerator.scaler is None
        self._tr_loss.copy_(self._loss_before)
        self._globalstep_last_logged += 1  # the next mean is over the steps that count
        skipped: Any = {"step": step, "skipped": digest}
        self.state.log_history.append(skipped)

    def _not_finite(self, step: int, digest: str) -> RunError:
        what = "the gradient" if bool(torch.isfinite(self._tr_loss)) else "the loss"
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        size *= self.args.world_size
        first = (step - 1) * size
        last = checkpointing.last_checkpoint(Path(str(self.args.output_dir)))
        whence = f"step {checkpointing.step_of(last)}" if last else "the beginning"
        allowed = self._skip_nonfinite + 1
        return RunError(
            f"{what} isn't finite in step {step} (positions {first} to {first + size - 1}, batch "
            f"{digest})",
            f"add `--resume --skip-nonfinite {allowed}` to go on from {whence} without that step; "
            "a lower --lr or a smaller --max-grad-norm may avoid it, in a new run",
        )

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        place = super()._get_output_dir(trial)
        return str(Path(place) / checkpointing.PARTIAL) if self._saving else place

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self._wait()  # every process has written its part
        if self.args.should_save:
            place = Path(str(self.args.output_dir))
            checkpointing.put_in_place(place, self.state.global_step, self._keep)
        self._wait()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        for observer in self._observers:
            state, place = observer.state_dict(), self._observer_file(output_dir, observer)
            if self.args.should_save or self.is_fsdp_enabled:  # shards have their own
                torch.save(state, place)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        for observer in self._observers if checkpoint is not None else ():
            place = self._observer_file(str(checkpoint), observer)
            observer.load_state_dict(torch.load(place, map_location="cpu", weights_only=True))

    def _observer_file(self, checkpoint: str, observer: GradientObserver) -> Path:
        number = f"-{self.args.process_index}" if self.is_fsdp_enabled else ""
        return Path(checkpoint) / f"{observer.name}{number}.pt"

    def _wait(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        stock = not isinstance(self.model, PreTrainedModel)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or stock:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            place = Path(resume_from_checkpoint)
            built: Any = self.model
            checkpointing.load_weights(built, place, self.args.device)


def _make_skippable(optimizer: Any, skip: Callable[[], bool]) -> None:
    """Let an optimizer's step do nothing when `skip` says so."""
    step = optimizer.step

    def step_unless_skipped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return None if skip() else step(*args, **kwargs)

    optimizer.step = MethodType(step_unless_skipped, optimizer)  # schedulers want a method


def check_sharded(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse a model that isn't sharded although FSDP was asked for.

    Raises:
        RequestError: as said; on CPU the libraries fall back to DDP without a word.
    """
    from torch.distributed.tensor import DTensor

    asked = args.fsdp or launched_with_fsdp()
    if asked and not any(isinstance(p, DTensor) for p in model.parameters()):
        raise RequestError(
            f"FSDP was asked for and gave an unsharded model on {args.device.type}",
            "FSDP works on GPUs; leave --fsdp out, and every process holds the whole model",
        )


def batch_digest(batches: list[dict[str, Tensor]]) -> str:
    """Return "sha256:…" of one step of this process: tokens, images or speech, and labels."""
    whole = hashlib.sha256()
    for batch in batches:
        for name in ("input_ids", "images", "input_features", "labels"):
            if name not in batch:
                continue
            tensor = batch[name].cpu()
            array = tensor.numpy().astype("<f4" if tensor.is_floating_point() else "<i8")
            whole.update(str(array.shape).encode() + array.tobytes())
    return f"sha256:{whole.hexdigest()[:16]}"
