"""The end of a run: the model as a checkpoint, stock where that is possible, and the receipt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoints.census import census
from compress.checkpoints.durable import copy_companions, writing
from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.plan import PLAN_FILE, Plan
from compress.checkpoints.quiet import without_bars
from compress.checkpoints.source import Source
from compress.evaluation.measures import Measures, compare
from compress.reports.receipt import Receipt
from compress.training.display import METRICS, loss_png, read_metrics
from compress.training.feeding import Stored
from compress.training.losses import MeanLoss
from compress.training.norms import fold_scaled_norms
from compress.training.preparing import Job
from compress.training.quantising import rounded_weights, unquantise_model
from compress.training.running import Run
from compress.training.sharding import save_whole


def save_model(job: Job, done: Run, directory: Path) -> None:
    """Write the model, its tokenizer and the run's curves.

    Weights have the dtype that --dtype names; without it, that of the source, or of the training.
    """
    model: Any = done.model
    fold_scaled_norms(model)
    dtype = resolve_dtype(job.settings.dtype)
    if dtype is None and job.start.source is not None:
        dtype = job.start.source.dtype
    whole = gather(done)
    rounded = job.settings.quantise_save != "master"
    if job.quantised is not None and whole is not None and rounded:
        whole = rounded_weights(whole, job.quantised)
    unquantise_model(model, rounded=rounded and whole is None)
    if whole is None:
        model.to("cpu") if dtype is None else model.to("cpu", dtype)
    elif dtype is not None:
        whole = {k: v.to(dtype) if v.is_floating_point() else v for k, v in whole.items()}
        model.config.dtype = dtype
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True  # the Trainer turns it off
    with writing(directory), without_bars():
        save_whole(model, directory, whole)
        if job.start.companions:
            copy_companions(job.start.companions, directory)
        else:
            job.start.tokenizer.save_pretrained(directory)
        if job.start.mask is not None:
            _suppress(model, job.start.mask.id, directory)
        if job.plan is not None:
            job.plan.write(directory / PLAN_FILE)
        shutil.copyfile(done.metrics, directory / METRICS)
        if done.tensorboard.is_dir():
            shutil.copytree(done.tensorboard, directory / "tensorboard")
        loss_png(directory / "loss.png", read_metrics(done.metrics), job.start.name)


def gather(done: Run) -> dict[str, Tensor] | None:
    """Bring the shards of a model together on the first process; None where it isn't sharded.

    Every process must call it.
    """
    trainer = done.trainer
    assert trainer is not None
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    return trainer.accelerator.get_state_dict(trainer.model_wrapped)


def _suppress(model: PreTrainedModel, mask: int, directory: Path) -> None:
    """Keep the mask token out of what the model generates: it never was a label."""
    generation: Any = model.generation_config
    if generation is not None and model.can_generate():
        generation.suppress_tokens = sorted({*(generation.suppress_tokens or ()), mask})
        generation.save_pretrained(directory)


def make_receipt(
    job: Job, done: Run, stored: Stored, trained: Source, before: Measures, after: Measures
) -> Receipt:
    """Make the receipt of a run whose model has been written."""
    start = job.start
    sizes = {} if start.source is None else census(start.source, job.progress)._asdict()
    settings = job.settings.as_dict()
    return Receipt.build(
        job.door,
        seed=job.settings.seed,
        device=job.device,
        settings=settings,
        model={
            "source": start.name,
            "architecture": trained.model_class().__name__,
            "digest": start.digest(),
        },
        before={**sizes, **before.as_receipt()},
        after={**census(trained, job.progress)._asdict(), **after.as_receipt()},
        comparison=compare(before, after),
        cost={"seconds": job.clock.seconds, "peak_bytes": peak_bytes(job.device)},
        notes=job.notes,
        training=training_entry(job, done),
        data={"specs": list(job.settings.data), **stored.receipt()},
        plan=_plan_entry(job.plan),
    )


def _plan_entry(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {"file": PLAN_FILE, "digest": plan.digest(), "rows": len(plan.rows)}


def training_entry(job: Job, done: Run) -> dict[str, Any]:
    """The receipt's "training" block."""
    settings = job.settings
    final = done.final_loss()
    entry: dict[str, Any] = {
        "steps": settings.run_steps(),
        "tokens": done.tokens,
        "loss": _loss(final) if final else None,
        "valid": {name: _loss(loss) for name, loss in done.valid.items()} or None,
        "skipped": done.skipped,
        "optimizer": settings.optimizer,
        "optimizer_state_bytes": done.optimizer_state_bytes,
        "objective": settings.objective,
        "max_grad_norm": settings.max_grad_norm,
        "lr": settings.lr,
        "norms": job.placement.as_receipt() if job.placement else None,
        "processes": job.team.size,
        "micro_batch": job.arrangement.micro,
        "accumulation": job.arrangement.accumulation,
        "tokens_per_s": done.tokens_per_s,
        "spikes": done.spikes,
    }
    if done.optimizer_kernels is not None:
        entry["optimizer_kernels"] = done.optimizer_kernels
    injection = settings.injection()
    if injection is not None:
        entry["injected"] = injection.receipt(settings.run_steps())
    if job.trained is not None:
        entry["trained"] = job.trained.as_receipt()
    if job.quantised is not None:
        entry["quantise"] = job.quantised.receipt(settings.quantise_save or "rounded")
    if job.start.mask is not None:
        entry["mask_token"] = job.start.mask._asdict()
        entry["mask_ratio"] = settings.ratio
    return entry | job.extra


def _loss(loss: MeanLoss) -> dict[str, Any]:
    return {k: v for k, v in loss._asdict().items() if v is not None and (k != "tokens" or v)}


def peak_bytes(device: str) -> int:
    """Most memory used so far: of the GPU where there is one, else of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
