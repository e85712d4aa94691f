"""The rows of a report: one per receipt, model of an `eval --json` file, or cell of a study."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.errors import RequestError
from compress.reports.formats import short_names
from compress.reports.receipt import FILE_NAME, Receipt, read_items, read_json
from compress.reports.records import Measures, decode, encode

RUN_NAME = "run.json"


@dataclass(frozen=True)
class Run:
    """One row.

    Attributes:
        name: what the row is called.
        path: where it was read.
        settings: the command's options.
        after, before: measures; `after` is the model that the row is about.
        items: outcomes per example of `after`, as write_items keeps them.
        receipt: whole, where the row is one.
    """

    name: str
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    after: Measures = field(default_factory=Measures)
    before: Measures | None = None
    status: str = "ok"
    items: Mapping[str, Any] = field(default_factory=dict)
    receipt: Receipt | None = None

    @property
    def allocation(self) -> Mapping[str, Any]:
        """How much each block lost, beside other allocations; empty where that isn't told."""
        return (self.receipt.extra.get("allocation") if self.receipt else None) or {}

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON types; what was not measured is absent."""
        parts = {
            "name": self.name,
            "path": str(self.path),
            "status": self.status,
            "command": self.receipt.command if self.receipt else None,
            "settings": self.settings or None,
            "before": self.before,
            "after": None if self.after == Measures() else self.after,
            "allocation": self.allocation or None,
        }
        return encode(parts)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read receipts, directories with receipts and `eval --json` files, in the order given.

    Raises:
        RequestError: nothing given, no receipt in a directory, or one that can't be read.
    """
    if not paths:
        raise RequestError("no receipt to report", "name directories that a command wrote")
    names = short_names(os.path.abspath(path) for path in paths)
    runs = [run for path in paths for run in _read(Path(path), names[os.path.abspath(path)])]
    counts = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({run.path})") if counts.count(run.name) > 1 else run
        for run in runs
    ]


def _read(path: Path, name: str) -> Iterator[Run]:
    listed = listed_rows(path)
    if listed is not None:
        for row in listed:
            yield from _row(path, row)
        return
    file, data = read_json(path)
    try:
        if "models" in data:
            yield from _evaluated(file, data)
        elif isinstance(data.get("cells"), list):
            yield from _cells(file, data["cells"], name)
        elif "command" in data:
            yield _from_receipt(path, Receipt.from_dict(data), name)
        else:
            raise RequestError(f"`{file}` isn't a receipt: it has neither `command` nor `models`")
    except ValueError as error:
        raise RequestError(f"`{file}` isn't a receipt: {error}") from error


def listed_rows(path: Path) -> list[dict[str, str]] | None:
    """The rows that a run of a recipe names: "name", "receipt"; None where there is no such run.

    Raises:
        RequestError: its run.json is damaged or of a newer version.
    """
    file = path / RUN_NAME
    if not file.is_file() or (path / FILE_NAME).is_file():
        return None
    data = read_json(file)[1]
    rows = data.get("rows", [])
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"name", "receipt"} <= row.keys() for row in rows
    ):
        raise RequestError(f"`{file}` isn't a run as this version reads it")
    return rows


def _row(path: Path, row: Mapping[str, str]) -> Iterator[Run]:
    """One receipt of a run, under the name that the run gives it."""
    found = list(_read(path / row["receipt"], row["name"]))
    for run in found:
        more = f" {run.name}" if len(found) > 1 else ""
        yield replace(run, name=f"{row['name']}{more}")


def _from_receipt(path: Path, receipt: Receipt, name: str) -> Run:
    after = receipt.after or Measures()
    return Run(
        name=name if path.is_dir() or path.name != "receipt.json" else path.resolve().parent.name,
        path=path,
        settings=receipt.settings,
        after=after,
        before=receipt.before,
        status=receipt.status,
        items=read_items(path),
        receipt=receipt,
    )


def _evaluated(file: Path, data: Mapping[str, Any]) -> Iterator[Run]:
    models = data["models"]
    if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise ValueError("`models` isn't a list of objects")
    names = short_names(str(m.get("source", "?")) for m in models)
    for model in models:
        own = {key: part for key, part in model.items() if key not in ("source", "comparison")}
        source = str(model.get("source", "?"))
        yield Run(names[source], file, after=decode(Measures, own, f"models.{source}"))


def _cells(file: Path, cells: Sequence[Any], name: str) -> Iterator[Run]:
    measured = ("perplexity", "tasks", "status", "digest")
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            raise ValueError(f"`cells[{number - 1}]` isn't an object")
        own = {key: cell[key] for key in ("perplexity", "tasks") if cell.get(key)}
        yield Run(
            f"{name} {number}",
            file,
            settings={key: part for key, part in cell.items() if key not in measured},
            after=decode(Measures, own, f"cells[{number - 1}]"),
            status=str(cell.get("status", "ok")),
        )
