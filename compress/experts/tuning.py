"""Fine-tuning of the layers that were made smaller, by this package's Trainer; all else is frozen.

Condense-MoE's recipe: only the linear weights of shared and kept experts in the layers condensed,
AdamW, a linear decay to 0 without warm-up, 8 sequences of 256 tokens a step; on plain text, or on
prompts and answers. Its constants are folded into the down projections, which are trained. The
model is in memory as a whole, unlike before.

Source: Condense, Don't Just Prune, arXiv:2412.00069, and the authors' scripts (lr 5e-5).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import Source, open_source
from compress.checkpoints.workspace import Workspace, partial_path
from compress.errors import RequestError, RunError
from compress.experts.preparing import Job, Say
from compress.experts.settings import CondenseSettings
from compress.reports.receipt import FILE_NAME, Receipt
from compress.training.command import train
from compress.training.preparing import check_run

DOOR = "train-spam"  # the one whose options are all given here
RECIPE = {
    "optimizer": "adamw",
    "schedule": "linear",
    "warmup": 0.0,
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "spikes": False,
}
LR, BATCH = 5e-5, 8
_WEIGHTS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}
_CURVES = {"metrics.jsonl": "finetune.jsonl", "loss.png": "finetune.png"}


def tuning_options(settings: CondenseSettings) -> dict[str, Any]:
    """Return the options of the training."""
    given = {
        "steps": settings.finetune,
        "data": settings.finetune_data or (settings.calib,),
        "sft": settings.finetune_sft,
        "lr": settings.finetune_lr or LR,
        "batch_size": settings.finetune_batch or BATCH,
        "seqlen": settings.finetune_seqlen,
        "seed": settings.seed,
        "device": settings.device,
    }
    return {**RECIPE, **{name: value for name, value in given.items() if value is not None}}


def check_tuning(job: Job, batches: Sequence[Mapping[str, Any]] | None) -> None:
    """Refuse a fine-tuning that can't be, before anything is measured.

    Raises:
        RequestError: its options, text or tokenizer; what the training itself would refuse.
    """
    settings = job.settings
    if batches is not None and not settings.finetune_data:
        raise RequestError(
            "`finetune` needs text beside calibration batches", "add `finetune_data`"
        )
    try:
        check_run(
            DOOR,
            job.source.directory,
            tuning_options(settings),
            trust_remote_code=job.source.trust_remote_code,
        )
    except RequestError as error:
        raise RequestError(f"`--finetune`: {error.message}", error.hint) from error


def tuned_parameters(source: Source, layers: Sequence[str]) -> list[str]:
    """Return the names of the weights that are trained: those of MLPs and experts, no router.

    Args:
        source: the condensed model.
        layers: names of the modules that were made smaller.
    """
    found = []
    for name, _ in skeleton(source).named_parameters():
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if inside and _WEIGHTS & set(name.split(".")[-2:]):
            found.append(name)
    return found


def fine_tune(job: Job, layers: Sequence[str], workspace: Workspace, say: Say) -> Receipt:
    """Train the condensed model in the workspace's result, and put its weights in their place.

    A run that is killed goes on from its last checkpoint in `OUT.partial/tuned.partial`.

    Args:
        job: what is condensed.
        layers: names of the modules that were made smaller.
        workspace: its result holds the condensed model.
        say: gets lines for the reader.

    Returns:
        The receipt of the training.

    Raises:
        RunError: a loss isn't finite, memory or disk ran out.
    """
    place = workspace.path / "tuned"
    if not (place / FILE_NAME).is_file():
        condensed = open_source(workspace.result, trust_remote_code=job.source.trust_remote_code)
        try:
            train(
                DOOR,
                workspace.result,
                place,
                resume=(partial_path(place) / "journal.json").is_file(),
                train_only=tuned_parameters(condensed, layers),
                trust_remote_code=job.source.trust_remote_code,
                progress=job.progress,
                say=say,
                **tuning_options(job.settings),
            )
        except RunError as error:  # its hints are about options that aren't there
            raise RunError(
                f"`--finetune`: {error.message}",
                "a smaller --finetune-lr may avoid it, in a new run"
                if "finite" in error.message
                else "`--resume` goes on from its last checkpoint",
            ) from error
    for file in _weight_files(workspace.result):
        file.unlink()
    for file in _weight_files(place):
        _link(file, workspace.result / file.name)
    for name, kept in _CURVES.items():
        if (place / name).is_file():
            _link(place / name, workspace.result / kept)
    return Receipt.read(place)


def _weight_files(directory: Path) -> list[Path]:
    return [*directory.glob("*.safetensors"), *directory.glob("*.safetensors.index.json")]


def _link(file: Path, target: Path) -> None:
    """Have a file under another name too: a resume finds the first one again."""
    try:
        os.link(file, target)
    except OSError:  # not on this file system
        shutil.copyfile(file, target)
