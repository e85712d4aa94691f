"""Whether a checkpoint that was written computes what the model in memory did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.source import Source
from compress.checkpoints.walk import walk
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer
from compress.experts.measuring import STREAM, Looks, Replaced

TOKENS = 32  # of the first calibration sequence
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the logits' spread; 16-bit: 0.1


def check_written(
    source: Source,
    written: Source,
    condensed: Sequence[ExpertLayer],
    journal: LayerJournal,
    batch: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> float | None:
    """Run both on a few tokens, a block in memory at a time.

    Sums over a wider, padded layer may be taken in another order, and a router behind it may then
    choose otherwise: the comparison is of the median over tokens of the largest difference.

    Args:
        source: the model that was condensed.
        written: the checkpoint.
        condensed: its condensed layers.
        journal: their forms.
        batch: a calibration batch.
        options: device and dtype of the walks.

    Returns:
        None if they agree, else the difference, as a share of the logits' standard deviation.
    """
    short = {"input_ids": batch["input_ids"][:1, :TOKENS]}
    method = Replaced(journal, {STREAM: condensed}, written.dtype)
    wanted = _logits(source, method, short, options)
    found = _logits(written, Looks(), short, options)
    spread = float(wanted.std()) or 1.0
    worst = float((found - wanted).abs().amax(-1).median()) / spread
    running = options.get("dtype") or written.dtype
    return None if worst <= _TOLERANCE.get(running, 0.1) else worst


def _answer(output: Any) -> Tensor:
    """Return the logits; of a model without a head what it returns last."""
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def _logits(
    source: Source, method: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]
) -> Tensor:
    found: list[Tensor] = []
    walk(
        source,
        [dict(batch)],
        method,
        streams=(STREAM,),
        on_output=lambda stream, index, output: found.append(_answer(output).float().cpu()),
        **options,
    )
    return found[0]
