"""Tables of any form as rows of text with their line numbers, so that an error can name its line.

CSV, JSON lines, JSON (a list of records) and Parquet give the same rows. Numbers stay text until
somebody knows what they mean: FIPS codes keep their leading zeros.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from compress.errors import RequestError

FORMS = (".csv", ".jsonl", ".json", ".parquet")
_SPACED = re.compile(r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$")
_US_DATE = re.compile(r"^(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})$")
_PLAIN_DATE = re.compile(r"^(\d{4})(\d{2})(\d{2})$")
_CENTURY = 70  # of two-digit years: 69 is 2069, 70 is 1970


@dataclass(frozen=True)
class Row:
    """One record.

    Attributes:
        line: where it begins in its file, from 1.
        cells: text by column; a list only where JSON or Parquet held one.
    """

    line: int
    cells: dict[str, Any]

    def text(self, column: str | None) -> str:
        """The cell as text without blanks around it; empty where there is none."""
        value = self.cells.get(column) if column is not None else None
        return "" if value is None else str(value).strip()


@dataclass(frozen=True)
class Sheet:
    """A table as it was read.

    Attributes:
        path: the file.
        columns: in the file's order.
        rows: in the file's order.
        digest: "sha256:…" of the file's bytes.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    digest: str

    def column(self, *names: str) -> str | None:
        """The first column with one of these names, in any case; None if there is none."""
        by_name = {name.strip().lower(): name for name in reversed(self.columns)}
        return next((by_name[n.lower()] for n in names if n.lower() in by_name), None)

    def where(self, row: Row) -> str:
        """A row's place, for errors."""
        return f"`{self.path}:{row.line}`"


def read_sheet(path: str | Path, option: str) -> Sheet:
    """Read a table.

    Args:
        path: a .csv, .jsonl, .json or .parquet file.
        option: that named it, for errors.

    Raises:
        RequestError: there is no such file, it has another form, isn't UTF-8 (the line is named),
            is torn, or holds no row.
    """
    file = Path(path)
    if not file.is_file():
        raise RequestError(f"`{option} {path}`: there is no such file", "give the path of a file")
    form = file.suffix.lower()
    if form not in FORMS:
        raise RequestError(
            f"`{option} {path}`: `{form or file.name}` isn't a form that is read",
            f"known are {', '.join(FORMS)}",
        )
    raw = file.read_bytes()
    if form == ".parquet":
        columns, rows = _parquet(file)
    else:
        text = _decoded(raw, file)
        columns, rows = _csv(text, file) if form == ".csv" else _json(text, file, form == ".jsonl")
    if not rows:
        raise RequestError(f"`{file}` holds no row", "a header and one line a record are needed")
    return Sheet(file, columns, rows, f"sha256:{hashlib.sha256(raw).hexdigest()}")


def _decoded(raw: bytes, file: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"`{file}:{line}` isn't UTF-8: byte 0x{raw[error.start]:02x}",
            f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {file.name}",
        ) from error


def _csv(text: str, file: Path) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = tuple(next(reader, ()))
        rows: list[Row] = []
        last = reader.line_num
        for record in reader:
            line, last = last + 1, reader.line_num
            if not record or not any(record):
                continue
            if len(record) != len(columns):
                raise RequestError(
                    f"`{file}:{line}` has {len(record)} cells, the header {len(columns)} columns",
                    "quote cells that hold a comma or a line break",
                )
            rows.append(Row(line, dict(zip(columns, record))))
    except csv.Error as error:
        raise RequestError(f"`{file}:{reader.line_num}` isn't CSV: {error}") from error
    return columns, tuple(rows)


def _json(text: str, file: Path, lines: bool) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    rows = list(_json_lines(text, file) if lines else _json_list(text, file))
    for row in rows:
        if not isinstance(row.cells, dict):
            raise RequestError(
                f"`{file}:{row.line}` isn't an object", 'records look like {"date": …, "text": …}'
            )
    return tuple(dict.fromkeys(key for row in rows for key in row.cells)), tuple(rows)


def _json_lines(text: str, file: Path) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                yield Row(line, json.loads(content))
            except ValueError as error:
                raise RequestError(
                    f"`{file}:{line}` isn't JSON: {error}", "one object a line is needed"
                ) from error


def _json_list(text: str, file: Path) -> Iterator[Row]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise RequestError(f"`{file}` isn't JSON: {error}") from error
    if not isinstance(records, list):
        raise RequestError(f"`{file}` isn't a list of records")
    yield from (Row(number, record) for number, record in enumerate(records, start=1))


def _parquet(file: Path) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise RequestError(f"`{file}` is no readable parquet file: {first}") from error
    found = table.to_pylist()
    return tuple(table.column_names), tuple(Row(i, r) for i, r in enumerate(found, start=1))


def parse_date(text: str) -> date | None:
    """A date in one of the forms that these files have; None if it is in none of them.

    YYYYMMDD, YYYY-MM-DD (a time of day after it is left out), M/D/YY and M/D/YYYY.
    """
    value = text.strip()
    match = _US_DATE.match(value)
    try:
        if match:
            month, day, year = map(int, match.groups())
            if len(match[3]) == 2:
                year += 1900 if year >= _CENTURY else 2000
            return date(year, month, day)
        match = _PLAIN_DATE.match(value)
        if match:
            return date(*map(int, match.groups()))
        if len(value) > 10 and value[10] not in "T ":
            return None
        return date.fromisoformat(value[:10])
    except ValueError:
        return None


def parse_number(text: str) -> float | None:
    """A finite number, thousands separators allowed; None if it isn't one."""
    value = text.strip()
    if _SPACED.match(value):
        value = value.replace(",", "")
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number - number == 0 else None


def need_date(sheet: Sheet, row: Row, column: str) -> date:
    """The date in a cell.

    Raises:
        RequestError: it can't be read as one.
    """
    found = parse_date(row.text(column))
    if found is None:
        raise RequestError(
            f"{sheet.where(row)}: `{column}` is {row.text(column)!r}, not a date",
            "known forms: 2024-05-14, 20240514, 5/14/24, 5/14/2024",
        )
    return found


def need_number(sheet: Sheet, row: Row, column: str) -> float:
    """The number in a cell.

    Raises:
        RequestError: it can't be read as one.
    """
    found = parse_number(row.text(column))
    if found is None:
        raise RequestError(
            f"{sheet.where(row)}: `{column}` is {row.text(column)!r}, not a number",
            "mend that cell; gaps are lines left out, not empty cells",
        )
    return found


def missing(sheet: Sheet, needed: str, example: str) -> RequestError:
    """The error of a file that lacks columns: says what was needed and what was found."""
    found = ", ".join(sheet.columns) or "none"
    return RequestError(f"`{sheet.path}` lacks {needed}; its columns are {found}", example)
