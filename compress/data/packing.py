"""Calibration windows: documents packed into sequences of one length, without padding.

How documents become windows (the field has no single rule; this one wastes little and cuts little):

- Documents come in a seeded random order. One with more tokens than a window holds is cut into full
  windows at a random offset; these are used one a document a round, so that a corpus of long
  documents is sampled over all of them before any is sampled twice, and a single file all over.
- Shorter documents are packed, whole, one after another; the last in a window is cut at its end,
  and the remainder is used only when everything else is spent.
- Between documents stands the tokenizer's end-of-text token, as in pre-training, or a blank line
  where it has none. Attention runs across it, as it does in pre-training.
- Position 0 is the beginning-of-text token where the tokenizer adds one by itself.
- Every draw is keyed by (seed, document): the first 64 windows of 128 are those of 64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from compress.data.leakage import HeldOut
from compress.data.specs import DataSpec, load_documents, parse_spec
from compress.errors import RequestError
from compress.numerics.counter import permutation

_CHUNK = 64  # documents tokenised at a time: fast tokenizers work on them in parallel


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration set is made of.

    Attributes:
        windows, seqlen: shape of the set.
        tokens: windows * seqlen.
        documents: documents read, after dropping.
        digest: "sha256:…" of the token ids.
        dropped_documents: documents dropped since they also occur in an evaluation text.
        dropped_windows: windows dropped for the same reason.
    """

    windows: int
    seqlen: int
    tokens: int
    documents: int
    digest: str
    dropped_documents: int = 0
    dropped_windows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def prepare_calibration(
    calib: str | Sequence[str],
    tokenizer: Any,
    *,
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
    batch_size: int = 1,
    held_out: str | Sequence[str] = (),
) -> tuple[list[dict[str, torch.Tensor]], CalibrationReport]:
    """Read data specs and pack them, keeping out what is evaluated on.

    Args:
        calib: data specs; the documents of several are one pool.
        tokenizer: of the model.
        samples, seqlen: windows and tokens in each.
        seed: of the random order.
        batch_size: windows a batch; doesn't change them.
        held_out: the data specs of `--ppl`; a calibration document or window found in their text is
            dropped and counted.

    Raises:
        RequestError: as load_documents and calibration_batches; a spec is in both lists.
    """
    specs, held = parse_spec(calib), parse_spec(held_out)
    _refuse_same(specs, held)
    documents = [text for spec in specs for text in load_documents(spec, role="calibration")]
    evaluated = [text for spec in held for text in load_documents(spec, role="evaluation")]
    return calibration_batches(
        documents,
        tokenizer,
        samples=samples,
        seqlen=seqlen,
        seed=seed,
        batch_size=batch_size,
        held_out=evaluated,
    )


def _refuse_same(calib: Sequence[DataSpec], held: Sequence[DataSpec]) -> None:
    evaluated = {spec.source("evaluation"): spec for spec in held}
    for spec in calib:
        # A single file has one source whatever the role; splits of a corpus differ by role.
        twin = evaluated.get(spec.source("calibration"))
        if twin is not None:
            raise RequestError(
                f"data spec `{spec.text}` is both the calibration and the evaluation text: "
                "the perplexity would be of text that the model was fitted to",
                hint="calibrate on another text, such as `--calib demo`",
            )


def calibration_batches(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
    batch_size: int = 1,
    held_out: Sequence[str] = (),
) -> tuple[list[dict[str, torch.Tensor]], CalibrationReport]:
    """Pack documents into `samples` windows of `seqlen` tokens.

    Args:
        documents: texts; blank ones are passed over.
        tokenizer: of the model.
        samples, seqlen: windows and tokens in each, both > 0 (seqlen > 1).
        seed: of the random order, >= 0.
        batch_size: windows a batch, > 0; doesn't change them.
        held_out: evaluation texts; what also occurs in them is dropped.

    Returns:
        Batches {"input_ids": int64 [B, T]} without padding, the last one maybe smaller; the report.

    Raises:
        RequestError: too little text; a size out of range.
    """
    for name, value, least in (
        ("samples", samples, 1),
        ("seqlen", seqlen, 2),
        ("batch size", batch_size, 1),
    ):
        if value < least:
            raise RequestError(f"calibration needs {name} >= {least}, is {value}")
    held = HeldOut(held_out, tokenizer)
    kept, dropped = held.without(documents)
    packer = _Packer(kept, tokenizer, seqlen, seed)
    windows: list[np.ndarray] = []
    leaked = 0
    for window in packer.windows():
        if held.shares_a_run(window):
            leaked += 1
            continue
        windows.append(window)
        if len(windows) == samples:
            break
    if len(windows) < samples:
        raise _too_short(packer, len(windows), samples, seqlen, dropped, leaked)
    tokens = torch.from_numpy(np.stack(windows))
    batches = [{"input_ids": part} for part in tokens.split(batch_size)]
    report = CalibrationReport(
        windows=samples,
        seqlen=seqlen,
        tokens=samples * seqlen,
        documents=len(kept),
        digest=token_digest(tokens),
        dropped_documents=dropped,
        dropped_windows=leaked,
    )
    return batches, report


