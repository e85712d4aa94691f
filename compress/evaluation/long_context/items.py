"""One item of a long-context task: a prompt, the answers to it, and where the right one stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Cell = tuple[tuple[str, float], ...]  # (("length", 4096), ("depth", 0.5))
Span = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """A prompt with its answers.

    Attributes:
        key: cell, number and digest of the tokens; equal keys are the same item.
        cell: names and values of its cell.
        prompt: int64 [P].
        answers: tokens of each answer, the right one first; int64, at least one token each.
        evidence: spans of the prompt that say the answer, as [first, behind the last).
        values: spans inside the evidence that hold the answer itself.
        question: where the question starts.
    """

    key: str
    cell: Cell
    prompt: Tensor
    answers: tuple[Tensor, ...]
    evidence: tuple[Span, ...]
    values: tuple[Span, ...]
    question: int

    @property
    def length(self) -> int:
        """Tokens of the prompt with the right answer."""
        return len(self.prompt) + len(self.answers[0])


class TooShort(Exception):
    """A cell whose prompt doesn't fit into its length.

    Attributes:
        needed: tokens that the shortest such prompt takes.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(str(needed))
        self.needed = needed


class AnswerElsewhere(Exception):
    """The text around happens to hold the answer too: another draw is needed."""


def make_item(
    cell: Cell,
    index: int,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    evidence: Sequence[Span],
    values: Sequence[Span],
    question: int,
) -> Item:
    """Build an item; its key is the same in any run, for any model that cuts text alike."""
    ids = torch.tensor(prompt, dtype=torch.int64)
    choices = tuple(torch.tensor(answer, dtype=torch.int64) for answer in answers)
    content = hashlib.sha256()
    for part in (ids, *choices):
        content.update(part.numpy().tobytes())
        content.update(b"|")
    place = "/".join(f"{value:g}" for _, value in cell)
    return Item(
        key=f"{place}/{index}:{content.hexdigest()[:16]}",
        cell=cell,
        prompt=ids,
        answers=choices,
        evidence=tuple(evidence),
        values=tuple(values),
        question=question,
    )
