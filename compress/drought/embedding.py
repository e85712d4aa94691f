"""Texts as vectors: the mean of an encoder's last states, or n-grams hashed and reduced.

Encoder vectors are kept in the cache by the encoder's digest and the text's words, so that a text
is read once however many runs use it. Hashed n-grams are fitted on the training window alone.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compress.checkpoints.caches import cache_directory, put_whole
from compress.checkpoints.source import Source, open_source
from compress.errors import RequestError
from compress.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TFIDF, AUTO = "tfidf", "auto"
SMALL = "sentence-transformers/all-MiniLM-L6-v2"  # what AUTO means where it can be had
FEATURES = 2**16
COMPONENTS = 64
LONGEST = 256  # tokens of a text that are read
BATCH_TOKENS = 4096
_VERSION = 1  # of the vectors; raised when they change


@dataclass
class HashedText:
    """Hashed word pairs, weighted by rarity, on their main directions.

    Attributes:
        columns: hash buckets that at least two training texts filled, int64 [M].
        weights: inverse document frequencies of these, float64 [M].
        directions: float64 [K, M].
    """

    columns: np.ndarray
    weights: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int = 0) -> HashedText:
        """Fit on training texts.

        Raises:
            RequestError: fewer than two different texts have words.
        """
        from sklearn.decomposition import TruncatedSVD

        counts = _hashed(texts)
        present = np.diff(counts.tocsc().indptr)
        columns = np.flatnonzero(present > 1)  # words of one text tell texts apart, nothing else
        width = min(COMPONENTS, len(columns) - 1, len(texts) - 1)
        if width < 1:
            raise RequestError(
                f"{len(texts)} training texts are too few to learn words from",
                "give --encoder DIR, an earlier --val-from, or more texts",
            )
        weights = np.log((1 + len(texts)) / (1 + present[columns])) + 1
        made = cls(columns, weights, np.zeros((0, len(columns))))
        svd = TruncatedSVD(width, algorithm="randomized", n_iter=7, random_state=seed)
        svd.fit(made._weighted(counts))
        made.directions = svd.components_
        return made

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors float32 [N, K]."""
        if not texts:
            return np.zeros((0, len(self.directions)), np.float32)
        return np.asarray(self._weighted(_hashed(texts)) @ self.directions.T, np.float32)

    def _weighted(self, counts: Any) -> Any:
        from sklearn.preprocessing import normalize

        some = counts[:, self.columns].tocsr()
        some.data = 1 + np.log(some.data)
        return normalize(some.multiply(self.weights[None, :]).tocsr())

    def save(self, path: Path) -> None:
        """Write a file; equal vectors give equal bytes."""
        with path.open("wb") as file:
            np.savez(file, columns=self.columns, weights=self.weights, directions=self.directions)

    @classmethod
    def load(cls, path: Path) -> HashedText:
        """Read what `save` wrote; nothing in it is executed.

        Raises:
            RequestError: the file is torn or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(stored["columns"], stored["weights"], stored["directions"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RequestError(f"`{path}` can't be read: {error}", "train it again") from error


def _hashed(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False, norm=None, lowercase=True
    ).transform(texts)


def open_encoder(path: str | Path) -> Source:
    """Open an encoder, without its weights in memory.

    Raises:
        RequestError: see `open_source`; also an encoder without a tokenizer.
    """
    source = open_source(path)
    if source.tokenizer() is None:
        raise RequestError(
            f"`--encoder {path}` has no tokenizer", "copy the tokenizer files beside its weights"
        )
    return source


def choose_encoder(name: str) -> Source | None:
    """Open the encoder that is asked for; None where texts are to be hashed.

    Args:
        name: a directory or Hub id; "tfidf"; or "auto": a small encoder from the Hub or its cache,
            hashing where there is neither.

    Raises:
        RequestError: see `open_encoder`, but not for "auto".
    """
    if name == TFIDF:
        return None
    if name != AUTO:
        return open_encoder(name)
    try:
        return open_encoder(SMALL)
    except RequestError:
        return None


def embed(
    source: Source,
    texts: Sequence[str],
    device: str = "cpu",
    progress: Progress = silent,
) -> np.ndarray:
    """Vectors of texts: the mean over tokens of an encoder's last hidden states, float32 [N, D].

    Args:
        source: any encoder with a tokenizer, stock or compressed.
        texts: in any order; equal ones are read once.
        device: where the encoder runs.
        progress: told as texts are read.

    Raises:
        RequestError: the model gives no hidden states to texts.
    """
    cache = _Cache(source)
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    wanted = {key: text for key, text in zip(keys, texts) if key not in cache.found}
    if wanted:
        _run(source, wanted, cache, device, progress)
        cache.write()
    width = cache.width
    rows = [cache.found[key] for key in keys]
    return np.stack(rows) if rows else np.zeros((0, width), np.float32)


def _run(
    source: Source, wanted: dict[str, str], cache: _Cache, device: str, progress: Progress
) -> None:
    model = source.load(torch.float32, device)
    reader: Any = model.base_model if hasattr(model, "base_model") else model
    if getattr(model.config, "is_encoder_decoder", False):
        reader = model.get_encoder()
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    limit = min(LONGEST, source.token_limit() or LONGEST)
    tokens = {
        key: tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        for key, text in wanted.items()
    }
    order = sorted(tokens, key=lambda key: (len(tokens[key]), key))
    done = 0
    with torch.inference_mode():
        for batch in _batches(order, tokens):
            vectors = _pooled(reader, tokenizer, [tokens[key] for key in batch], device, source)
            cache.found.update(zip(batch, vectors))
            done += len(batch)
            progress("read texts", done, len(order))


def _batches(order: Sequence[str], tokens: dict[str, list[int]]) -> list[list[str]]:
    batches: list[list[str]] = []
    for key in order:  # the longest comes last, so the newest length is the batch's
        if batches and (len(batches[-1]) + 1) * len(tokens[key]) <= BATCH_TOKENS:
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches


def _pooled(
    reader: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    device: str,
    source: Source,
) -> np.ndarray:
    longest = max(max(map(len, ids)), 1)
    padding = tokenizer.pad_token_id or 0
    padded = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    padded, mask = padded.to(device), mask.to(device)
    output: Any = reader(input_ids=padded, attention_mask=mask)
    states = getattr(output, "last_hidden_state", None)
    if states is None or states.ndim != 3:
        raise RequestError(
            f"`--encoder {source.name}`: {type(reader).__name__} gives no hidden states",
            "a text encoder is needed, such as a BERT",
        )
    weight = mask[..., None].to(states.dtype)
    mean = (states * weight).sum(1) / weight.sum(1).clamp_min(1)
    return mean.float().cpu().numpy()


class _Cache:
    """Vectors of one encoder, in one file by its digest."""

    def __init__(self, source: Source) -> None:
        name = source.digest().partition(":")[2]
        self.path = cache_directory() / "texts" / f"{name}-{_VERSION}-{LONGEST}.safetensors"
        self.found: dict[str, np.ndarray] = {}
        self._read()

    @property
    def width(self) -> int:
        """Of the vectors; 0 while there is none."""
        return len(next(iter(self.found.values()))) if self.found else 0

    def _read(self) -> None:
        from safetensors.numpy import load

        try:
            stored = load(self.path.read_bytes())
            keys = stored["keys"].view("S64").ravel()
            self.found = dict(zip((k.decode() for k in keys), stored["vectors"]))
        except Exception:  # absent, torn, or of another form: made anew
            self.found = {}

    def write(self) -> None:
        """Keep everything, whole; a place that can't be written costs time, not the run."""
        from safetensors.numpy import save

        earlier = dict(self.found)
        self._read()  # another process may have added some meanwhile
        self.found.update(earlier)
        keys = np.array([k.encode() for k in self.found], "S64").view(np.uint8).reshape(-1, 64)
        vectors = np.stack(list(self.found.values()))
        try:
            put_whole(self.path, save({"keys": np.ascontiguousarray(keys), "vectors": vectors}))
        except OSError:
            return
