"""The text around needles and chains: a stream of tokens that is read from any sentence on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import RequestError
from compress.evaluation.long_context.writing import Writer

_ENOUGH = 2**18  # tokens beyond which no further document is read, and 8 times the longest prompt


@dataclass(frozen=True)
class Haystack:
    """A text in tokens, without beginning or end: behind its last token comes its first.

    Attributes:
        tokens: int64 [N].
        starts: positions where a sentence starts, int64 [S], ascending, S >= 1.
    """

    tokens: Tensor
    starts: Tensor

    def run(self, start: int, count: int) -> Tensor:
        """Return `count` tokens from `start` on; start may be negative."""
        places = torch.arange(start, start + count).remainder(len(self.tokens))
        return self.tokens[places]

    def starts_before(self, start: int, offsets: Sequence[int]) -> list[int]:
        """Move offsets from `start` back to the sentence that they fall into, at least to 0."""
        size = len(self.tokens)
        moved = []
        for offset in offsets:
            round_, at = divmod(start + offset, size)
            index = int(torch.searchsorted(self.starts, at, right=True)) - 1
            place = int(self.starts[index]) + size * round_ - (size if index < 0 else 0)
            moved.append(max(place - start, 0))
        return moved


def read_haystack(writer: Writer, documents: Sequence[str], longest: int) -> Haystack:
    """Tokenise documents, joined by empty lines, until there are enough.

    Args:
        writer: of the tokenizer.
        documents: the text.
        longest: tokens of the longest prompt.

    Raises:
        RequestError: there are no tokens.
    """
    gap = writer.after("\n\n")
    enough = max(_ENOUGH, 8 * longest)
    ids: list[int] = []
    texts = [text.strip() for text in documents if text.strip()]
    for first in range(0, len(texts), 64):
        for written in writer.documents(texts[first : first + 64]):
            ids += [*written, *gap]
        if len(ids) >= enough:
            break
    if not ids:
        raise RequestError("the haystack has no text", "name another: `--haystack DATA`")
    tokens = torch.tensor(ids, dtype=torch.int64)
    last = {token: writer.ends_sentence(token) for token in set(ids)}
    ends = torch.tensor([last[token] for token in ids])
    # The gap itself ends sentences too: a sentence starts where the token before ends one and it
    # itself doesn't.
    starts = (ends.roll(1) & ~ends).nonzero().flatten()
    return Haystack(tokens, starts if len(starts) else torch.arange(len(tokens)))
