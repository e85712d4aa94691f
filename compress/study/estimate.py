"""What a study would cost, from counts and one measured product of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compress.reports import formats as fmt
from compress.study.cells import Group
from compress.study.preparing import Sets, Subject
from compress.study.settings import StudySettings

_GRAM = ("sparsegpt", "admm", "alps")


def estimate(
    subjects: Mapping[str, Subject], groups: Sequence[Group], sets: Sets, settings: StudySettings
) -> dict[str, Any]:
    """Count cells, walks, passes and operations, and turn them into time.

    Returns:
        "cells", "controls", "walks", "passes" (forward passes over a calibration set),
        "flops", "bytes" (of pruned weights on disk at a time) and "seconds" (rough: products of
        the size that the model has run at this machine's measured speed).
    """
    cells = [cell for group in groups for cell in group.cells]
    passes = flops = 0.0
    for group in groups:
        subject = subjects[group.model]
        tokens = sets[group.model, group.calib, group.seed].report.tokens
        weights = sum(m.numel for m in subject.matrices)
        blocks, many = len(subject.anatomy.blocks), len(group.cells)
        # Every branch collects and passes on; the first block is collected once for all, and
        # nothing is passed on from the last.
        own = 1.0 if settings.stats == "dense" else (1 + 2 * many * (blocks - 1)) / blocks
        passes += own
        flops += own * 2 * weights * tokens
        hungry = sum(cell.setting.method in _GRAM for cell in group.cells)
        grams = sum(m.shape[1] ** 2 for m in subject.matrices)
        flops += (min(hungry, 1) if settings.stats == "dense" else hungry) * tokens * grams
        flops += hungry * sum(m.shape[0] * m.shape[1] ** 2 for m in subject.matrices)
        flops += many * 2 * subject.source.parameters_on_disk() * scored_tokens(subject, settings)
    first = next(iter(subjects.values()))
    largest = max(len(group.cells) for group in groups)
    return {
        "schema": 1,
        "command": "calib-study",
        "cells": len(cells),
        "controls": sum(cell.control != "" for cell in cells),
        "walks": len(groups),
        "passes": passes,
        "flops": flops,
        "bytes": largest * max(s.source.bytes_on_disk() for s in subjects.values()),
        "seconds": flops / _speed(first),
    }


def scored_tokens(subject: Subject, settings: StudySettings) -> int:
    """Tokens that scoring one model runs through: windows of the texts, and tasks by a guess."""
    found = 0
    for tokens in subject.request.texts.values():
        windows = max(len(tokens) // subject.eval_seqlen, 1)
        found += min(windows, settings.limit or windows) * subject.eval_seqlen
    if subject.request.tasks is not None:
        for task in subject.request.tasks.tasks.values():
            items = len(task.eval_docs)
            # A few hundred tokens and some choices an item.
            found += 4 * 128 * min(items, settings.limit or items)
    return found


def _speed(subject: Subject) -> float:
    """Floating-point operations a second of a product as the model has them."""
    width = max(m.shape[1] for m in subject.matrices)
    left = torch.randn(512, width, device=subject.device, dtype=subject.running)
    right = torch.randn(width, width, device=subject.device, dtype=subject.running)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (left @ right).sum().item()
        best = min(best, time.perf_counter() - start)
    # Attention, norms and the like take their time too: about as much again on small models.
    return 2 * 512 * width * width / best / 2


def estimate_table(found: Mapping[str, Any]) -> str:
    """The estimate as a table for people."""
    rows = [
        ["cells", f"{found['cells']} ({found['controls']} of them controls)"],
        ["walks", str(found["walks"])],
        ["passes over a calibration set", f"{found['passes']:,.0f}"],
        ["operations", f"{found['flops']:.2g}"],
        ["on disk at a time", fmt.bytes_text(found["bytes"])],
        ["time, roughly", fmt.duration(found["seconds"])],
    ]
    return fmt.table(["dry run", "nothing was pruned"], rows, "ll")
