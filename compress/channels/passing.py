"""PASS's search and all training around it, as the command's options ask for them."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.channels.budget import keep_for_budget
from compress.channels.preparing import Job, Say
from compress.channels.selecting import scores_of

if TYPE_CHECKING:
    from compress.channels.settings import PruneSettings
    from compress.data.images import Augmentation
    from compress.data.images.prompting import SavedPrompt


def augmentation_of(asked: PruneSettings) -> Augmentation:
    """What training images go through."""
    from compress.data.images.augmenting import parse_augmentation

    return parse_augmentation(asked.augment, None, 0.0)


def adapt(job: Job, place: Path, say: Say) -> None:
    """Train a network whose head was made anew, or read what an interrupted run had trained.

    Args:
        job: its model is replaced by the trained one.
        place: a directory for checkpoints.
        say: gets lines for the reader.
    """
    from safetensors.torch import load_file, save_file

    from compress.channels.tuning import TuneSettings, tune

    asked, file = job.settings, place / "adapted.safetensors"
    job.model = copy.deepcopy(job.model)  # off the mapped file, which is only read
    if file.is_file():
        job.model.load_state_dict(load_file(file, device=str(job.device)))
        return
    settings = TuneSettings(
        epochs=asked.head_epochs,
        lr=asked.head_lr,
        batch_size=asked.batch_size,
        precision=asked.precision,
        micro_batch=asked.micro_batch,
    )
    torch.nn.Module.to(job.model, torch.float32)
    done = tune(
        job.model, job.images().train, settings, place, augmentation=augmentation_of(asked),
        seed=asked.seed, device=job.device, team=job.team, task="new head",
        progress=job.progress, say=say,
    )  # fmt: skip
    torch.nn.Module.to(job.model, job.dtype)
    job.notes.append(f"the dense network got a new head and was trained for {done.steps} steps")
    partial = file.with_suffix(f".{os.getpid()}.partial")
    save_file({k: v.contiguous() for k, v in job.model.state_dict().items()}, partial)
    partial.replace(file)


def search_masks(
    job: Job, target: float, place: Path, say: Say
) -> tuple[list[Tensor], SavedPrompt | None, dict[str, Any]]:
    """Search by PASS within a budget; a killed search goes on in `place`.

    Args:
        job: the network and the images.
        target: the most that the network may cost: parameters with `keep_params`, else MACs.
        place: a directory for its checkpoints.
        say: gets lines for the reader.

    Returns:
        The masks, the prompt of the best epoch, and what the receipt tells of the search.
    """
    from compress.channels.searching import SearchSettings, search

    asked = job.settings
    settings = SearchSettings(
        epochs=asked.mask_epochs,
        lr=asked.mask_lr,
        batch_size=asked.batch_size,
        hidden=asked.hidden,
        stats=asked.stats,
        ste=asked.ste,
        prompt=asked.prompt,
        prompt_size=asked.prompt_size,
        mapper=asked.mapper,
        recurrent=asked.recurrent,
        norms=asked.search_norms,
        scope=asked.scope_of("pass"),
        precision=asked.precision,
        micro_batch=asked.micro_batch,
    )
    costs = job.costs.to(job.device)
    bounded = "parameters" if asked.keep_params is not None else "macs"
    found = search(
        job.model,
        job.groups,
        lambda keeps: costs.measure(bounded, keeps),
        target,
        job.limits,
        job.images(),
        settings,
        place,
        augmentation=augmentation_of(asked),
        base=None if asked.start is None else scores_of(job, asked.start),
        seed=asked.seed,
        device=job.device,
        team=job.team,
        progress=job.progress,
        say=say,
    )
    told = {
        "epoch": found.epoch,
        "steps": found.steps,
        "seconds": found.seconds,
        "validation": [
            {"epoch": epoch, "top1": top1, "stderr": error} for epoch, top1, error in found.history
        ],
    }
    masks = keep_for_budget(
        found.scores, job.groups, job.measure, target, limits=job.limits, scope=settings.scope,
        fill=True,
    )  # fmt: skip
    prompt = found.prompt
    if prompt is not None:
        prompt = replace(prompt, needed=not asked.drop_prompt)
    return [mask.cpu() for mask in masks], prompt, told


def tune_network(
    job: Job,
    model: nn.Module,
    prompt: SavedPrompt | None,
    place: Path,
    say: Say,
) -> tuple[SavedPrompt | None, dict[str, Any]]:
    """Train a cut network in place; a killed run goes on in `place`.

    Returns:
        The prompt as it is then, and what the receipt tells of the training.
    """
    from compress.channels.tuning import TuneSettings, tune

    asked = job.settings
    share = asked.prompt_share
    if share is None:
        share = TuneSettings.prompt_share if asked.drop_prompt else 1.0
    settings = TuneSettings(
        epochs=asked.finetune_epochs,
        lr=asked.lr or TuneSettings.lr,
        batch_size=asked.batch_size,
        distill=asked.distill,
        temperature=asked.distill_temperature,
        precision=asked.precision,
        micro_batch=asked.micro_batch,
        prompt_share=share,
    )
    torch.nn.Module.to(model, torch.float32)  # what the optimizer moves
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    tuned = tune(
        model,
        job.images().train,
        settings,
        place,
        teacher=job.model if asked.distill else None,
        prompt=prompt,
        augmentation=augmentation_of(asked),
        seed=asked.seed,
        device=job.device,
        team=job.team,
        progress=job.progress,
        say=say,
    )
    torch.nn.Module.to(model, job.dtype)
    return tuned.prompt or prompt, {"steps": tuned.steps}
