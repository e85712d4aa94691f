"""All branches of one calibration set pruned in one walk, and how a failing one is left out."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from compress.checkpoints.durable import write_json
from compress.checkpoints.placement import free_memory
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.walk import open_writer, walk
from compress.errors import CompressError
from compress.progress import Progress, renamed
from compress.sparsity.branches import Branch, Branches
from compress.study.preparing import Subject

_COPIES = (
    3  # activations that a stream holds at once: a block's inputs, its outputs, a batch's work
)


class Pruned(NamedTuple):
    """What became of the branches of a group.

    Attributes:
        parts: branch -> its weights on disk.
        errors: branch -> why it has none.
        passes: block forward passes over the calibration set, by the number of blocks.
    """

    parts: dict[str, ShardWriter]
    errors: dict[str, str]
    passes: float


def prune_branches(
    subject: Subject,
    batches: Sequence[dict[str, Tensor]],
    branches: Mapping[str, Branch],
    place: Path,
    *,
    dense: bool,
    progress: Progress,
) -> Pruned:
    """Prune a model in many ways in as few walks as memory allows.

    Args:
        subject: the model.
        batches: the calibration set.
        branches: name (also of a directory) -> way to prune.
        place: where the pruned weights go. What an interrupted call has finished there is kept.
        dense: all statistics from one pass of the dense model.
        progress: told of blocks.

    Returns:
        Every branch, in `parts` or in `errors`. A branch whose walk fails is found by halves: the
        others are pruned without it, to the same bits.
    """
    found = Pruned({}, {}, 0.0)
    names = list(branches)
    most = _at_once(subject, batches)
    for start in range(0, len(names), most):
        own = {name: branches[name] for name in names[start : start + most]}
        found = _together(subject, batches, own, place, dense, progress, found)
    return found


def _together(
    subject: Subject,
    batches: Sequence[dict[str, Tensor]],
    branches: Mapping[str, Branch],
    place: Path,
    dense: bool,
    progress: Progress,
    before: Pruned,
) -> Pruned:
    writers = {
        name: open_writer(place / name, subject.source, dtype=subject.dtype) for name in branches
    }
    walked = place / "walked.json"
    if walked.is_file() and set(branches) <= set(json.loads(walked.read_text(encoding="utf-8"))):
        return before._replace(parts={**before.parts, **writers})
    try:
        report = walk(
            subject.source,
            batches,
            Branches(branches),
            writers,
            device=subject.device,
            dtype=subject.running if subject.running != subject.source.dtype else None,
            streams=list(branches),
            progress=renamed(progress, "prune"),
            resume=True,  # a new place has no parts
            propagate="dense" if dense else "edited",
        )
    except Exception as error:
        if stops_all(error):
            raise
        if len(branches) == 1:
            (name,) = branches
            shutil.rmtree(place / name, ignore_errors=True)
            return before._replace(errors={**before.errors, name: one_line(error)})
        names = list(branches)
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            own = {name: branches[name] for name in half}
            before = _together(subject, batches, own, place, dense, progress, before)
        return before
    found = before._replace(parts={**before.parts, **writers}, passes=before.passes + report.passes)
    write_json(walked, list(found.parts))
    return found


def digest_of(subject: Subject, parts: ShardWriter) -> str:
    """The digest of a pruned model, that `Source.digest` gives of the saved checkpoint."""
    return dataclasses.replace(subject.source, tensors=parts.stored()).digest()


def stops_all(error: BaseException) -> bool:
    """Whether an error is none of the cell's: a full disk ends the study."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def one_line(error: Exception) -> str:
    """An error as a cell's line has it."""
    if isinstance(error, CompressError):
        return error.message
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _at_once(subject: Subject, batches: Sequence[dict[str, Tensor]]) -> int:
    """How many branches' activations fit into half of the free memory; at least one."""
    config = subject.source.config.get_text_config()
    width = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 1024))
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    each = tokens * width * subject.running.itemsize * _COPIES
    room = free_memory(subject.device) / 2
    return int(max(1, min(room / each, 4096)))
