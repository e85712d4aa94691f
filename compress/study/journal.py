"""What is known of finished cells: a file each while the study runs, one line each in the end.

A cell's file appears whole or not at all and is named by the content that its result depends on, so
a killed study finds what it had done, and another study's equal cells can be taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.checkpoints.durable import writing
from compress.errors import RequestError
from compress.evaluation.measures import Measures
from compress.reports.receipt import write_atomic
from compress.study.cells import Cell

GRID, ITEMS = "grid.jsonl", "items.parquet"
OK, FAILED, SKIPPED = "ok", "failed", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What became of one cell.

    Attributes:
        cell: the cell.
        key: its content.
        status: OK, FAILED (see `error`), or SKIPPED where the budget was spent.
        digest: of the pruned model's weights.
        scores: "perplexity" and "tasks" in CONTRACT's form.
        items: "perplexity" {spec: [loss of each window]} and "tasks" {task: {item: outcome}}.
        data: of the calibration set: "digest", "windows", "tokens", …
        error: one line.
        seconds: how long it took, walk and score; not in the grid, which must not depend on it.
    """

    cell: Cell
    key: str
    status: str = OK
    digest: str = ""
    scores: Mapping[str, Any] = field(default_factory=dict)
    items: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, cell: Cell, key: str, digest: str, found: Measures, **more: Any) -> Outcome:
        """The outcome of a cell that was scored."""
        return cls(cell, key, OK, digest, found.as_receipt(), found.as_items(), **more)

    def line(self, calib_format: str) -> dict[str, Any]:
        """The cell as a line of the grid; what isn't known is absent."""
        cell = self.cell
        known = {
            "model": cell.model,
            "calib": cell.calib,
            "format": calib_format,
            **cell.setting.as_dict(),
            "seed": cell.seed,
            "control": cell.control,
            "status": self.status,
            "digest": self.digest,
            **self.scores,
            "data": dict(self.data),
            "error": self.error,
            "key": self.key,
        }
        return {name: value for name, value in known.items() if value not in ("", {}, None)}


class Journal:
    """The finished cells of a study under way, a file each.

    Args:
        directory: where they lie; made if absent.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, outcome: Outcome) -> None:
        """Keep a finished cell; when this returns, it survives a crash."""
        kept = {
            "key": outcome.key,
            "status": outcome.status,
            "digest": outcome.digest,
            "scores": outcome.scores,
            "items": outcome.items,
            "error": outcome.error,
            "seconds": outcome.seconds,
        }
        path = self._path(outcome.key)
        with writing(path):
            write_atomic(path, json.dumps(kept, allow_nan=False) + "\n")

    def get(self, cell: Cell, key: str, data: Mapping[str, Any]) -> Outcome | None:
        """The scores of a cell of this content; None if nothing is known, or that it failed."""
        found = self._read(cell, key, data)
        return found if found is not None and found.status == OK else None

    def failure(self, cell: Cell, key: str, data: Mapping[str, Any]) -> Outcome | None:
        """How a cell failed; None if nothing is known of it."""
        found = self._read(cell, key, data)
        return found if found is not None and found.status == FAILED else None

    def _read(self, cell: Cell, key: str, data: Mapping[str, Any]) -> Outcome | None:
        path = self._path(key)
        if not path.is_file():
            return None
        return Outcome(cell, data=data, **json.loads(path.read_text(encoding="utf-8")))

    def take(self, study: Path) -> int:
        """Take the finished cells of another study over; returns how many.

        Raises:
            RequestError: there is no study.
        """
        taken = 0
        for line, items in read_study(study):
            if line["status"] != OK:
                continue
            path = self._path(line["key"])
            if not path.exists():
                scores = {k: line[k] for k in ("perplexity", "tasks") if k in line}
                kept = {"key": line["key"], "status": OK, "digest": line["digest"]}
                kept |= {"scores": scores, "items": items, "error": "", "seconds": 0.0}
                write_atomic(path, json.dumps(kept, allow_nan=False) + "\n")
                taken += 1
        return taken

    def _path(self, key: str) -> Path:
        return self._directory / f"{key.removeprefix('sha256:')[:32]}.json"


def write_grid(directory: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the lines of the grid, a cell each, in the order of the study."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    with writing(directory / GRID):
        write_atomic(directory / GRID, text)


def write_items(directory: Path, outcomes: Sequence[Outcome]) -> None:
    """Write every cell's outcome of every item: a row each.

    Columns: cell (line of the grid, from 0), kind ("perplexity" or "tasks"), name (spec or task),
    item (window number or key of the item), value (nats a token, or the score).
    """
    import pyarrow as arrow
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {n: [] for n in ("cell", "kind", "name", "item", "value")}
    for number, outcome in enumerate(outcomes):
        for kind, named in outcome.items.items():
            for name, values in named.items():
                pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
                for item, value in pairs:
                    row = (number, kind, name, str(item), float(value))
                    for column, part in zip(columns.values(), row):
                        column.append(part)
    types = [arrow.int32(), arrow.string(), arrow.string(), arrow.string(), arrow.float64()]
    arrays = [arrow.array(v, t) for v, t in zip(columns.values(), types)]
    with writing(directory / ITEMS):
        parquet.write_table(
            arrow.Table.from_arrays(arrays, names=list(columns)),
            directory / ITEMS,
            compression="zstd",
        )


def read_study(directory: str | Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Read a finished study: each line of its grid with the outcomes of its items.

    Raises:
        RequestError: the directory holds no study, or a damaged one.
    """
    from pyarrow import ArrowException, parquet

    place = Path(directory)
    try:
        text = (place / GRID).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        rows = parquet.read_table(place / ITEMS).to_pydict()
    except FileNotFoundError as error:
        raise RequestError(
            f"`{place}` is no study: it has no {Path(error.filename or GRID).name}",
            "name an OUT of `compress calib-study`",
        ) from error
    except (OSError, ValueError, ArrowException) as error:
        raise RequestError(f"`{place}` is a damaged study: {str(error)[:120]}") from error
    items: list[dict[str, Any]] = [{} for _ in lines]
    for cell, kind, name, item, value in zip(*rows.values()):
        named = items[cell].setdefault(kind, {})
        if kind == "perplexity":
            named.setdefault(name, []).append(value)
        else:
            named.setdefault(name, {})[item] = value
    return list(zip(lines, items))
