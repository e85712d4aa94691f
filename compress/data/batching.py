"""Windows as batches of tensors, and what a receipt says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.data.windows import Window


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration set is made of.

    Attributes:
        windows, seqlen: number of windows, and tokens in a full one.
        tokens: tokens in all, padding not counted.
        documents: documents or examples read, after dropping.
        digest: "sha256:…" of the token ids.
        dropped_documents: documents dropped since they also occur in an evaluation text.
        dropped_windows: windows dropped for the same reason.
        leaked: task -> windows dropped since they hold a passage of one of its items.
        cut: examples that were longer than a window, or left out of a prompt that was.
        parts: of a mix or format, what each data spec gave.
        rows: of each window, the numbers of the documents or examples in it.
    """

    windows: int
    seqlen: int
    tokens: int
    documents: int
    digest: str
    dropped_documents: int = 0
    dropped_windows: int = 0
    leaked: Mapping[str, int] = field(default_factory=dict)
    cut: int = 0
    parts: tuple[Mapping[str, Any], ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, without rows; what didn't happen is absent."""
        values = asdict(self)
        del values["rows"]
        values["parts"] = list(values["parts"])
        return {k: v for k, v in values.items() if v or k not in ("leaked", "cut", "parts")}


def token_digest(tokens: Tensor) -> str:
    """Return "sha256:…" of token ids and their shape, the same on every platform."""
    array = np.ascontiguousarray(tokens.cpu().numpy().astype("<i8"))
    return "sha256:" + hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def window_digest(windows: Sequence[Window], isolated: bool = False) -> str:
    """Return the digest of windows: of full ones that of their tokens, else of their ends too.

    Args:
        windows: at least one.
        isolated: documents in them don't see each other, so their beginnings count.
    """
    longest = max(len(window.ids) for window in windows)
    rows = np.full((len(windows), longest), -1, np.int64)
    for row, window in zip(rows, windows, strict=True):
        row[: len(window.ids)] = window.ids
    if isolated:
        starts = np.zeros_like(rows)
        for row, window in zip(starts, windows, strict=True):
            row[window.starts] = 1
        rows = np.concatenate([rows, starts], 1)
    return token_digest(torch.from_numpy(rows))


def first_tokens(window: Window, count: int) -> Window:
    """Return a window cut to its first `count` tokens, >= 1."""
    if len(window.ids) <= count:
        return window
    starts = window.starts[window.starts < count]
    return Window(window.ids[:count], starts, window.rows)


def make_batches(
    windows: Sequence[Window], batch_size: int, isolated: bool = False
) -> list[dict[str, Tensor]]:
    """Put windows into batches, padded to the longest of each.

    Args:
        windows: in order.
        batch_size: windows a batch.
        isolated: give positions that begin anew with each document, by which transformers keeps
            documents apart; it doesn't where there is a mask, so these batches have windows of one
            length.

    Returns:
        {"input_ids": int64 [B, T]}; with "attention_mask" int64 [B, T] where a row is padded, with
        "position_ids" int64 [B, T] where documents are isolated.
    """
    batches = []
    for group in _groups(windows, batch_size, isolated):
        longest = max(len(window.ids) for window in group)
        ids = torch.zeros(len(group), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, window in enumerate(group):
            ids[i, : len(window.ids)] = torch.from_numpy(window.ids)
            mask[i, : len(window.ids)] = 1
        batch = {"input_ids": ids}
        if not bool(mask.all()):
            batch["attention_mask"] = mask
        if isolated:
            batch["position_ids"] = torch.stack([_positions(window) for window in group])
        batches.append(batch)
    return batches


def _groups(
    windows: Sequence[Window], batch_size: int, same_length: bool
) -> Iterator[Sequence[Window]]:
    first = 0
    while first < len(windows):
        end = min(first + batch_size, len(windows))
        if same_length:
            length = len(windows[first].ids)
            end = next((i for i in range(first, end) if len(windows[i].ids) != length), end)
        yield windows[first:end]
        first = end


def _positions(window: Window) -> Tensor:
    """Return each token's place in its document, int64 [T]."""
    place = torch.arange(len(window.ids))
    starts = torch.from_numpy(window.starts)
    return place - starts[torch.searchsorted(starts, place, right=True) - 1]


def split_batches(
    batches: Sequence[Mapping[str, Tensor]], count: int, batch_size: int
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], CalibrationReport]:
    """Deal the windows of batches into the first `count` and the others.

    Returns:
        The batches of both, and what is to be said of the first: windows, tokens and digest.
    """
    windows = [window for batch in batches for window in _taken_apart(batch)]
    isolated = any("position_ids" in batch for batch in batches)
    kept = windows[:count]
    report = CalibrationReport(
        windows=len(kept),
        seqlen=max(len(window.ids) for window in kept),
        tokens=sum(len(window.ids) for window in kept),
        documents=0,
        digest=window_digest(kept, isolated),
    )
    first = make_batches(kept, batch_size, isolated)
    return first, make_batches(windows[count:], batch_size, isolated), report


def _taken_apart(batch: Mapping[str, Tensor]) -> Iterator[Window]:
    for i, row in enumerate(batch["input_ids"]):
        mask = batch.get("attention_mask")
        length = len(row) if mask is None else int(mask[i].sum())
        starts = np.zeros(1, np.int64)
        if "position_ids" in batch:
            starts = (batch["position_ids"][i] == 0).nonzero().squeeze(1).numpy()
        yield Window(row[:length].numpy(), starts, ())
