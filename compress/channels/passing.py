"""PASS's search and the training after the cut, as the command's options ask for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compress.channels.budget import keep_for_budget
from compress.channels.preparing import Job, Say

if TYPE_CHECKING:
    from compress.data.images.prompting import SavedPrompt


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
        scope=asked.scope_of("pass"),
        precision=asked.precision,
    )
    found = search(
        job.model,
        job.groups,
        job.measure,
        target,
        job.limits,
        job.images(),
        settings,
        place,
        seed=asked.seed,
        device=job.device,
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
    settings = TuneSettings(
        epochs=asked.finetune_epochs,
        lr=asked.lr or TuneSettings.lr,
        batch_size=asked.batch_size,
        distill=asked.distill,
        temperature=asked.distill_temperature,
        precision=asked.precision,
        prompt_share=TuneSettings.prompt_share if asked.drop_prompt else 1.0,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    tuned = tune(
        model,
        job.images().train,
        settings,
        place,
        teacher=job.model if asked.distill else None,
        prompt=prompt,
        seed=asked.seed,
        device=job.device,
        progress=job.progress,
        say=say,
    )
    return tuned.prompt or prompt, {"steps": tuned.steps}
