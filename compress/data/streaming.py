"""The documents of a data spec one after another, in memory that doesn't grow with the source.

For training, whose text may be larger than memory. A large text file, which is one document, comes
in pieces of a few megabytes, cut at line ends.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from compress.data import files, hub
from compress.data.specs import DataSpec, load_documents
from compress.errors import RequestError

_PIECE = 4 << 20  # bytes of one document read at a time
_SAMPLE = 100  # leading rows by which the text column is chosen


class Piece(NamedTuple):
    """A document, or a part of a large one."""

    text: str
    ends: bool
    """Whether the document ends here."""
    read: int
    """Bytes of the source read so far; 0 where its size is unknown."""


def source_bytes(spec: DataSpec, role: str = "calibration") -> int:
    """Return the size of the files that a spec names, 0 where it is unknown (on the Hub)."""
    return sum(path.stat().st_size for path in _paths(spec, role))


def iter_documents(spec: DataSpec, *, role: str = "calibration") -> Iterator[Piece]:
    """Yield the documents of one spec, those that `load_documents` returns, in the same order.

    Args:
        spec: the spec.
        role: "calibration" (the training split) or "evaluation".

    Raises:
        RequestError: as load_documents; a broken row in the middle when it is reached.
    """
    paths = _paths(spec, role)
    column = spec.column
    corpus = spec.entry
    if corpus is not None:
        columns = spec.format == "raw" and (column is not None or "raw" not in corpus.templates)
        plain = columns and not (role in corpus.joined or role in corpus.rows or corpus.skip)
        column = column or corpus.column
        if corpus.hub and plain and corpus.has_role(role) and column in corpus.columns:
            yield from (Piece(text, True, 0) for text in hub.stream_corpus(corpus, column, role))
            return
        if corpus.hub or not plain or column not in corpus.columns:
            paths = []
    if not paths:  # small by nature, or refused with the right words
        yield from (Piece(text, True, 0) for text in load_documents(spec, role=role))
        return
    before = 0
    for path in paths:
        try:
            for piece in _iter_path(path, column, role):
                yield piece._replace(read=before + piece.read)
        except OSError as error:
            raise RequestError(f"`{path}` can't be read: {error.strerror or error}") from error
        before += path.stat().st_size


def _paths(spec: DataSpec, role: str) -> list[Path]:
    corpus = spec.entry
    if (corpus is None and not spec.is_path) or (corpus is not None and role not in corpus.local):
        return []
    path = Path(spec.name) if corpus is None else corpus.path(role)
    if path.is_dir() and not files.is_saved(path):
        return files.files_of(path, role)
    return [path]


def _iter_path(path: Path, column: str | None, role: str) -> Iterator[Piece]:
    if path.is_dir():
        rows, name = files.open_saved(path, column, role)
        return (Piece(row[name] or "", True, 0) for row in rows)
    kind = files.kind_of(path)
    if kind == ".jsonl":
        return _json_lines(path, column)
    if kind in (".parquet", ".csv"):
        return _arrow(path, kind, column)
    if kind == ".json" or column is not None:  # an array is read whole; a text has no columns
        return (Piece(text, True, 0) for text in files.read_path(path, column, role, None))
    return _text(path)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _position(stream: Any) -> int:
    """Bytes of the file read, of the packed ones where it is packed."""
    packed = getattr(getattr(stream, "fileobj", None), "tell", None)
    return packed() if packed else stream.tell()


def _text(path: Path) -> Iterator[Piece]:
    """Yield a text file as one document, in pieces that end with lines where it has any."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held, done = "", 0
    with _open(path) as stream:
        while True:
            raw = stream.read(_PIECE)
            try:
                text = held + decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise RequestError(
                    f"`{path}` is a binary file, or not UTF-8 (after byte {done + error.start})",
                    hint="a data spec needs UTF-8 text or a " + ", ".join(files.TABLES) + " file",
                ) from error
            if "\0" in text:
                raise RequestError(f"`{path}` is a binary file (a NUL after byte {done})")
            done += len(raw)
            if not raw:
                yield Piece(text, True, _position(stream))
                return
            cut = text.rfind("\n") + 1
            if cut and len(raw) == _PIECE:
                yield Piece(text[:cut], False, _position(stream))
                held = text[cut:]
            else:
                held = text


def _json_lines(path: Path, column: str | None) -> Iterator[Piece]:
    rows = _json_rows(path)
    leading = list(itertools.islice(rows, _SAMPLE))
    name = files.column_of([(where, row) for where, row, _ in leading], column, path)
    for where, row, read in itertools.chain(leading, rows):
        yield Piece(files.cell(row, name, where), True, read)


def _json_rows(path: Path) -> Iterator[tuple[str, Any, int]]:
    """Yield (where, row, bytes read) of a JSON Lines file."""
    with _open(path) as stream:
        for number, raw in enumerate(stream, 1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield where, json.loads(line), _position(stream)
            except UnicodeDecodeError as error:
                raise RequestError(f"{where}: not UTF-8 (byte {error.start})") from error
            except json.JSONDecodeError as error:
                raise RequestError(f"{where}: not JSON: {error.msg}") from error


def _arrow(path: Path, kind: str, column: str | None) -> Iterator[Piece]:
    import pyarrow as arrow
    from pyarrow import csv, parquet

    try:
        if kind == ".csv":
            options = csv.ParseOptions(newlines_in_values=True)
            reader: Any = csv.open_csv(path, parse_options=options)
            name = files.text_column(reader.schema, column, path)
            batches = (batch.select([name]) for batch in reader)
        else:
            file = parquet.ParquetFile(path)
            name = files.text_column(file.schema_arrow, column, path)
            batches = file.iter_batches(columns=[name])
        for batch in batches:
            for value in batch.column(0).to_pylist():
                yield Piece(value or "", True, 0)
    except (arrow.ArrowInvalid, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RequestError(f"`{path}` is no readable {kind[1:]} file: {reason}") from error
