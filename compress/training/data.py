"""Training text: tokenised once to a file, cut into rows, drawn in an order that a counter fixes.

Row r of a store holds tokens [r * L, r * L + L] of the stream, where L is the length of a
sequence: L inputs and, one place further, the token after the last. Position p of a run, counted
over all steps, ranks and accumulation steps, is row permutation(seed, epoch)[j] with
epoch, j = divmod(p, rows). So step t of batch B trains on positions t * B to (t + 1) * B - 1
whatever the number of processes, of workers, or of interruptions.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from compress.checkpoints.durable import sync, write_json, writing
from compress.checkpoints.tensorfiles import read_json
from compress.data.packing import begin_token
from compress.data.specs import DataSpec, load_documents
from compress.data.streaming import Piece, iter_documents, source_bytes
from compress.errors import RequestError
from compress.numerics.counter import permutation
from compress.progress import Progress, silent

_CHUNK = 1 << 20  # characters tokenised at a time: fast tokenizers work on them in parallel
_FILES = ("tokens.bin", "starts.bin", "answers.bin")


class Encoded(NamedTuple):
    """A tokenised document, or a part of one.

    Attributes:
        ids: its tokens.
        starts: whether a document begins here.
        answer: of a fine-tuning sample, the index of the first answer token; else -1.
    """

    ids: list[int]
    starts: bool
    answer: int = -1


def _tokenised(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts, without special tokens and without advice on their length."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def encode_documents(
    specs: Sequence[DataSpec], tokenizer: Any, *, role: str = "calibration"
) -> Iterator[tuple[list[Encoded], int]]:
    """Tokenise documents for pre-training, a chunk at a time, in constant memory.

    A document begins with the beginning-of-text token where the tokenizer adds one by itself and
    ends with the end-of-text token, or a blank line where there is none. Blank ones are left out.

    Yields:
        The chunk's parts, and the bytes read so far of all sources.
    """
    begin = begin_token(tokenizer)
    end = getattr(tokenizer, "eos_token_id", None)
    final = [end] if end is not None else _tokenised(tokenizer, ["\n\n"])[0]
    fresh = True
    for chunk, read in _chunks(specs, role):
        texts = [piece.text for piece in chunk]
        encoded = _tokenised(tokenizer, texts)
        parts = []
        for piece, ids in zip(chunk, encoded):
            parts.append(Encoded((begin if fresh else []) + ids + final * piece.ends, fresh))
            fresh = piece.ends
        yield parts, read


def _chunks(specs: Sequence[DataSpec], role: str) -> Iterator[tuple[list[Piece], int]]:
    """Yield documents, or parts of one, up to a chunk's size, and the bytes read."""
    before, read, size = 0, 0, 0
    chunk: list[Piece] = []
    for spec in specs:
        inside = False
        for piece in iter_documents(spec, role=role):
            read = before + piece.read
            if not inside and piece.ends and not piece.text.strip():
                continue
            inside = not piece.ends
            chunk.append(piece)
            size += len(piece.text)
            if size >= _CHUNK:
                yield chunk, read
                chunk, size = [], 0
        before += source_bytes(spec, role)
    if chunk:
        yield chunk, read


def encode_samples(
    specs: Sequence[DataSpec],
    tokenizer: Any,
    columns: tuple[str, str],
    *,
    role: str = "calibration",
) -> Iterator[tuple[list[Encoded], int]]:
    """Tokenise prompt and answer columns for fine-tuning; samples without an answer are left out.

    A sample is [beginning of text] prompt answer [end of text]; a line break stands between prompt
    and answer unless the prompt ends in white space.

    Yields:
        As encode_documents, with `answer` set.
    """
    begin = begin_token(tokenizer)
    end = getattr(tokenizer, "eos_token_id", None)
    final = [] if end is None else [end]
    for spec in specs:
        if spec.column is not None:
            raise RequestError(
                f"data spec `{spec.text}` names the column `{spec.column}`, and --sft names two",
                f"write `{spec.name}`",
            )
        prompts, answers = (
            load_documents(DataSpec(spec.text, spec.name, column), role=role) for column in columns
        )
        pairs = [(p, a) for p, a in zip(prompts, answers) if a.strip()]
        for first in range(0, len(pairs), 256):
            some = pairs[first : first + 256]
            opened = [p if not p or p[-1].isspace() else p + "\n" for p, _ in some]
            asked = _tokenised(tokenizer, opened)
            told = _tokenised(tokenizer, [a for _, a in some])
            yield (
                [
                    Encoded(begin + p + a + final, True, len(begin) + len(p))
                    for p, a in zip(asked, told)
                ],
                0,
            )


