"""A plan carried out: the walk with the pruner, and the directory that becomes the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.placement import compute_dtype, resolve_dtype
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.source import Source
from compress.checkpoints.walk import open_writer, walk
from compress.checkpoints.workspace import Workspace, copy_companions, writing
from compress.checkpoints.zeros import has_packed, write_zeros
from compress.errors import RequestError
from compress.numerics.ranks import ALONE, Team
from compress.progress import Progress, renamed
from compress.sparsity.branches import Branch, Branches
from compress.sparsity.pruner import STREAM, Pruner, Target
from compress.sparsity.refit_block import DENSE
from compress.sparsity.settings import AlphaPruneSettings

NOTES = "notes.jsonl"
DENSE_NOTE = (
    "zeros are stored dense: the files are as large as before, and no engine here skips zeros"
)


@dataclass(frozen=True)
class Applied:
    """What carrying out a plan took.

    Attributes:
        passes: block forward passes over the calibration set, by the number of blocks.
        peak_bytes: largest anonymous memory (on a GPU: allocation) seen between phases.
        notes: how the zeros are stored, and what was odd, for the receipt.
        untouched: number of matrices and other parameters of the blocks left as they were.
        sent_bytes: of statistics and weights, sent between ranks.
        rows: matrix to what each of its rows lost, where TRIM chose that.
        rivals: name to where a rival's parts lie.
    """

    passes: float
    peak_bytes: int
    notes: tuple[str, ...]
    untouched: int
    sent_bytes: int = 0
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    rivals: Mapping[str, ShardWriter] = field(default_factory=dict)


def prune(
    source: Source,
    batches: Sequence[dict[str, Tensor]],
    targets: Mapping[str, Target],
    settings: AlphaPruneSettings,
    workspace: Workspace,
    device: str,
    progress: Progress,
    team: Team = ALONE,
    rivals: Mapping[str, Mapping[str, Target]] = MappingProxyType({}),
) -> Applied:
    """Prune block by block into the workspace's parts, and lay out its result.

    What an interrupted run has finished there is kept: the parts are the journal. Ranks of a team
    share the batches and the matrices; rank 0 writes. Without batches rank 0 does all. Rivals are
    other targets by name, pruned alike in the same walk; `lay_out_rival` makes a model of one.

    Raises:
        RequestError: a refit of blocks with too few batches.
    """
    dtype = resolve_dtype(settings.dtype)
    running = dtype or compute_dtype(source.dtype, device)
    if not settings.needs_inputs:
        if not team.first:
            return Applied(0.0, 0, (), 0)
        team = ALONE
    _check_refit(settings, batches)
    writers = {STREAM: open_writer(workspace.path / "parts", source, dtype=dtype, team=team)}
    for name in rivals:
        writers[name] = open_writer(_rival_place(workspace, name) / "parts", source, dtype=dtype)
    options = _pruner_options(settings, dtype or source.dtype)
    method: Pruner | Branches
    if rivals:
        every = {STREAM: targets, **rivals}
        notes = {name: {"notes_file": writers[name].directory.parent / NOTES} for name in every}
        method = Branches(
            {n: Branch(t, settings.method, {**options, **notes[n]}) for n, t in every.items()}
        )
        pruner = method.pruners[STREAM]
    else:
        method = pruner = Pruner(
            targets,
            settings.method,
            **options,
            true_sequential=settings.propagate == "true-sequential",
            notes_file=workspace.path / NOTES,
            channel_permutation=settings.channel_permutation,
            block_refit=settings.block_refit,
            team=team,
        )
    report = walk(
        source,
        batches if settings.needs_inputs else [],
        method,
        writers,
        device=device,
        dtype=running if running != source.dtype else None,
        streams=(STREAM, DENSE) if settings.block_refit else list(writers),
        progress=renamed(progress, "prune"),
        resume=True,  # a new workspace has no parts
        propagate="dense" if settings.propagate == "dense" else "edited",
        team=team,
    )
    if not team.first:
        return Applied(report.passes, report.peak_bytes, (), len(report.untouched))
    writer = writers.pop(STREAM)
    zeros = _lay_out(
        source, writer, workspace.result, workspace.path / "pieces", settings.format, dtype,
        progress,
    )  # fmt: skip
    copy_companions(source.companions(), workspace.result)
    return Applied(
        report.passes,
        report.peak_bytes,
        (zeros, *pruner.notes()),
        len(report.untouched),
        report.sent_bytes,
        pruner.rows(),
        writers,
    )


def lay_out_rival(
    source: Source,
    name: str,
    applied: Applied,
    settings: AlphaPruneSettings,
    workspace: Workspace,
    progress: Progress,
) -> Path:
    """Make a checkpoint of a rival's parts, its zeros stored dense; return where it lies."""
    place = _rival_place(workspace, name)
    model = place / "model"
    shutil.rmtree(model, ignore_errors=True)  # of an interrupted run
    model.mkdir()
    dtype = resolve_dtype(settings.dtype)
    _lay_out(source, applied.rivals[name], model, place / "pieces", "dense", dtype, progress)
    copy_companions(source.companions(), model)
    return model


def _rival_place(workspace: Workspace, name: str) -> Path:
    return workspace.path / "rivals" / name


def _pruner_options(settings: AlphaPruneSettings, stored: torch.dtype) -> dict[str, Any]:
    """What a pruner is told whether it runs alone or beside others."""
    return {
        "refit": settings.refit,
        "damp": settings.damp,
        "block_size": settings.block_size,
        "stored": stored,
    }


def _check_refit(settings: AlphaPruneSettings, batches: Sequence[dict[str, Tensor]]) -> None:
    if settings.block_refit and len(batches) < 2:
        raise RequestError(
            f"`--refit block` holds calibration batches out: {len(batches)} is too few, 2 needed",
            "use more --samples or a smaller --batch-size",
        )


def _lay_out(
    source: Source,
    writer: ShardWriter,
    place: Path,
    pieces: Path,
    form: str,
    dtype: torch.dtype | None,
    progress: Progress,
) -> str:
    """Make a checkpoint of the parts at `place`; return what is to be said of the zeros."""
    if form == "dense" and not has_packed(source):
        writer.join(place)
        _write_config(source, place, dtype)
        return DENSE_NOTE
    parts = replace(source, tensors=writer.stored())
    stowed = write_zeros(
        parts,
        place,
        pieces,
        form,
        config=_config(source, dtype),
        progress=renamed(progress, "lay out"),
    )
    if form == "dense":
        return DENSE_NOTE
    if not stowed.packed:
        return f"no matrix has enough zeros to be smaller as a bitmask: {DENSE_NOTE}"
    left = f"; {stowed.dense} with too few zeros are dense" if stowed.dense else ""
    return (
        f"zeros of {len(stowed.packed)} modules aren't stored{left}: smaller files, but expanded "
        "at load, so neither memory nor speed gain; loading needs `import compress`, no other "
        "engine takes it; `compress export --to stock` turns it back"
    )


def _write_config(source: Source, directory: Path, dtype: torch.dtype | None) -> None:
    """Copy config.json as it is; only a dtype that was asked for is written into it."""
    with writing(directory):
        if dtype is None or dtype == source.dtype:
            shutil.copyfile(source.directory / "config.json", directory / "config.json")
            return
        text = json.dumps(_config(source, dtype), indent=2, ensure_ascii=False) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")


def _config(source: Source, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return what config.json holds, with the dtype that was asked for."""
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    if dtype is not None and dtype != source.dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    return config
