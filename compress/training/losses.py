"""The mean loss over rows that aren't trained on, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from compress.training.data import Rows
from compress.training.objectives.plain import IGNORED


class MeanLoss(NamedTuple):
    """Mean loss in nats over `tokens` labels; stderr over rows, None for a single one."""

    value: float
    stderr: float | None
    tokens: int


@torch.no_grad()
def mean_loss(
    model: torch.nn.Module,
    rows: Rows,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
    *,
    device: torch.device,
    batch_size: int,
    limit: int | None = None,
) -> MeanLoss:
    """Measure the loss per label, every label counted once.

    Args:
        model: a causal language model; its mode is restored afterwards.
        rows: what to measure on; row r is shown as row r of epoch 0.
        collate: makes batches, masked or not.
        device: of the model.
        batch_size: rows at once; changes nothing but rounding.
        limit: at most so many leading rows.
    """
    was_training = model.training
    model.eval()
    sums, counts = [], []
    total = len(rows) if limit is None else min(limit, len(rows))
    for first in range(0, total, batch_size):
        some = range(first, min(first + batch_size, total))
        batch = collate([{**rows[row], "row": row, "epoch": 0} for row in some])
        own, many = _row_losses(model, {k: v.to(device) for k, v in batch.items()})
        sums.append(own.double().cpu())
        counts.append(many.double().cpu())
    model.train(was_training)
    return _summary(torch.cat(sums), torch.cat(counts))


def _row_losses(model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return each row's sum of losses and number of labels, [B] each."""
    labels = batch.pop("labels")
    shifted = batch.pop("shift_labels", None)
    if shifted is None:
        shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    logits = model(**batch).logits
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), shifted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(shifted).sum(1), (shifted != IGNORED).sum(1)


def _summary(sums: Tensor, counts: Tensor) -> MeanLoss:
    """The ratio of sums over rows, and its standard error by linearisation."""
    tokens = float(counts.sum())
    mean = float(sums.sum()) / tokens
    n = len(sums)
    if n < 2:
        return MeanLoss(mean, None, int(tokens))
    spread = float(((sums - mean * counts) ** 2).sum()) * n / (n - 1)
    return MeanLoss(mean, math.sqrt(spread) / tokens, int(tokens))