class TokenStore:
    """Token ids on disk with the places where documents begin; opened lazily, safe to pickle.

    Attributes:
        tokens, documents: how many.
        digest: "sha256:…" of the ids and the beginnings.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        meta = read_json(self.directory / "meta.json")
        self.tokens: int = meta["tokens"]
        self.documents: int = meta["documents"]
        self.digest: str = meta["digest"]
        self.largest: int = meta["largest"]
        self._dtype = np.dtype(meta["dtype"])
        self._maps: dict[str, np.ndarray] = {}

    def receipt(self) -> dict[str, Any]:
        """What the receipt's "data" tells beside the specs."""
        return {"tokens": self.tokens, "documents": self.documents, "digest": self.digest}

    @property
    def ids(self) -> np.ndarray:
        """All token ids [tokens], memory-mapped."""
        return self._map("tokens.bin", self._dtype)

    @property
    def starts(self) -> np.ndarray:
        """Index of each document's first token, int64 [documents]."""
        return self._map("starts.bin", np.dtype("<i8"))

    @property
    def answers(self) -> np.ndarray:
        """Index of the first answer token within each sample, int64 [documents]; -1 if plain."""
        return self._map("answers.bin", np.dtype("<i8"))

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        if name not in self._maps:
            path = self.directory / name
            empty = path.stat().st_size == 0
            self._maps[name] = np.zeros(0, dtype) if empty else np.memmap(path, dtype, mode="r")
        return self._maps[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def write_store(
    encoded: Iterable[tuple[list[Encoded], int]],
    directory: Path,
    *,
    vocabulary: int,
    total: int = 0,
    progress: Progress = silent,
) -> TokenStore:
    """Write tokenised text to `directory`, or open what a finished call left there.

    Args:
        encoded: what encode_documents or encode_samples yields; not touched if all is there.
        directory: made if absent; `meta.json` is written last.
        vocabulary: ids are below it; up to 65536 they take 2 bytes each, else 4.
        total: bytes of the sources, for progress.

    Raises:
        RequestError: the text is found to be broken; the directory then holds no `meta.json`.
        RunError: the disk is full.
    """
    if (directory / "meta.json").is_file():
        return TokenStore(directory)
    dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    hashes = [hashlib.sha256(name.encode()) for name in _FILES]
    tokens = documents = largest = 0
    with writing(directory), contextlib.ExitStack() as stack:
        directory.mkdir(parents=True, exist_ok=True)
        files = [stack.enter_context((directory / name).open("wb")) for name in _FILES]
        for parts, read in encoded:
            arrays = _arrays(parts, tokens)
            largest = max(largest, int(arrays[0].max(initial=0)))
            for file, own, array in zip(files, hashes, arrays):
                own.update(array.tobytes())
                (array.astype(dtype) if array is arrays[0] else array).tofile(file)
            tokens, documents = tokens + len(arrays[0]), documents + len(arrays[1])
            if total:
                progress("tokenise", min(read, total - 1), total, f"{tokens:,} tokens")
    if total:
        progress("tokenise", total, total)
    for name in _FILES:
        sync(directory / name)
    whole = hashlib.sha256(b"".join(own.digest() for own in hashes)).hexdigest()
    found = {"tokens": tokens, "documents": documents, "largest": largest}
    write_json(directory / "meta.json", {"dtype": dtype.str, **found, "digest": f"sha256:{whole}"})
    return TokenStore(directory)


def _arrays(parts: Sequence[Encoded], tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids (uint32), beginnings and answers (int64) of parts that follow `tokens` tokens."""
    lengths = np.fromiter((len(part.ids) for part in parts), "<i8", len(parts))
    fresh = np.fromiter((part.starts for part in parts), bool, len(parts))
    answers = np.fromiter((part.answer for part in parts), "<i8", len(parts))
    places = tokens + np.cumsum(lengths) - lengths
    ids = np.fromiter((i for part in parts for i in part.ids), "<u4", int(lengths.sum()))
    return ids, places[fresh], answers[fresh]


def count_at_least(encoded: Iterable[tuple[list[Encoded], int]], needed: int) -> int:
    """Count the tokens of a text, reading no more of it than it takes to see `needed` of them."""
    tokens = 0
    for parts, _ in encoded:
        tokens += sum(len(part.ids) for part in parts)
        if tokens >= needed:
            break
    return tokens


class Rows(Protocol):
    """Training sequences by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> dict[str, Any]: ...


class PackedRows:
    """Documents packed one after another and cut every `length` tokens; the tail is left out.

    Args:
        store: the text.
        length: tokens in a row.
        ahead: whether a row also tells the token after its last one, so that every position has a
            label; costs a model nothing, but its loss must take `shift_labels`.
        separate: whether rows tell where documents begin, so that none sees another.
    """

    def __init__(
        self, store: TokenStore, length: int, *, ahead: bool = True, separate: bool = False
    ) -> None:
        self.store, self.length, self.ahead, self.separate = store, length, ahead, separate

    def __len__(self) -> int:
        return (self.store.tokens - int(self.ahead)) // self.length

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return input_ids int64 [L]; `next`, the token after; with `separate` also position_ids
        [L], counted from each document's beginning, and `starts`, the places 1 to L at which a
        document begins.
        """
        first = row * self.length
        ids = self.store.ids[first : first + self.length + int(self.ahead)].astype(np.int64)
        item: dict[str, Any] = {"input_ids": torch.from_numpy(ids[: self.length])}
        if self.ahead:
            item["next"] = int(ids[-1])
        if self.separate:
            low, high = np.searchsorted(self.store.starts, [first + 1, first + self.length + 1])
            starts = self.store.starts[low:high] - first
            origin = np.zeros(self.length, np.int64)
            inside = starts[starts < self.length]
            origin[inside] = inside
            places = np.arange(self.length) - np.maximum.accumulate(origin)
            item["position_ids"] = torch.from_numpy(places)
            item["starts"] = torch.from_numpy(np.ascontiguousarray(starts))
        return item


class Positions(Dataset):
    """A whole run as one pass: position p of steps * batch is a row of an epoch's random order.

    Args:
        rows: the training sequences, at least one.
        total: steps * sequences a step.
        seed: of the orders; each epoch has its own. None keeps the rows in order.
    """

    def __init__(self, rows: Rows, total: int, seed: int | None) -> None:
        self.rows, self.total, self.seed = rows, total, seed
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the row's item with "row", "epoch" and "position"."""
        row, epoch = self.place(position)
        return {**self.rows[row], "row": row, "epoch": epoch, "position": position}

    def place(self, position: int) -> tuple[int, int]:
        """Return the (row, epoch) of a position."""
        epoch, j = divmod(position, len(self.rows))
        if self.seed is None:
            return j, epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permutation(self.seed, epoch, len(self.rows))
        return int(self._order[1][j]), epoch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}
