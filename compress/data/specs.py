"""Data specs: `NAME_OR_PATH[:COLUMN][@FORMAT]`, several with commas.

NAME is an entry of the registry; a path is a .jsonl, .json, .csv or .parquet file, a directory
(saved by `datasets`, or holding such files named by split), or any other file, which is one UTF-8
document with its lines kept as they are. A comma, `:` or `@` separates only where the whole string
is not an existing path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.data import files, hub
from compress.data.registry import Corpus, load_registry, shipped
from compress.errors import RequestError, near_names

FORMATS = ("raw", "zero-shot", "icl", "cot", "icl-cot")


@dataclass(frozen=True)
class DataSpec:
    """One data spec, taken apart.

    Attributes:
        text: as the user wrote it; the key of its results in a receipt.
        name: path or registry name.
        column: column asked for, or None.
        format: prompt format; "raw" where none was asked for.
    """

    text: str
    name: str
    column: str | None = None
    format: str = "raw"

    @property
    def is_path(self) -> bool:
        """Whether the name is an existing file or directory; that wins over a registry name."""
        return files.exists(self.name)

    def source(self, role: str) -> tuple[str, str, str]:
        """What the spec reads in a role: two specs with equal sources read the same text.

        Returns:
            (resolved path or registry name, split or "" for a single file, column or "").
        """
        if self.is_path:
            path = Path(self.name).resolve()
            return str(path), role if path.is_dir() else "", self.column or ""
        return self.name, role, self.column or ""


def parse_spec(text: str | Sequence[str]) -> list[DataSpec]:
    """Take a data spec apart.

    Args:
        text: a spec, several with commas, or a sequence of those.

    Raises:
        RequestError: an empty spec, an empty column, an unknown format, or a format other than raw.
    """
    if not isinstance(text, str):
        return [spec for part in text for spec in parse_spec(part)]
    if files.exists(text):
        return [DataSpec(text, text)]
    return [_parse_one(part) for part in text.split(",")]


def _parse_one(text: str) -> DataSpec:
    text = text.strip()
    if not text:
        raise RequestError(
            "a data spec is empty", hint="write NAME_OR_PATH[:COLUMN], several with commas"
        )
    readings = _readings(text)
    known = load_registry()
    spec = next((r for r in readings if r.is_path or r.name in known), _plain(readings))
    if spec.column == "":
        raise RequestError(f"data spec `{text}` has an empty column name after `:`")
    _check_format(spec)
    return spec


def _readings(text: str) -> list[DataSpec]:
    """Return the ways to read a spec: whole, with `@FORMAT` taken off, and without one."""
    bodies = [(text, "raw")]
    body, at, form = text.rpartition("@")
    if at and re.fullmatch(r"[\w-]*", form):  # else the @ stands in a path
        bodies.insert(0, (body, form))
    readings = [DataSpec(text, text)]
    for body, form in bodies:
        readings.append(DataSpec(text, body, None, form))
        if ":" in body:
            name, _, column = body.rpartition(":")
            readings.append(DataSpec(text, name, column, form))
    return readings


def _plain(readings: list[DataSpec]) -> DataSpec:
    """Return the reading of a spec of which nothing exists: all that its first form splits off."""
    formed = [reading for reading in readings[1:] if reading.format == readings[1].format]
    return formed[-1]


def _check_format(spec: DataSpec) -> None:
    kind = spec.format
    if kind == "raw":
        return
    shots = kind[4:] if kind.startswith("icl-") else ""
    if kind not in FORMATS and not (shots.isdigit() and int(shots) > 0):
        raise RequestError(
            f"data spec `{spec.text}`: unknown format `{kind}`",
            hint=near_names(kind, [*FORMATS, "icl-K"]),
        )
    raise RequestError(
        f"data spec `{spec.text}`: format `{kind}` belongs to calib-study; here only `raw` is read",
        hint=f"leave out `@{kind}`",
    )


def load_documents(
    spec: DataSpec | str,
    *,
    role: str = "calibration",
    limit: int | None = None,
    registry: Path | None = None,
) -> list[str]:
    """Read the documents of one data spec.

    Args:
        spec: the spec, or its text.
        role: "calibration" or "evaluation"; picks the split of a registry corpus or a directory.
        limit: read at most so many leading documents.
        registry: another registry file.

    Returns:
        The texts in the order of the source, blank ones included (published protocols join them
        too); at least one holds more than white space.

    Raises:
        RequestError: unknown name, missing or binary file, wrong column, no text, no network.
    """
    if isinstance(spec, str):
        parsed = parse_spec(spec)
        if len(parsed) != 1:
            raise RequestError(f"`{spec}` names {len(parsed)} data specs where one is needed")
        spec = parsed[0]
    if spec.is_path:
        documents = files.read_path(Path(spec.name), spec.column, role, limit)
    else:
        documents = _read_named(spec, role, limit, registry)
    if not any(document.strip() for document in documents):
        raise RequestError(f"data spec `{spec.text}` holds no text ({len(documents)} documents)")
    return documents


def _read_named(spec: DataSpec, role: str, limit: int | None, registry: Path | None) -> list[str]:
    known = load_registry(registry)
    if spec.name == "self":
        raise RequestError(
            "data spec `self` (text sampled from the dense model) belongs to calib-study",
            hint=near_names("", known),
        )
    if spec.name not in known:
        if "/" in spec.name or "\\" in spec.name or Path(spec.name).suffix:
            raise RequestError(f"data spec `{spec.text}`: no such file or directory")
        raise RequestError(
            f"data spec `{spec.text}`: neither a file nor a corpus of the registry",
            hint=near_names(spec.name, known),
        )
    corpus = known[spec.name]
    if not corpus.has_role(role):
        raise RequestError(
            f"corpus `{corpus.name}` has no split for {role}",
            hint=near_names("", [c.name for c in known.values() if c.has_role(role)]),
        )
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
    rows = min((n for n in (limit, corpus.rows.get(role)) if n is not None), default=None)
    if corpus.hub:
        return hub.read_corpus(corpus, column, role, rows)
    return files.read_path(shipped(corpus.local[role]), column, role, rows)
