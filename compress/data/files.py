"""Texts from local files and directories.

.jsonl, .json, .csv and .parquet are tables with a text column (also .gz of the first three); a
directory is one saved by `datasets` or holds such tables, or .txt files, named by split; any other
file is one document.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compress.errors import RequestError

TABLES = (".jsonl", ".json", ".csv", ".parquet")
_SPLITS = {
    "calibration": ("train", "calibration"),
    "evaluation": ("test", "validation", "valid", "dev", "eval"),
}


def exists(name: str) -> bool:
    """Whether a string is the path of an existing file or directory; never raises."""
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        return False


def read_path(path: Path, column: str | None, role: str, limit: int | None) -> list[str]:
    """Read the documents of a file or directory.

    Args:
        path: an existing file or directory.
        column: text column of a table; None takes `text`, else the only string column.
        role: "calibration" or "evaluation": which split of a directory is read.
        limit: at most so many leading documents, or None.

    Raises:
        RequestError: unreadable or binary file, broken line, wrong column, nothing of text.
    """
    try:
        if path.is_dir():
            return _read_directory(path, column, role, limit)
        return _read_file(path, column, limit)
    except OSError as error:
        raise RequestError(f"`{path}` can't be read: {error.strerror or error}") from error


def read_rows(path: Path, role: str, limit: int | None) -> list[dict[str, Any]]:
    """Read whole rows of a table, or of a directory of tables.

    Args:
        path: an existing file or directory.
        role: "calibration" or "evaluation": which split of a directory is read.
        limit: at most so many leading rows, or None.

    Raises:
        RequestError: unreadable, no table, or a row that is no object.
    """
    try:
        if path.is_dir() and is_saved(path):
            saved = open_split(path, role)
            return list(saved if limit is None else saved.select(range(min(limit, len(saved)))))
        rows: list[dict[str, Any]] = []
        for file in files_of(path, role) if path.is_dir() else [path]:
            rows += _rows_of_file(file, None if limit is None else limit - len(rows))
        return rows
    except OSError as error:
        raise RequestError(f"`{path}` can't be read: {error.strerror or error}") from error


def _rows_of_file(path: Path, limit: int | None) -> list[dict[str, Any]]:
    kind = kind_of(path)
    if kind in (".parquet", ".csv"):
        table = _parquet(path) if kind == ".parquet" else _csv(path)
        return table.slice(0, limit).to_pylist()
    if kind not in (".jsonl", ".json"):
        raise RequestError(
            f"`{path}` is one text document, and templates need rows with columns",
            hint=f"rows come from {', '.join(TABLES)} files",
        )
    found = _json_rows(path, kind, limit)
    for where, row in found:
        if not isinstance(row, dict):
            raise RequestError(f"{where}: an object is needed, is {type(row).__name__}")
    return [row for _, row in found]


def kind_of(path: Path) -> str:
    """Return a file's suffix, of the packed file where it ends in .gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _read_file(path: Path, column: str | None, limit: int | None) -> list[str]:
    kind = kind_of(path)
    if kind == ".parquet":
        return _from_arrow(_parquet(path), path, column, limit)
    if kind == ".csv":
        return _from_arrow(_csv(path), path, column, limit)
    if kind in (".jsonl", ".json"):
        rows = _json_rows(path, kind, limit)
        return _from_rows(rows, path, column, limit)
    if column is not None:
        raise RequestError(
            f"`{path}` is read as one text document and has no column `{column}`",
            hint=f"columns belong to {', '.join(TABLES)} files",
        )
    return [_text(path)]


