"""Corpora of the registry that lie on the Hugging Face Hub.

Offline is found out at once: by the environment, else by one short probe of the Hub, since the
clients' own retries can take minutes. What an earlier run left in the `datasets` cache still works.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from compress.data.registry import Corpus
from compress.errors import RequestError

PROBE_SECONDS = 5.0


def read_corpus(corpus: Corpus, column: str, role: str, rows: int | None) -> list[str]:
    """Read one column of the leading rows of a Hub corpus; see read_rows."""
    return [row[column] or "" for row in _read(corpus, role, rows, column)]


def read_rows(corpus: Corpus, role: str, rows: int | None) -> list[dict[str, Any]]:
    """Read the leading rows of a Hub corpus.

    Args:
        corpus: an entry with a Hub id.
        role: "calibration" or "evaluation".
        rows: how many leading rows; None reads the split.

    Raises:
        RequestError: no network and nothing cached, or the dataset can't be read.
    """
    return _read(corpus, role, rows)


def _read(corpus: Corpus, role: str, rows: int | None, column: str | None = None) -> list[Any]:
    """Read rows, with one column alone where it is named."""
    if is_offline():
        return _read_cached(corpus, role, rows, column)
    _probe(corpus, role)
    try:
        return _load(corpus, role, rows, column, streaming=rows is not None)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"corpus `{corpus.name}` (`{corpus.hub}` on the Hub) can't be read: {_line(error)}",
            hint=_local_copy(corpus, role),
        ) from error


def is_offline() -> bool:
    """Whether the environment says that the network must not be used."""
    import datasets
    import huggingface_hub.constants as constants

    def said(name: str) -> bool:
        return os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}

    read_at_import = constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE
    return bool(read_at_import) or said("HF_HUB_OFFLINE") or said("HF_DATASETS_OFFLINE")


def _local_copy(corpus: Corpus, role: str) -> str:
    option = "--calib" if role == "calibration" else "--ppl"
    if "prompt" in corpus.templates:  # a file by itself has no formats
        entry = f"{corpus.name}: {{like: {corpus.name}, local: {{{role}: FILE}}}}"
        return (
            f"name a local copy in a file for `--registry` (`corpora: {{{entry}}}`), or use "
            f"`{option} demo`, the shipped corpus"
        )
    return (
        f"point to a local copy (FILE.jsonl:{corpus.column}, or a directory of parquet files), "
        f"or use `{option} demo`, the shipped corpus"
    )


def _probe(corpus: Corpus, role: str) -> None:
    """Ask the Hub for the dataset once, without retries; a RequestError where that fails."""
    import huggingface_hub

    # The client retries by itself on the way down; one metadata call with a time limit does not.
    try:
        huggingface_hub.HfApi().dataset_info(corpus.hub, timeout=PROBE_SECONDS)
    except Exception as error:  # the HTTP library behind the client changes from version to version
        raise RequestError(
            f"corpus `{corpus.name}` needs the Hub (`{corpus.hub}`), which can't be reached: "
            f"{_line(error)}",
            hint=_local_copy(corpus, role),
        ) from error


def _read_cached(
    corpus: Corpus, role: str, rows: int | None, column: str | None = None
) -> list[Any]:
    """Read what an earlier run prepared in the `datasets` cache; never touches the network."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        return _load(corpus, role, rows, column, streaming=False)
    except Exception as error:
        raise RequestError(
            f"corpus `{corpus.name}` needs the Hub (`{corpus.hub}`), and this run is offline",
            hint=_local_copy(corpus, role),
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def stream_corpus(corpus: Corpus, column: str, role: str) -> Iterator[str]:
    """Read all rows of a Hub corpus one by one, without holding them or storing them on disk.

    Raises:
        RequestError: as read_corpus; also in the middle, where the connection breaks.
    """
    if is_offline():
        yield from (row[column] or "" for row in _read_cached(corpus, role, None, column))
        return
    _probe(corpus, role)
    try:
        for row in _open(corpus, role, streaming=True):
            yield row[column] or ""
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"corpus `{corpus.name}` (`{corpus.hub}` on the Hub) can't be read: {_line(error)}",
            hint=_local_copy(corpus, role),
        ) from error


def _load(
    corpus: Corpus, role: str, rows: int | None, column: str | None, *, streaming: bool
) -> list[Any]:
    loaded = _open(corpus, role, streaming=streaming)
    if column is not None:
        loaded = loaded.select_columns([column])  # long texts in the others aren't held
    if rows is not None:
        loaded = loaded.take(rows)
    return list(loaded)


def _open(corpus: Corpus, role: str, *, streaming: bool) -> Any:
    """Open a corpus's split of a role, without the libraries' talk."""
    import datasets

    split = corpus.splits[role]
    files = {split: corpus.files[role]} if role in corpus.files else None
    # The libraries report each retry and each cache hit as a warning of their own.
    previous = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        return datasets.load_dataset(
            corpus.hub,
            corpus.config,
            data_files=files,
            split=split,
            revision=corpus.revision,
            streaming=streaming,
        )
    finally:
        datasets.logging.set_verbosity(previous)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
