"""Word and character error rates: edits over the length of the reference, by jiwer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from compress.errors import RequestError
from compress.evaluation.compare import Difference
from compress.evaluation.shown import Shown
from compress.numerics.significance import LEVEL, paired

WORDS, CHARACTERS = "wer", "cer"


@dataclass(frozen=True)
class ErrorRate:
    """Errors of many utterances: substitutions, deletions and insertions over the reference.

    Attributes:
        errors, counts: of each utterance: edits, and words (or characters) of the reference.
        words: words of all references, whichever the unit.
        digest: of the references, by which two scores are known to be of the same utterances.
        shown: of each utterance what people read: "item", "target", "answer"; or empty.
    """

    errors: list[int]
    counts: list[int]
    words: int
    digest: str
    shown: list[Shown] = field(default_factory=list, repr=False, compare=False)

    @property
    def value(self) -> float:
        """Errors over units of the references; may exceed 1."""
        return sum(self.errors) / sum(self.counts)

    @property
    def stderr(self) -> float | None:
        """Standard error over utterances, of a ratio of sums by linearisation; None for one."""
        n, total, rate = len(self.errors), sum(self.counts), self.value
        if n < 2:
            return None
        spread = sum((e - rate * c) ** 2 for e, c in zip(self.errors, self.counts))
        return math.sqrt(spread * n / (n - 1)) / total

    def as_receipt(self) -> dict[str, Any]:
        """CONTRACT's form; `utterances` beside it."""
        entry: dict[str, Any] = {"value": self.value}
        if self.stderr is not None:
            entry["stderr"] = self.stderr
        return {**entry, "words": self.words, "utterances": len(self.errors)}


def error_rate(references: Sequence[str], hypotheses: Sequence[str], unit: str) -> ErrorRate:
    """Count the errors of transcripts.

    Args:
        references: what was said, each with a word at least.
        hypotheses: what was heard, in the same order.
        unit: "wer" for words, "cer" for characters, spaces among them, as jiwer counts both.

    Raises:
        RequestError: an empty reference, or not as many hypotheses.
    """
    import hashlib

    import jiwer

    if len(references) != len(hypotheses):
        raise RequestError(f"{len(references)} references, and {len(hypotheses)} hypotheses")
    process = jiwer.process_words if unit == WORDS else jiwer.process_characters
    errors, counts = [], []
    for number, (said, heard) in enumerate(zip(references, hypotheses)):
        if not said.strip():
            raise RequestError(f"reference {number} is empty: it has no error rate")
        found = process(said, heard)
        errors.append(found.substitutions + found.deletions + found.insertions)
        counts.append(found.hits + found.substitutions + found.deletions)
    words = sum(len(said.split()) for said in references)
    digest = hashlib.sha256("\n".join(references).encode()).hexdigest()
    return ErrorRate(errors, counts, words, f"sha256:{digest}")


def compare_rates(before: ErrorRate, after: ErrorRate) -> Difference | None:
    """Compare two scores of the same utterances by a paired t test; None where they differ."""
    from scipy.special import stdtrit

    if before.digest != after.digest or before.counts != after.counts:
        return None
    n, total = len(before.errors), sum(before.counts)
    difference = after.value - before.value
    test = paired([0.0] * n, [(b - a) * n / total for a, b in zip(before.errors, after.errors)])
    if test is None:
        return Difference(difference, None, None, n)
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * test.stderr
    return Difference(difference, (difference - half, difference + half), test.p, n)
