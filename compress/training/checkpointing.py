"""Checkpoints of a run that a kill can't tear, and their way back into the model.

A checkpoint is written to `DIR/.partial`, pushed to the disk, and put in place by one rename, so
that `DIR/checkpoint-N` is always whole. The stock Trainer writes into the final directory, and a
kill in between leaves one that resumes without optimizer or random state.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from compress.checkpoints import record, tensorfiles
from compress.checkpoints.durable import sync
from compress.checkpoints.loader import load_tensors
from compress.errors import RunError

PARTIAL = ".partial"
_PREFIX = "checkpoint-"
_STATE = "trainer_state.json"


def saved_checkpoints(directory: Path) -> list[Path]:
    """Return a run's whole checkpoints, the oldest first."""
    found = [
        path
        for path in directory.glob(f"{_PREFIX}*")
        if path.name.removeprefix(_PREFIX).isdigit() and (path / _STATE).is_file()
    ]
    return sorted(found, key=step_of)


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole checkpoint, None if there is none; removes a torn one."""
    shutil.rmtree(directory / PARTIAL, ignore_errors=True)
    found = saved_checkpoints(directory)
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """Return the number of steps done at a checkpoint."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def put_in_place(directory: Path, step: int, keep: int) -> None:
    """Move what was written to `DIR/.partial/checkpoint-STEP` to `DIR/checkpoint-STEP`.

    Args:
        directory: where the run's checkpoints lie.
        step: steps done.
        keep: how many checkpoints stay, the newest; at least 1.

    Raises:
        OSError: the disk is full or gone; the older checkpoints are then as they were.
    """
    written = directory / PARTIAL / f"{_PREFIX}{step}"
    for place, _, names in os.walk(written, topdown=False):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))
    target = directory / written.name
    if target.exists():  # of a run that went back to an older checkpoint
        shutil.rmtree(target)
    os.rename(written, target)
    sync(directory)
    shutil.rmtree(directory / PARTIAL, ignore_errors=True)
    for old in saved_checkpoints(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_weights(model: PreTrainedModel, checkpoint: Path, device: str | torch.device) -> None:
    """Read a checkpoint's weights into the model that the run built, edited or stock.

    The stock Trainer reads them by `load_state_dict(strict=False)`, which leaves converted tensors
    (guarded, packed, fused experts) silently as they were.

    Raises:
        RunError: a parameter has no value in the checkpoint.
        RequestError: a tensor has another shape than the model's, or belongs to no parameter.
    """
    stored = tensorfiles.stored_tensors(checkpoint)
    mapping = [*get_model_conversion_mapping(model), *record.load_conversions(model)]
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    saving = vars(model).get("_weight_conversions")
    frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    loaded = load_tensors(
        model,
        tensorfiles.read_tensors(stored, list(stored)),
        mapping=mapping,
        dtype=dtype,
        device=device,
    )
    vars(model).pop("_weight_conversions", None)  # what the loader used, by which saves would go
    if saving is not None:
        model._weight_conversions = saving
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    shared = {*tied, *tied.values()}
    unsaved = set(model._keys_to_ignore_on_save or ())
    lacking = set(dict(model.named_parameters(remove_duplicate=False))) - loaded - shared - unsaved
    if lacking:
        raise RunError(
            f"`{checkpoint}` lacks {len(lacking)} tensors of the model, such as `{min(lacking)}`",
            "delete that checkpoint, then run again with --resume",
        )
    if tied:
        model.tie_weights()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name not in frozen)  # the loader makes new parameters
    off_the_file(model)


@torch.no_grad()
def off_the_file(model: PreTrainedModel) -> None:
    """Copy memory-mapped weights into memory of their own.

    Rotation removes the file; and where a map leaves a weight misaligned, kernels may choose
    another order of sums, so that a resumed run would differ in the last bit.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
