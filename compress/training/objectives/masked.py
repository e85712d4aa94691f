"""MEAP: next-token prediction with a share of the input tokens masked.

k = max(1, floor(P L)) of the L input positions, never the last, are replaced by the mask token;
labels stay the original next tokens at every position; attention stays causal and whole.

Source: Zhuang et al., Mask-Enhanced Autoregressive Prediction, arXiv:2502.07490, section 3. The
authors' code uses one set of positions for a whole step, one of 51 that their seed can give; here
each row of each epoch has its own, from a counter, so that the same row gets the same mask whatever
the batch size, the number of workers and ranks, and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.training.objectives.plain import NextTokenCollator


class MaskedNextTokenCollator(NextTokenCollator):
    """Makes batches whose inputs are partly masked.

    Args:
        tokenizer: of the model, with a mask token (see mask_token.py for one that has none).
        mask_ratio: P, the share of masked positions, in [0, 1); 0 masks none.
        seed: of the masks.
        mask_special: whether special tokens (beginning and end of text, padding) may be masked;
            where not, k is counted without them.
        anneal: positions (first, last) of the run between which P falls linearly to 0; examples
            then carry "position".

    Examples carry "row" and "epoch" (0 where absent), by which masks are drawn.

    Raises:
        ValueError: the ratio is outside [0, 1), or the tokenizer has no mask token.
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_ratio: float = 0.15,
        seed: int = 0,
        mask_special: bool = False,
        *,
        anneal: tuple[int, int] | None = None,
        multiple: int = 1,
    ) -> None:
        super().__init__(tokenizer, multiple=multiple)
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"the mask ratio is {mask_ratio:g}, and must lie in [0, 1)")
        mask = getattr(tokenizer, "mask_token_id", None)
        if mask is None:
            raise ValueError("the tokenizer has no mask token; add one or name one of its tokens")
        self.mask = int(mask)
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.anneal = anneal
        special = [] if mask_special else [i for i in tokenizer.all_special_ids if i is not None]
        self._special = torch.tensor(sorted(special), dtype=torch.int64)

    def ratio_at(self, position: int) -> float:
        """Return P at a position of the run."""
        if self.anneal is None:
            return self.mask_ratio
        first, last = self.anneal
        left = (last - position) / max(last - first, 1)
        return self.mask_ratio * min(max(left, 0.0), 1.0)

    def _inputs(self, example: Mapping[str, Any], ids: Tensor) -> Tensor:
        ordinary = torch.isin(ids, self._special, invert=True)
        eligible = ordinary.clone()
        eligible[-1:] = False
        return self._masked(example, ids, eligible, int(ordinary.sum()))

    def _masked(
        self, example: Mapping[str, Any], ids: Tensor, eligible: Tensor, counted: int
    ) -> Tensor:
        """Return `ids` with the share of `counted` replaced, at eligible places only."""
        ratio = self.ratio_at(int(example.get("position", 0)))
        chosen = choose(
            eligible.numpy(),
            how_many(ratio, counted),
            self.seed,
            int(example.get("epoch", 0)),
            int(example["row"]),
        )
        return ids.index_fill(0, torch.from_numpy(chosen), self.mask)


def how_many(ratio: float, length: int) -> int:
    """Return max(1, floor(ratio * length)), or 0 where the ratio or the length is 0."""
    if ratio <= 0 or length <= 0:
        return 0
    return max(1, math.floor(ratio * length + 1e-9))  # 0.29 * 100 is a little below 29


def choose(eligible: np.ndarray, k: int, seed: int, epoch: int, row: int) -> np.ndarray:
    """Choose k of the eligible positions uniformly, by (seed, epoch, row) alone.

    Position t gets word t of a Philox stream with key (seed, epoch) and counter row; the k smallest
    words win. numpy keeps the words the same from version to version.

    Args:
        eligible: bool [T]; of fewer than k all are taken.
        k: how many.
        seed, epoch, row: >= 0, below 2**64.

    Returns:
        Their indices, int64 ascending.
    """
    stream = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, row])
    places = np.flatnonzero(eligible)
    words = stream.random_raw(len(eligible))[places]
    if k >= len(places):
        return places.astype(np.int64)
    return np.sort(places[np.argpartition(words, k)[:k]]).astype(np.int64) if k else places[:0]