def token_digest(tokens: torch.Tensor) -> str:
    """Return "sha256:…" of token ids and their shape, the same on every platform."""
    array = np.ascontiguousarray(tokens.cpu().numpy().astype("<i8"))
    return "sha256:" + hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def begin_token(tokenizer: Any) -> list[int]:
    """Return [the beginning-of-text id] where the tokenizer puts it before a text, else []."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return [begin] if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else []


def _too_short(
    packer: _Packer, made: int, samples: int, seqlen: int, dropped: int, leaked: int
) -> RequestError:
    without = ""
    if dropped or leaked:
        without = (
            f", without {dropped} documents and {leaked} windows that are in the evaluation text"
        )
    return RequestError(
        f"the calibration text is too short: {packer.tokens} tokens in {packer.documents} documents"
        f"{without}, enough for {made} of {samples} windows of {seqlen} "
        f"({samples * seqlen} tokens needed)",
        hint=(f"`--samples {made}`, or " if made else "")
        + "a shorter `--seqlen`, or more text in `--calib`",
    )


class _Packer:
    """Makes the stream of windows of one corpus, tokenising no more of it than is asked for."""

    def __init__(
        self,
        documents: Sequence[str],
        tokenizer: Any,
        seqlen: int,
        seed: int,
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._begin = begin_token(tokenizer)
        end = getattr(tokenizer, "eos_token_id", None)
        blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        self._separator = np.array([end] if end is not None else blank, np.int64)
        self._body = seqlen - len(self._begin)
        self._seed = seed
        self._remainders: list[np.ndarray] = []
        self.tokens = 0
        self.documents = 0

    def windows(self) -> Iterator[np.ndarray]:
        """Yield windows, int64 [T]."""
        begin = np.array(self._begin, np.int64)
        for body in self._bodies():
            yield np.concatenate([begin, body])

    def _bodies(self) -> Iterator[np.ndarray]:
        parts: list[np.ndarray] = []
        filled = 0
        for piece in self._pieces():
            if len(piece) == self._body:
                yield piece
                continue
            if parts:
                parts.append(self._separator)
                filled += len(self._separator)
            room = max(self._body - filled, 0)
            parts.append(piece[:room])
            filled += len(piece)
            if filled >= self._body:
                yield np.concatenate(parts)[: self._body]
                if len(piece) > room:
                    self._remainders.append(piece[room:])
                parts, filled = [], 0

    def _pieces(self) -> Iterator[np.ndarray]:
        """Yield pieces of at most one window: round by round, then what was left over."""
        waiting: list[list[np.ndarray]] = []
        for index, ids in self._tokenised():
            if len(ids) <= self._body:
                yield ids
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
        order = permutation(self._seed, 0, len(self._documents))
        for start in range(0, len(order), _CHUNK):
            chosen = order[start : start + _CHUNK]
            texts = [self._documents[i] for i in chosen]
            encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            for index, ids in zip(chosen, encoded, strict=True):
                if ids:
                    self.tokens += len(ids)
                    self.documents += 1
                    yield int(index), np.array(ids, np.int64)

    def _cut(self, ids: np.ndarray, index: int) -> list[np.ndarray]:
        """Cut a long document into full windows from a random offset, in random order."""
        count, spare = divmod(len(ids), self._body)
        # Both draws are the document's own: epoch 2 i + 1 its offset, 2 i + 2 its order.
        offset = int(permutation(self._seed, 2 * index + 1, spare + 1)[0])
        end = offset + count * self._body
        self._remainders += [rest for rest in (ids[:offset], ids[end:]) if len(rest)]
        pieces = np.split(ids[offset:end], count)
        return [pieces[i] for i in permutation(self._seed, 2 * index + 2, count)]
