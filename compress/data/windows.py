"""How documents and examples become windows of tokens.

- Documents come in a seeded random order. One with more tokens than a window holds is cut into full
  windows at a random offset; these are used one a document a round, so that a corpus of long
  documents is sampled over all of them before any is sampled twice, and a single file all over.
- Shorter documents are packed, whole, one after another; the last in a window is cut at its end,
  and the remainder is used only when everything else is spent.
- Examples of a format are never cut while they fit a window: where the next doesn't fit any more,
  the window is short, and the rest of it is padding that no statistic counts.
- Between documents stands the tokenizer's end-of-text token, as in pre-training, or a blank line
  where it has none. Attention runs across it, as it does in pre-training, unless documents are
  isolated; then each begins with the beginning-of-text token and at position 0.
- Else position 0 of a window is the beginning-of-text token where the tokenizer adds one by itself.
- Every draw is keyed by (seed, document): the first 64 windows of 128 are those of 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from compress.data.formats import Example
from compress.errors import RequestError
from compress.numerics.counter import permutation

SAMPLINGS = ("packed", "isolated", "long")
_CHUNK = 64  # documents tokenised at a time: fast tokenizers work on them in parallel
_DRAWS = 1 << 16  # documents drawn with replacement at a time


class Window(NamedTuple):
    """One window.

    Attributes:
        ids: its tokens, int64 [n], n at most the length asked for; padding is added later.
        starts: where sequences of their own begin, int64; [0] unless documents are isolated.
        rows: numbers of the documents or examples in it.
    """

    ids: np.ndarray
    starts: np.ndarray
    rows: tuple[int, ...]


class Unit(NamedTuple):
    """What is put into a window: a document, a piece of one, or examples that belong together."""

    ids: np.ndarray
    rows: tuple[int, ...]


def begin_token(tokenizer: Any) -> list[int]:
    """Return [the beginning-of-text id] where the tokenizer puts it before a text, else []."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return [begin] if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else []


