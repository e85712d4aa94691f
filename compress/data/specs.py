"""Data specs: `NAME_OR_PATH[:COLUMN][@FORMAT][=SHARE]`, several with commas or `+`.

NAME is an entry of the registry; a path is a .jsonl, .json, .csv or .parquet file, a directory
(saved by `datasets`, or holding such files named by split), or any other file, which is one UTF-8
document with its lines kept as they are. A separator separates only where the whole string is not
an existing path. A comma separates specs; `+` joins them to one mix, of equal shares unless they
are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compress.data import files
from compress.data.formats import (
    Example,
    Format,
    check_format,
    make_examples,
    read_format,
)
from compress.data.named import corpus_of, rows_of, texts_of
from compress.data.registry import Corpus, corpora
from compress.errors import RequestError

SELF = "self"


@dataclass(frozen=True)
class DataSpec:
    """One data spec, taken apart.

    Attributes:
        text: as the user wrote it; the key of its results in a receipt.
        name: path or registry name.
        column: column asked for, or None.
        format: prompt format; "raw" where none was asked for.
        share: part of a mix's tokens, or None.
        corpus: the registry's entry of that name, or None.
        registry: a user's registry file that the spec was read with.
    """

    text: str
    name: str
    column: str | None = None
    format: str = "raw"
    share: float | None = None
    corpus: Corpus | None = field(default=None, compare=False, repr=False)
    registry: str | Path | None = field(default=None, compare=False, repr=False)

    @property
    def is_path(self) -> bool:
        """Whether the name is an existing file or directory; that wins over a registry name."""
        return files.exists(self.name)

    @property
    def entry(self) -> Corpus | None:
        """The registry's entry that is read, None for a path."""
        return None if self.is_path else self.corpus or corpora().get(self.name)

    @property
    def sampled(self) -> bool:
        """Whether the text is sampled from the model."""
        return self.entry is not None and self.entry.sampled is not None

    def source(self, role: str) -> tuple[str, str, str]:
        """What the spec reads in a role: two specs with equal sources read the same text.

        Returns:
            (resolved path or registry name, split or "" for a single file, column or "").
        """
        if self.is_path:
            path = Path(self.name).resolve()
            return str(path), role if path.is_dir() else "", self.column or ""
        entry = self.entry
        if entry is not None and role in entry.local:
            path = entry.path(role).resolve()
            shared = path.is_dir() or entry.rows or entry.skip
            return str(path), role if shared else "", self.column or ""
        return self.name, role, self.column or ""


