"""Text to tokens, piece by piece, so that a prompt's length is known to the token."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from compress.numerics.counter import generator

T = TypeVar("T")
_ANCHOR = "x"  # what stands before a piece while it is tokenised; a letter merges with no blank
_TRIES = 60


class Piece(NamedTuple):
    """A text in tokens, and where its value stands.

    Attributes:
        ids: tokens.
        span: first and behind the last token of the value.
    """

    ids: list[int]
    span: tuple[int, int]


class Draw:
    """Random choices from a seed and counters alone."""

    def __init__(self, seed: int, *counters: int) -> None:
        self._generator = generator(seed, *counters)

    def below(self, n: int) -> int:
        """Return an integer from 0 to n - 1."""
        return int(torch.randint(n, (1,), generator=self._generator))

    def choice(self, values: Sequence[T]) -> T:
        """Return one of the values."""
        return values[self.below(len(values))]

    def sample(self, values: Sequence[T], count: int) -> list[T]:
        """Return `count` different ones, in random order."""
        order = torch.randperm(len(values), generator=self._generator)
        return [values[int(i)] for i in order[:count]]


class Writer:
    """Writes prompts for one tokenizer.

    Attributes:
        prefix: tokens that the tokenizer puts before a text, such as the beginning of text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._cached = functools.lru_cache(maxsize=4096)(self._tokens)
        self.prefix = self._prefix()

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _prefix(self) -> list[int]:
        plain = list(self._tokens(_ANCHOR))
        whole = list(self._tokenizer(_ANCHOR, verbose=False)["input_ids"])
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start]
        return []

    def after(self, text: str, before: str = "") -> list[int]:
        """Return the tokens of `text` where it goes on from `before`."""
        head, whole = self._cached(_ANCHOR + before), self._cached(_ANCHOR + before + text)
        shared = _shared(head, whole)
        if shared < len(head) and not before:  # the anchor was merged into the text
            return list(self._cached(text))
        return list(whole[shared:])

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts that stand by themselves."""
        found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [list(ids) for ids in found["input_ids"]]

    def piece(self, before: str, value: str, behind: str = "") -> Piece:
        """Return a text with the span of its value."""
        whole = self.after(before + value + behind)
        start = _shared(self.after(before), whole)
        end = _shared(self.after(before + value), whole)
        return Piece(whole, (start, max(end, start + 1)))

    def question(self, text: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Return a question's tokens, and those of each answer where it follows.

        The cut between the two is where all of them agree, at most at the question's end: some
        tokenizers would merge the question's last character with the answer's first.
        """
        asked = self.after(text)
        whole = [self.after(text + answer) for answer in answers]
        cut = min(_shared(asked, one) for one in whole)
        return asked[:cut], [one[cut:] for one in whole]

    def size(self, text: str) -> int:
        """Return the number of tokens of a text that goes on."""
        return len(self.after(text))

    def text(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def ends_sentence(self, token: int) -> bool:
        """Whether a sentence ends with this token."""
        text = self.text([token])
        return "\n" in text or text.rstrip("\"')").endswith((".", "!", "?"))

    def fingerprint(self) -> str:
        """Return a digest of the tokenizer."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else str(self._tokenizer.get_vocab())
        return hashlib.sha256(text.encode()).hexdigest()


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens two lists share."""
    count = 0
    for a, b in zip(first, second):
        if a != b:
            break
        count += 1
    return count


def number(draw: Draw, digits: int = 5) -> str:
    """Draw a number without a leading zero."""
    low = 10 ** (digits - 1)
    return str(low + draw.below(9 * low))


def alike(writer: Writer, make: Any, count: int) -> list[str]:
    """Draw different values of as many tokens as the first, as far as there are such.

    Of answers of one length, none is likelier for being shorter.

    Args:
        writer: of the tokenizer.
        make: draws one value.
        count: how many.
    """
    values = [make()]
    size = writer.size(f" {values[0]}")
    spare: list[str] = []
    for _ in range(_TRIES * count):
        if len(values) == count:
            return values
        value = make()
        if value in values or value in spare:
            continue
        (values if writer.size(f" {value}") == size else spare).append(value)
    return [*values, *spare][:count]