def tokenised(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without special tokens and without advice on their length."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


class Shape:
    """What windows of one tokenizer and length have in common.

    Args:
        tokenizer: of the model.
        seqlen: tokens of a window.
        isolated: whether each document begins anew.

    Attributes:
        begin: what a window begins with.
        opening: what each document begins with.
        separator: what stands between documents.
        body: how many tokens of documents and separators a window holds.
    """

    def __init__(self, tokenizer: Any, seqlen: int, isolated: bool = False) -> None:
        end = getattr(tokenizer, "eos_token_id", None)
        blank = (
            [end] if end is not None else tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        )
        begin = np.array(begin_token(tokenizer), np.int64)
        nothing = np.empty(0, np.int64)
        self.tokenizer, self.isolated = tokenizer, isolated
        self.begin: np.ndarray = nothing if isolated else begin
        self.opening: np.ndarray = begin if isolated else nothing
        between = np.array(blank if end is None else [end], np.int64)
        self.separator = nothing if isolated else between
        self.body = seqlen - len(self.begin)

    def window(self, units: Sequence[Unit]) -> Window:
        """Put units together; what is too much is cut at the end."""
        parts, at = [self.begin], len(self.begin)
        starts: list[int] = []
        for unit in units:
            if starts:
                parts.append(self.separator)
                at += len(self.separator)
            starts.append(at)
            parts.append(unit.ids)
            at += len(unit.ids)
        ids = np.concatenate(parts)[: self.body + len(self.begin)]
        own = starts if self.isolated else [0]
        rows = tuple(row for unit in units for row in unit.rows)
        return Window(ids, np.array([s for s in own if s < len(ids)], np.int64), rows)


class Stream:
    """The windows of one text, as far as they are asked for, and what was seen on the way.

    Attributes:
        tokens, documents: of the text, as far as it was read.
        longest: tokens of its longest document.
        cut: examples that didn't fit a window.
    """

    noun = "documents"

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.seed = shape, seed
        self.tokens = self.documents = self.longest = self.cut = 0
        self._size: int | None = None

    def windows(self) -> Iterator[Window]:
        """Yield windows, each token of the text at most once."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many documents there are; of a text that is made as it is read, so far."""
        return self.documents if self._size is None else self._size

    def short(self) -> str:
        """What there was, for the message that it wasn't enough."""
        return f"{self.tokens} tokens in {self.documents} {self.noun}"

    def _count(self, ids: Sequence[int]) -> None:
        self.tokens += len(ids)
        self.documents += 1
        self.longest = max(self.longest, len(ids))


class DocumentStream(Stream):
    """Packs documents into full windows.

    Args:
        documents: texts, or an iterable of token ids that comes in random order already.
        shape: of the windows.
        seed: of the order.
    """

    def __init__(
        self, documents: Sequence[str] | Iterable[list[int]], shape: Shape, seed: int
    ) -> None:
        super().__init__(shape, seed)
        self._documents = documents
        self._size = len(documents) if isinstance(documents, Sequence) else None
        self._remainders: list[Unit] = []

    def windows(self) -> Iterator[Window]:
        """Yield full windows."""
        body, gap = self.shape.body, len(self.shape.separator)
        units: list[Unit] = []
        filled = 0
        for unit in self._units():
            if len(unit.ids) == body:
                yield self.shape.window([unit])
                continue
            room = body - filled - (gap if units else 0)
            units.append(unit)
            filled = body - room + len(unit.ids)
            if filled >= body:
                yield self.shape.window(units)
                if len(unit.ids) > max(room, 0):
                    self._remainders.append(self._rest(unit, max(room, 0)))
                units, filled = [], 0

    def _rest(self, unit: Unit, used: int) -> Unit:
        """The end of a document of which so many tokens were used; it opens anew."""
        opening = self.shape.opening
        if used <= len(opening):
            return unit
        return Unit(np.concatenate([opening, unit.ids[used:]]), unit.rows)

    def _units(self) -> Iterator[Unit]:
        """Yield pieces of at most one window: round by round, then what was left over."""
        waiting: list[list[Unit]] = []
        for index, ids in self._tokenised():
            if len(ids) + len(self.shape.opening) <= self.shape.body:
                yield Unit(np.concatenate([self.shape.opening, ids]), (index,))
                continue
            pieces = self._cut(ids, index)
            yield pieces[0]
            waiting.append(pieces[1:])
        while waiting:
            waiting = [pieces for pieces in waiting if pieces]
            for pieces in waiting:
                yield pieces.pop(0)
        while self._remainders:
            yield self._remainders.pop(0)

    def _tokenised(self) -> Iterator[tuple[int, np.ndarray]]:
        if not isinstance(self._documents, Sequence):
            for index, ids in enumerate(self._documents):
                self._count(ids)
                yield index, np.array(ids, np.int64)
            return
        order = permutation(self.seed, 0, len(self._documents))
        for start in range(0, len(order), _CHUNK):
            chosen = order[start : start + _CHUNK]
            encoded = tokenised(self.shape.tokenizer, [self._documents[i] for i in chosen])
            for index, ids in zip(chosen, encoded, strict=True):
                if ids:
                    self._count(ids)
                    yield int(index), np.array(ids, np.int64)

    def _cut(self, ids: np.ndarray, index: int) -> list[Unit]:
        """Cut a long document into full windows from a random offset, in random order."""
        opening = self.shape.opening
        size = self.shape.body - len(opening)
        count, spare = divmod(len(ids), size)
        # Both draws are the document's own: epoch 2 i + 1 its offset, 2 i + 2 its order.
        offset = int(permutation(self.seed, 2 * index + 1, spare + 1)[0])
        end = offset + count * size
        ends = [rest for rest in (ids[:offset], ids[end:]) if len(rest)]
        self._remainders += [Unit(np.concatenate([opening, rest]), (index,)) for rest in ends]
        pieces = np.split(ids[offset:end], count)
        order = permutation(self.seed, 2 * index + 2, count)
        return [Unit(np.concatenate([opening, pieces[i]]), (index,)) for i in order]


class LongStream(Stream):
    """Draws windows from documents that fill one, as the papers' code does.

    A document is drawn with replacement, and dropped if it is shorter than a window; the window's
    place is uniform over all that it can have, the last included (the code of the papers leaves
    that one out).
    """

    def __init__(self, documents: Sequence[str], shape: Shape, seed: int) -> None:
        super().__init__(shape, seed)
        self._documents, self._size = documents, len(documents)
        self._known: dict[int, np.ndarray] = {}

    def windows(self) -> Iterator[Window]:
        """Yield windows without end; none where every document is too short."""
        size, count = self.shape.body, len(self._documents)
        for draw, (pick, place) in enumerate(self._words()):
            if draw == count and not self._any_long():
                return
            ids = self._ids(pick % count)
            if len(ids) >= size:
                start = place % (len(ids) - size + 1)
                yield self.shape.window([Unit(ids[start : start + size], (pick % count,))])

    def short(self) -> str:
        """What there was."""
        return (
            f"no document is as long as a window of {self.shape.body + len(self.shape.begin)}; "
            f"the longest of {self.documents} has {self.longest} tokens"
        )

    def _words(self) -> Iterator[tuple[int, int]]:
        """Yield two random words for each draw."""
        block = 0
        while self._documents:
            words = np.random.Philox(key=[self.seed, block]).random_raw(2 * _DRAWS)
            yield from zip(words[0::2].tolist(), words[1::2].tolist(), strict=True)
            block += 1

    def _any_long(self) -> bool:
        """Whether a document fills a window; after as many draws as there are documents."""
        size = self.shape.body
        return self.longest >= size or any(
            len(self._ids(i)) >= size for i in range(len(self._documents))
        )

    def _ids(self, index: int) -> np.ndarray:
        found = self._known.get(index)
        if found is None:
            ids = tokenised(self.shape.tokenizer, [self._documents[index]])[0]
            self._count(ids)
            # Short ones are known by their length alone.
            kept = ids if len(ids) >= self.shape.body else []
            found = self._known[index] = np.array(kept, np.int64)
        return found


class ExampleStream(Stream):
    """Packs examples, whole, into windows, the last of which in each may leave a rest.

    Args:
        examples: in the order of the source.
        shape: of the windows.
        seed: of the order; two formats of one data set take its rows in the same order.
        write: turns examples that make one prompt into token ids.
        shots: examples of a prompt; None fills a window with one prompt, 1 makes each its own.
    """

    noun = "examples"

    def __init__(
        self,
        examples: Sequence[Example],
        shape: Shape,
        seed: int,
        write: Callable[[Sequence[Example]], list[int]],
        shots: int | None,
    ) -> None:
        super().__init__(shape, seed)
        self._examples, self._write, self._shots = examples, write, shots
        self._size = len(examples)

    def windows(self) -> Iterator[Window]:
        """Yield windows of whole examples; one that is longer than a window is cut at its end."""
        if self._shots is None:
            yield from self._filled()
            return
        units: list[Unit] = []
        filled = 0
        for unit in self._prompts():
            size = len(unit.ids) + (len(self.shape.separator) if units else 0)
            if units and filled + size > self.shape.body:
                yield self.shape.window(units)
                units, filled = [], 0
                size = len(unit.ids)
            units.append(unit)
            filled += size
        if units:
            yield self.shape.window(units)

    def _ordered(self) -> Iterator[Example]:
        """Yield examples by a random order of the source's rows, whichever of them a format has."""
        rows = {example.row: example for example in self._examples}
        for row in permutation(self.seed, 0, self._examples[0].of).tolist():
            if row in rows:
                yield rows[row]

    def _prompts(self) -> Iterator[Unit]:
        """Yield prompts of `shots` examples each."""
        group: list[Example] = []
        for example in self._ordered():
            group.append(example)
            if len(group) == self._shots:
                yield self._unit(group)
                group = []

    def _filled(self) -> Iterator[Window]:
        """Yield windows of one prompt each, with as many examples as fit."""
        group: list[Example] = []
        for example in self._ordered():
            if group and len(self._ids([*group, example])) > self.shape.body:
                yield self.shape.window([self._unit(group)])
                group = []
            group.append(example)
        if group:
            yield self.shape.window([self._unit(group)])

    def _ids(self, group: Sequence[Example]) -> np.ndarray:
        return np.concatenate([self.shape.opening, np.array(self._write(group), np.int64)])

    def _unit(self, group: Sequence[Example]) -> Unit:
        """Make a prompt; where it is too long, of fewer examples, and at last by a cut."""
        for example in group:
            self._count(self._write([example]))
        kept = list(group)
        ids = self._ids(kept)
        while len(ids) > self.shape.body and len(kept) > 1:
            kept.pop()
            self.cut += 1
            ids = self._ids(kept)
        self.cut += len(ids) > self.shape.body
        return Unit(ids[: self.shape.body], tuple(example.row for example in kept))


def refuse_sampling(name: str) -> None:
    """Raise RequestError for an unknown `--doc-sampling`."""
    if name not in SAMPLINGS:
        raise RequestError(
            f"`--doc-sampling {name}` isn't a way to sample documents",
            f"one of {', '.join(SAMPLINGS)}",
        )
