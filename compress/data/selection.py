"""Choosing calibration windows by their words alone.

A greedy stand-in for ZipCal (arXiv:2603.16105), which chooses text by lexical diversity, without a
model: the next window is the one with most words, for its length, that no chosen window has.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from compress.data.overlap import words_of
from compress.data.windows import Window


def diverse(tokenizer: Any) -> Callable[[Sequence[Window], int], list[int]]:
    """Return the selection by words, for windows of a tokenizer."""

    def select(pool: Sequence[Window], count: int) -> list[int]:
        texts = [tokenizer.decode(w.ids.tolist(), skip_special_tokens=True) for w in pool]
        return most_new_words(
            [set(words_of(text)) for text in texts], [len(window.ids) for window in pool], count
        )

    return select


def most_new_words(words: Sequence[set[str]], lengths: Sequence[int], count: int) -> list[int]:
    """Choose sets one after another, each the one with most new words for its length.

    Args:
        words: the words of each candidate.
        lengths: their tokens, > 0.
        count: how many to choose.

    Returns:
        Their indices, first choice first; of equal ones the first. Fewer new words can only be left
        of a candidate as others are chosen, so only the best of a heap is counted anew.
    """
    heap = [(-len(own) / length, i) for i, (own, length) in enumerate(zip(words, lengths))]
    heapq.heapify(heap)
    seen: set[str] = set()
    chosen: list[int] = []
    while heap and len(chosen) < count:
        _, best = heapq.heappop(heap)
        now = (-len(words[best] - seen) / lengths[best], best)
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        chosen.append(best)
        seen |= words[best]
    return chosen
