"""Rows and texts of the registry's corpora, wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.data import files, hub
from compress.data.formats import make_texts
from compress.data.made import made_documents
from compress.data.registry import Corpus, corpora
from compress.errors import RequestError, near_names

if TYPE_CHECKING:
    from compress.data.specs import DataSpec


def corpus_of(spec: DataSpec, role: str) -> Corpus:
    """Return the registry entry of a spec, which must have rows for the role."""
    corpus, known = spec.entry, corpora(spec.registry)
    if corpus is None:
        if "/" in spec.name or "\\" in spec.name or Path(spec.name).suffix:
            raise RequestError(f"data spec `{spec.text}`: no such file or directory")
        raise RequestError(
            f"data spec `{spec.text}`: neither a file nor a corpus of the registry",
            hint=near_names(spec.name, known),
        )
    if corpus.sampled is not None:
        raise RequestError(
            f"data spec `{spec.text}` (text sampled from the model) is calibration text of a "
            "command that has a dense model, and nothing else",
            hint=_with_role(known, role),
        )
    if not corpus.has_role(role):
        raise RequestError(
            f"corpus `{corpus.name}` has no split for {role}",
            hint=_with_role(known, role),
        )
    return corpus


def _with_role(known: Mapping[str, Corpus], role: str) -> str:
    return near_names("", [c.name for c in known.values() if c.has_role(role)], listed=40)


def texts_of(spec: DataSpec, corpus: Corpus, role: str, limit: int | None) -> list[str]:
    """Read the raw texts of a spec that names a corpus."""
    if corpus.made:
        return made_documents(corpus.made, limit)
    if spec.column is None and "raw" in corpus.templates:
        return make_texts(corpus, rows_of(corpus, role, limit), f"`{corpus.name}`")
    documents = _read_corpus(corpus, spec.column or corpus.column, role, limit)
    if role in corpus.joined:
        documents = [corpus.joined[role].join(documents)]
    return documents


def _read_corpus(corpus: Corpus, column: str, role: str, limit: int | None) -> list[str]:
    if column not in corpus.columns:
        raise RequestError(
            f"corpus `{corpus.name}` has no text column `{column}`",
            hint=f"its text columns: {', '.join(corpus.columns)}",
        )
    skip, rows = _leading(corpus, role, limit)
    if corpus.hub:
        return hub.read_corpus(corpus, column, role, rows)[skip:]
    return files.read_path(corpus.path(role), column, role, rows)[skip:]


def rows_of(corpus: Corpus, role: str, limit: int | None) -> list[dict[str, Any]]:
    """Read whole rows of a corpus."""
    skip, rows = _leading(corpus, role, limit)
    if corpus.hub:
        return hub.read_rows(corpus, role, rows)[skip:]
    return files.read_rows(corpus.path(role), role, rows)[skip:]


def _leading(corpus: Corpus, role: str, limit: int | None) -> tuple[int, int | None]:
    """Return how many rows of the source are passed over, and how many are read, those included."""
    skip = corpus.skip.get(role, 0)
    counts = [n for n in (limit, corpus.rows.get(role)) if n is not None]
    return skip, skip + min(counts) if counts else None