def _text(path: Path) -> str:
    """Return a whole file as text, its line ends as they are."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"`{path}` is a binary file, or not UTF-8 (byte {error.start})",
            hint="a data spec needs UTF-8 text or a " + ", ".join(TABLES) + " file",
        ) from error
    if "\0" in text:
        raise RequestError(f"`{path}` is a binary file (a NUL at character {text.index(chr(0))})")
    return text


def _json_rows(path: Path, kind: str, limit: int | None) -> list[tuple[str, Any]]:
    """Return (where, row) of a JSON Lines file or of a file with one JSON array."""
    text = _text(path)
    if kind == ".json":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):  # then it is JSON Lines under another name
                raise RequestError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
        else:
            if not isinstance(rows, list):
                rows = [rows]
            return [(f"{path}, row {i}", row) for i, row in enumerate(rows[:limit], 1)]
    found: list[tuple[str, Any]] = []
    # Split at \n only: JSON strings may hold U+2028, which str.splitlines would cut at.
    for number, line in enumerate(text.split("\n"), 1):
        if limit is not None and len(found) >= limit:
            break
        if not line.strip():
            continue
        try:
            found.append((f"{path}:{number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise RequestError(f"{path}:{number}: not JSON: {error.msg}") from error
    return found


def _from_rows(
    rows: list[tuple[str, Any]], path: Path, column: str | None, limit: int | None
) -> list[str]:
    if not rows:
        raise RequestError(f"`{path}` holds no rows")
    name = column_of(rows, column, path)
    return [cell(row, name, where) for where, row in rows][:limit]


def column_of(rows: list[tuple[str, Any]], column: str | None, path: Path) -> str | None:
    """Return the text column of (where, row) pairs; None where every row is itself a text.

    Raises:
        RequestError: a row is no object, or the column isn't clear; names the row or the columns.
    """
    if rows and column is None and all(isinstance(row, str) for _, row in rows):
        return None
    for where, row in rows:
        if not isinstance(row, dict):
            raise RequestError(f"{where}: an object is needed, is {type(row).__name__}")
    if not rows:
        raise RequestError(f"`{path}` holds no rows")
    names = list(rows[0][1])
    strings = [n for n in names if all(isinstance(row.get(n), str | None) for _, row in rows[:100])]
    return _choose(column, names, strings, path)


def cell(row: Any, name: str | None, where: str) -> str:
    """Return a row's text, "" where the column is empty; RequestError names what isn't a text."""
    if not isinstance(row, dict if name is not None else str):
        needed = "an object" if name is not None else "a string"
        raise RequestError(f"{where}: {needed} is needed, is {type(row).__name__}")
    value = row.get(name) if isinstance(row, dict) else row
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        raise RequestError(f"{where}: column `{name}` needs a string, is {kind}")
    return value or ""


def _choose(column: str | None, names: list[str], strings: list[str], where: Path) -> str:
    """Return the text column: the one asked for, `text`, or the only string column."""
    listed = ", ".join(strings) or "none"
    hint = f"its string columns: {listed}; write `{where}:COLUMN`"
    if column is not None:
        if column in strings:
            return column
        state = "holds no strings" if column in names else "is not there"
        raise RequestError(f"`{where}`: column `{column}` {state}", hint=hint)
    if "text" in strings:
        return "text"
    if len(strings) == 1:
        return strings[0]
    count = "no" if not strings else "more than one"
    raise RequestError(f"`{where}` has no column `text` and {count} string column", hint=hint)


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as parquet

    try:
        return parquet.read_table(path)
    except (ValueError, OSError) as error:
        raise RequestError(f"`{path}` is no readable parquet file: {_line(error)}") from error


def _csv(path: Path) -> Any:
    import pyarrow as arrow
    from pyarrow import csv

    _text(path)  # finds a binary file, with its own message
    try:
        return csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
    except (arrow.ArrowInvalid, OSError) as error:
        raise RequestError(f"`{path}` is no readable CSV file: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _from_arrow(table: Any, path: Path, column: str | None, limit: int | None) -> list[str]:
    """Return one string column of a pyarrow.Table, nulls as empty strings."""
    chosen = table.column(text_column(table.schema, column, path))
    return [value or "" for value in chosen.slice(0, limit).to_pylist()]


def text_column(schema: Any, column: str | None, path: Path) -> str:
    """Return the text column of a pyarrow.Schema; RequestError lists the string columns."""
    import pyarrow.types as types

    is_text = lambda kind: types.is_string(kind) or types.is_large_string(kind)  # noqa: E731
    strings = [field.name for field in schema if is_text(field.type)]
    return _choose(column, list(schema.names), strings, path)


def _read_directory(path: Path, column: str | None, role: str, limit: int | None) -> list[str]:
    if is_saved(path):
        return _read_saved(path, column, role, limit)
    documents: list[str] = []
    for file in files_of(path, role):
        rest = None if limit is None else limit - len(documents)
        if rest == 0:
            break
        documents += _read_file(file, column, rest)
    return documents


def is_saved(path: Path) -> bool:
    """Whether a directory was written by `datasets`' save_to_disk."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def files_of(path: Path, role: str) -> list[Path]:
    """Return a directory's files of text for one role, in order of name; RequestError if none."""
    found = sorted(
        file
        for file in [*path.glob("*"), *path.glob("*/*")]
        if file.is_file() and kind_of(file) in (*TABLES, ".txt") and not file.name.startswith(".")
    )
    if any(
        kind_of(file) == ".parquet" for file in found
    ):  # metadata often lies beside them as .json
        found = [file for file in found if kind_of(file) == ".parquet"]
    if not found:
        raise RequestError(
            f"directory `{path}` holds no text: no {', '.join(TABLES)} or .txt file",
            hint="point to a file, or to a directory saved by `datasets`",
        )
    return _of_role(found, role)


def _of_role(found: list[Path], role: str) -> list[Path]:
    """Return the files whose name or directory says a split of the role, else all."""
    for split in _SPLITS[role]:
        chosen = [f for f in found if f.name.startswith(split) or f.parent.name == split]
        if chosen:
            return chosen
    return found


def _read_saved(path: Path, column: str | None, role: str, limit: int | None) -> list[str]:
    """Read a directory written by `datasets`' save_to_disk."""
    saved, name = open_saved(path, column, role)
    rows: Iterable[Any] = saved if limit is None else saved.select(range(min(limit, len(saved))))
    return [row[name] or "" for row in rows]


def open_saved(path: Path, column: str | None, role: str) -> tuple[Any, str]:
    """Open a directory written by `datasets`' save_to_disk: its split of the role, its column."""
    saved = open_split(path, role)
    names = saved.column_names
    strings = [n for n in names if getattr(saved.features[n], "dtype", "") in _TEXT_TYPES]
    return saved, _choose(column, names, strings, path)


def open_split(path: Path, role: str) -> Any:
    """Open the split of a role in a directory written by `datasets`' save_to_disk."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (ValueError, FileNotFoundError, OSError) as error:
        raise RequestError(f"`{path}` is no readable saved dataset: {_line(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        return saved[_split_name(saved, path, role)]
    return saved


_TEXT_TYPES = ("string", "large_string")


def _split_name(saved: Any, path: Path, role: str) -> str:
    for split in (*_SPLITS[role], *saved):
        if split in saved:
            return split
    raise RequestError(f"saved dataset `{path}` has no split")
