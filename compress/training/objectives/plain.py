"""Next-token prediction: rows to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position that no loss is computed at."""


class NextTokenCollator:
    """Stacks rows into a batch for a causal language model.

    Args:
        tokenizer: of the model; gives the padding token of rows of unequal length.
        multiple: padded length is a multiple of this.
    """

    def __init__(self, tokenizer: Any = None, *, multiple: int = 1) -> None:
        self.pad = _pad_token(tokenizer)
        self.multiple = multiple

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            examples: each with `input_ids` [T], and maybe `labels` [T] (the tokens themselves
                unless given), `next` (the token after the last), `position_ids` [T] and `starts`
                (places of 1 to T where another document begins, which nothing before predicts).

        Returns:
            input_ids and labels, int64 [B, T]: models shift labels themselves. With `next` also
            shift_labels [B, T], the shifted ones, whose last is that token. With unequal lengths
            attention_mask [B, T].
        """
        ids = [torch.as_tensor(example["input_ids"], dtype=torch.int64) for example in examples]
        labels = [self._labels(example, own) for example, own in zip(examples, ids)]
        inputs = [self._inputs(example, own) for example, own in zip(examples, ids)]
        longest = max(map(len, ids))
        longest += -longest % self.multiple
        batch = {
            "input_ids": _stack(inputs, longest, self.pad),
            "labels": _stack([own[: len(i)] for own, i in zip(labels, ids)], longest, IGNORED),
        }
        if "next" in examples[0]:
            batch["shift_labels"] = _stack([own[1:] for own in labels], longest, IGNORED)
        if "position_ids" in examples[0]:
            places = [torch.as_tensor(e["position_ids"]) for e in examples]
            batch["position_ids"] = _stack(places, longest, 0)
        if any(len(own) != longest for own in ids):
            ones = [torch.ones(len(own), dtype=torch.int64) for own in ids]
            batch["attention_mask"] = _stack(ones, longest, 0)
        return batch

    def _labels(self, example: Mapping[str, Any], ids: Tensor) -> Tensor:
        """Return a row's labels, [T] or with `next` [T + 1]."""
        labels = torch.as_tensor(example.get("labels", ids), dtype=torch.int64)
        if "next" in example:
            labels = torch.cat([labels, labels.new_tensor([example["next"]])])
        if "starts" in example:
            starts = torch.as_tensor(example["starts"])
            labels = labels.index_fill(0, starts[starts < len(labels)], IGNORED)
        return labels

    def _inputs(self, example: Mapping[str, Any], ids: Tensor) -> Tensor:
        """Return what the model reads."""
        return ids


def _pad_token(tokenizer: Any) -> int:
    """Any token will do, since padding is neither attended nor a label; 0 where none is named."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return 0


def _stack(rows: Sequence[Tensor], length: int, fill: int) -> Tensor:
    out = torch.full((len(rows), length), fill, dtype=torch.int64)
    for target, row in zip(out, rows):
        target[: len(row)] = row
    return out
