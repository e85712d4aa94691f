"""The CTC loss on recordings that aren't trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from compress.lowrank.scratch.rows import SpeechCollator, SpeechRows
from compress.training.losses import MeanLoss


def ctc_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return each recording's loss over its labels, float32 [B]; infinite where it doesn't fit."""
    labels = batch["labels"]
    logits = model(
        input_features=batch["input_features"], attention_mask=batch["attention_mask"]
    ).logits
    inside = labels >= 0
    losses = functional.ctc_loss(
        functional.log_softmax(logits.float(), -1).transpose(0, 1),
        labels.masked_fill(~inside, 0),
        model._get_subsampling_output_length(batch["attention_mask"].sum(-1)).long(),
        inside.sum(-1),
        blank=model.config.pad_token_id,
        reduction="none",
    )
    return losses / inside.sum(-1)


@torch.no_grad()
def mean_ctc_loss(
    model: nn.Module, rows: SpeechRows, device: torch.device, batch_size: int, limit: int
) -> MeanLoss:
    """Return the mean over recordings of the loss a label, as in training.

    Args:
        model: its mode is restored afterwards.
        rows: the recordings; the first `limit` are measured.
        device: of the model.
        batch_size: recordings at once.
        limit: of rows.
    """
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    collate = SpeechCollator()
    numbers: Sequence[int] = range(min(limit, len(rows)))
    for first in range(0, len(numbers), batch_size):
        batch = collate([rows[row] for row in numbers[first : first + batch_size]])
        found.append(ctc_losses(model, {k: v.to(device) for k, v in batch.items()}).double().cpu())
    model.train(was_training)
    losses = torch.cat(found)
    error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else None
    return MeanLoss(float(losses.mean()), error, sum(rows.tokens(row) for row in numbers))
