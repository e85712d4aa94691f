"""Calibration text that is also evaluated on: found by document, and by runs of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

RUN = 64  # tokens in a row that two unrelated texts don't share
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))


class HeldOut:
    """Evaluation texts, ready to recognise their documents and passages.

    Whole documents are compared by a hash of their words. Since an evaluation text is often one
    file, windows are compared too: by every run of RUN tokens (or a whole window, if shorter), with
    a rolling hash, so that an excerpt is found wherever it starts.
    """

    def __init__(self, documents: Sequence[str], tokenizer: Any) -> None:
        self._documents = {_words(text) for text in documents if text.strip()}
        self._streams: list[np.ndarray] = []
        self._runs: dict[int, np.ndarray] = {}
        if documents:
            encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)
            self._streams = [np.array(ids, np.uint64) for ids in encoded["input_ids"]]

    def without(self, documents: Sequence[str]) -> tuple[list[str], int]:
        """Return the documents that are not held out and not blank, and how many were held out."""
        texts = [text for text in documents if text.strip()]
        if not self._documents:
            return texts, 0
        kept = [text for text in texts if _words(text) not in self._documents]
        return kept, len(texts) - len(kept)

    def holds(self, text: str) -> bool:
        """Whether a text is one of the held-out documents."""
        return _words(text) in self._documents

    def shares_a_run(self, window: np.ndarray) -> bool:
        """Whether a window of token ids, int64 [T], holds a passage of a held-out text."""
        if not self._streams:
            return False
        length = min(RUN, max(len(window) - 1, 1))  # position 0 may be the beginning-of-text token
        if length not in self._runs:
            hashes = [_run_hashes(ids, length) for ids in self._streams]
            self._runs[length] = np.unique(np.concatenate(hashes))
        held = self._runs[length]
        if not len(held):
            return False
        own = _run_hashes(window.astype(np.uint64), length)
        at = np.minimum(np.searchsorted(held, own), len(held) - 1)
        return bool((held[at] == own).any())


def _words(text: str) -> bytes:
    """Return a hash of a text that doesn't see how white space is laid out."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).digest()


def _run_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """Return the hash of every run of `length` ids: uint64 [max(len(ids) - length + 1, 0)].

    The hash of the run at i is sum_j mix(ids[i + j]) * F^j modulo 2^64, from differences of one
    cumulative sum, brought to a common power by F^-i.
    """
    count = len(ids) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    mixed = (ids + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    powers = np.cumprod(np.full(len(ids), _FACTOR, np.uint64), dtype=np.uint64)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(mixed * powers, dtype=np.uint64)])
    back = np.cumprod(np.full(count, _INVERSE, np.uint64), dtype=np.uint64)
    return (sums[length:] - sums[:-length]) * back