@dataclass(frozen=True)
class Mix:
    """One calibration set: a data spec, or several with their shares of the tokens.

    Attributes:
        text: as the user wrote it.
        parts: the specs, each with its share; shares sum to 1.
    """

    text: str
    parts: tuple[DataSpec, ...]

    @property
    def name(self) -> str:
        """The text without formats."""
        if len(self.parts) == 1:
            column = f":{self.parts[0].column}" if self.parts[0].column else ""
            return self.parts[0].name + column
        return "+".join(f"{part.name}={part.share:g}" for part in self.parts)

    @property
    def format(self) -> str:
        """The parts' format, "mixed" where they differ."""
        kinds = {part.format for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else "mixed"


def parse_spec(text: str | Sequence[str], registry: str | Path | None = None) -> list[DataSpec]:
    """Take data specs apart.

    Args:
        text: a spec, several with commas, or a sequence of those.
        registry: a user's registry file beside the shipped one.

    Raises:
        RequestError: an empty spec, an empty column, an unknown format, a share out of range; a
            fault of the registry.
    """
    if not isinstance(text, str):
        return [spec for part in text for spec in parse_spec(part, registry)]
    known = corpora(registry)
    if files.exists(text):
        return [DataSpec(text, text)]
    specs = [_parse_one(part, known, registry) for part in text.split(",")]
    for spec in specs:
        if spec.share is not None:
            raise RequestError(
                f"data spec `{spec.text}={spec.share:g}`: only a calibration set has shares",
                f"write `{spec.text}`",
            )
    return specs


def parse_mixes(text: str | Sequence[str], registry: str | Path | None = None) -> list[Mix]:
    """Take several calibration sets apart: a comma separates them, `+` joins the parts of one.

    Raises:
        RequestError: as parse_spec; shares that are given for some parts only, or are above 1.
    """
    if not isinstance(text, str):
        return [mix for part in text for mix in parse_mixes(part, registry)]
    pieces = [text] if files.exists(text) else text.split(",")
    return [parse_mix(piece, registry) for piece in pieces]


def parse_mix(text: str | Sequence[str], registry: str | Path | None = None) -> Mix:
    """Take one calibration set apart, whose parts are joined by `+` or by commas.

    Raises:
        RequestError: as parse_mixes.
    """
    joined = text if isinstance(text, str) else ",".join(text)
    known = corpora(registry)
    pieces = [text] if isinstance(text, str) else list(text)
    for mark in ",+":
        pieces = [p for piece in pieces for p in _split(piece, mark, known)]
    parts = [_parse_one(piece, known, registry) for piece in pieces]
    return Mix(joined, _shared(parts, joined))


def _split(text: str, mark: str, known: Mapping[str, Corpus]) -> list[str]:
    """Split at a mark unless the whole is a path, or a spec of one."""
    readings = _readings(text.strip())
    if mark not in text or any(r.is_path and mark not in (r.column or "") for r in readings):
        return [text]
    return text.split(mark)


def _shared(parts: Sequence[DataSpec], text: str) -> tuple[DataSpec, ...]:
    """Give every part its share; equal ones where none was given."""
    given = [part for part in parts if part.share is not None]
    if not given:
        return tuple(replace(part, share=1 / len(parts)) for part in parts)
    if len(given) < len(parts):
        missing = next(part for part in parts if part.share is None)
        raise RequestError(
            f"data spec `{text}`: `{missing.text}` has no share, others have",
            f"write `{missing.text}=SHARE`, or leave all shares out for equal ones",
        )
    total = sum(part.share or 0.0 for part in parts)
    if abs(total - 1) > 1e-6:
        raise RequestError(
            f"data spec `{text}`: its shares sum to {total:g}, not 1",
            "shares are of the tokens: 0.7 and 0.3",
        )
    return tuple(parts)


def _parse_one(text: str, known: Mapping[str, Corpus], registry: str | Path | None) -> DataSpec:
    text = text.strip()
    if not text:
        raise RequestError(
            "a data spec is empty", hint="write NAME_OR_PATH[:COLUMN], several with commas"
        )
    readings = _readings(text)
    spec = next((r for r in readings if r.is_path or r.name in known), _plain(readings))
    if spec.column == "":
        raise RequestError(f"data spec `{text}` has an empty column name after `:`")
    if spec.share is not None and not 0 < spec.share <= 1:
        raise RequestError(
            f"data spec `{text}`: a share is above 0 and at most 1, is {spec.share:g}"
        )
    if not spec.is_path:
        spec = replace(spec, corpus=known.get(spec.name), registry=registry)
    try:
        form = read_format(spec.format)
    except RequestError as error:
        raise RequestError(f"data spec `{text}`: {error.message}", error.hint) from error
    if form is not None and (spec.is_path or spec.corpus is not None):
        _check_format(spec, form)
    return spec


def _readings(text: str) -> list[DataSpec]:
    """Return the ways to read a spec: whole, with `=SHARE` and `@FORMAT` taken off, and without."""
    readings = [DataSpec(text, text)]
    whole: list[tuple[str, str, float | None]] = [(text, text, None)]
    shared, equals, number = text.rpartition("=")
    if equals and re.fullmatch(r"\d*\.?\d+(e-?\d+)?", number):
        whole.insert(0, (shared, shared, float(number)))
    for label, rest, share in whole:
        bodies = [(rest, "raw")]
        body, at, form = rest.rpartition("@")
        if at and re.fullmatch(r"[\w-]*", form):  # else the @ stands in a path
            bodies.insert(0, (body, form))
        for body, form in bodies:
            readings.append(DataSpec(label, body, None, form, share))
            if ":" in body:
                name, _, column = body.rpartition(":")
                readings.append(DataSpec(label, name, column, form, share))
    return readings


def _plain(readings: list[DataSpec]) -> DataSpec:
    """Return the reading of a spec of which nothing exists: all that its first form splits off."""
    first = readings[1]
    formed = [r for r in readings[1:] if (r.format, r.share) == (first.format, first.share)]
    return formed[-1]


def _check_format(spec: DataSpec, form: Format) -> None:
    if spec.is_path:
        raise RequestError(
            f"data spec `{spec.text}`: a file is raw text, which has no format `{form.name}`",
            "name the file in a registry entry with a `prompt` template, and give --registry FILE",
        )
    assert spec.corpus is not None
    check_format(spec.corpus, form, spec.text)
    if spec.column is not None:
        raise RequestError(
            f"data spec `{spec.text}`: a format reads the columns that its templates name, "
            f"not `{spec.column}`",
            f"write `{spec.name}@{form.name}`",
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
        registry: a user's registry file, where `spec` is a text.

    Returns:
        The texts in the order of the source, blank ones included (published protocols join them
        too); at least one holds more than white space. In a format, its examples.

    Raises:
        RequestError: unknown name, missing or binary file, wrong column, no text, no network; a
            format with demonstrations for evaluation.
    """
    spec = _one(spec, registry)
    form = read_format(spec.format)
    if form is not None:
        if form.joined:
            raise RequestError(
                f"data spec `{spec.text}`: demonstrations are put together for calibration only, "
                "never from an evaluation split",
                f"use `{spec.name}@zero-shot`, `{spec.name}@cot` or `{spec.name}`",
            )
        examples = load_examples(spec, role=role, limit=limit)
        return [example.prompt + example.answer for example in examples]
    if spec.is_path:
        documents = files.read_path(Path(spec.name), spec.column, role, limit)
    else:
        documents = texts_of(spec, corpus_of(spec, role), role, limit)
    if not any(document.strip() for document in documents):
        raise RequestError(f"data spec `{spec.text}` holds no text ({len(documents)} documents)")
    return documents


def load_examples(
    spec: DataSpec | str,
    *,
    role: str = "calibration",
    limit: int | None = None,
    registry: Path | None = None,
) -> list[Example]:
    """Read the examples of a data spec in its format.

    Args:
        spec: the spec, or its text, with a format other than raw.
        role: "calibration" or "evaluation": which split is read.
        limit: read at most so many leading rows.
        registry: a user's registry file, where `spec` is a text.

    Raises:
        RequestError: as load_documents; a column that a template names and the data lack.
    """
    spec = _one(spec, registry)
    form = read_format(spec.format)
    if form is None:
        raise RequestError(f"data spec `{spec.text}` has no format; load_documents reads raw text")
    corpus = corpus_of(spec, role)
    check_format(corpus, form, spec.text)
    return make_examples(corpus, form, rows_of(corpus, role, limit), f"`{corpus.name}`")


def _one(spec: DataSpec | str, registry: Path | None) -> DataSpec:
    if isinstance(spec, DataSpec):
        return spec
    parsed = parse_spec(spec, registry)
    if len(parsed) != 1:
        raise RequestError(f"`{spec}` names {len(parsed)} data specs where one is needed")
    return parsed[0]
