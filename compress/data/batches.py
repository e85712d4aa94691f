"""Calibration batches that the caller made: images, sound, features, tokens of any kind."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.data.packing import CalibrationReport
from compress.errors import RequestError


def given_batches(
    batches: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], CalibrationReport]:
    """Check batches made by the caller and describe them as `prepare_calibration` does.

    Args:
        batches: keyword arguments of the model's forward, one mapping a batch. The first tensor of
            each has a row for every sample; `attention_mask` only where rows are padded.

    Returns:
        The batches as dicts, and a report whose windows are samples, whose seqlen is the longest
        row of the first tensor and whose digest is that of all tensors.

    Raises:
        RequestError: there is none, or one holds no tensor.
    """
    if not batches:
        raise RequestError("`batches` is empty", "give at least one batch")
    own = hashlib.sha256()
    samples = tokens = longest = 0
    for number, batch in enumerate(batches):
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        if not tensors:
            raise RequestError(
                f"batch {number} holds no tensor",
                "a batch maps arguments of the model's forward, such as pixel_values, to tensors",
            )
        first = next(iter(tensors.values()))
        rows = first.shape[0] if first.ndim else 1
        length = first.shape[1] if first.ndim == 2 else 1
        samples, tokens, longest = samples + rows, tokens + rows * length, max(longest, length)
        for key in sorted(tensors):
            value = tensors[key].detach().cpu().contiguous()
            own.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            own.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest = f"sha256:{own.hexdigest()}"
    return [dict(batch) for batch in batches], CalibrationReport(
        samples, longest, tokens, samples, digest
    )
