"""Pictures in tables: a column of files' bytes or paths, and a column of labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data import hub
from compress.data.images.pictures import FORMS, WHOLE, Pictures, same_names, split_of
from compress.errors import RequestError

_LABELS = ("label", "labels", "fine_label", "target", "class")
_IMAGES = ("image", "img", "picture", "pixel_values")


@dataclass(frozen=True)
class _Table:
    """Columns of one file or dataset, before their labels become numbers."""

    images: Any
    labels: list[Any]
    names: tuple[str, ...] | None
    where: str
    root: Path | None

    def read(self, row: int) -> bytes:
        cell = self.images[row]
        cell = cell.as_py() if hasattr(cell, "as_py") else cell
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            return ((self.root or Path()) / cell).read_bytes()
        return bytes(cell or b"")


class _TableReader:
    """Reads rows of several tables, one after another."""

    def __init__(self, tables: list[_Table]) -> None:
        self.tables = tables
        self.ends = np.cumsum([len(table.labels) for table in tables])

    def __call__(self, row: int) -> bytes:
        which = int(np.searchsorted(self.ends, row, side="right"))
        before = int(self.ends[which - 1]) if which else 0
        return self.tables[which].read(row - before)


def join_tables(tables: list[_Table]) -> Pictures:
    """Make one split of its tables; text labels are numbered in order of the alphabet."""
    places = [f"{table.where}, row {row}" for table in tables for row in range(len(table.labels))]
    labels = [label for table in tables for label in table.labels]
    names = tables[0].names
    empty = next((place for place, label in zip(places, labels) if label is None), None)
    if empty is not None:
        raise RequestError(f"{empty}: it has no label")
    if labels and isinstance(labels[0], str):
        names = tuple(sorted(set(labels)))
        numbers = {name: number for number, name in enumerate(names)}
        labels = [numbers[label] for label in labels]
    return Pictures(places, _TableReader(tables), np.array(labels, np.int64), names)


def from_parquet(path: Path, column: str | None) -> _Table:
    """Open a parquet file; RequestError where it has no column of images or labels."""
    import pyarrow.parquet as parquet
    import pyarrow.types as types

    try:
        table = parquet.read_table(path)
    except (ValueError, OSError) as error:
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RequestError(f"`{path}` is no readable parquet file: {text}") from error
    schema = table.schema
    can = [
        field.name
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    image = _choose_image(column, can, path)
    kinds = {
        field.name: types.is_integer(field.type) or types.is_string(field.type) for field in schema
    }
    label = _choose_label([n for n, fits in kinds.items() if fits and n != image], path)
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    named = features.get("info", {}).get("features", {}).get(label, {}).get("names")
    names = tuple(named) if named else None
    images = table.column(image)
    return _Table(images, table.column(label).to_pylist(), names, f"`{path}`", path.parent)


def _choose_image(column: str | None, can: list[str], where: object) -> str:
    if column is not None:
        if column not in can:
            raise RequestError(
                f"`{where}`: column `{column}` holds no image files",
                f"columns that may: {', '.join(can) or 'none'}",
            )
        return column
    likely = [name for name in _IMAGES if name in can]
    if likely or len(can) == 1:
        return (likely or can)[0]
    count = "no" if not can else "more than one"
    raise RequestError(
        f"`{where}` has {count} column of image files", f"name it as `{where}:COLUMN`"
    )


def _choose_label(can: list[str], where: object) -> str:
    likely = [name for name in _LABELS if name in can]
    if likely or len(can) == 1:
        return (likely or can)[0]
    raise RequestError(
        f"`{where}` has no column `label`", f"columns that could be it: {', '.join(can) or 'none'}"
    )


def from_saved(path: Path, column: str | None) -> dict[str, Pictures]:
    """Open a directory saved by `datasets`; RequestError as from_parquet."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (ValueError, FileNotFoundError, OSError) as error:
        text = str(error).splitlines()[0][:200]
        raise RequestError(f"`{path}` is no readable saved dataset: {text}") from error
    return _from_datasets(saved, column, str(path))


def from_hub(name: str, column: str | None) -> dict[str, Pictures]:
    """Open a data set of the Hub; RequestError where that can't be reached."""
    import datasets

    local = f"point to a local copy: {FORMS.removesuffix(' or a Hub id')}"
    if hub.is_offline():
        raise RequestError(f"there is no `{name}` here, and this run is offline", local)
    try:
        return _from_datasets(datasets.load_dataset(name), column, name)
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise RequestError(f"images `{name}` can't be read: {text}", local) from error


def _from_datasets(found: Any, column: str | None, where: str) -> dict[str, Pictures]:
    import datasets

    whole = found if isinstance(found, datasets.DatasetDict) else {WHOLE: found}
    splits: dict[str, Pictures] = {}
    for name, data in whole.items():
        split = split_of(name) or WHOLE
        if split in splits:
            raise RequestError(f"`{where}` has two splits for {split}")
        can = [n for n, f in data.features.items() if isinstance(f, datasets.Image)]
        can += [n for n, f in data.features.items() if getattr(f, "dtype", "") == "binary"]
        image = _choose_image(column, can, where)
        if isinstance(data.features[image], datasets.Image):
            data = data.cast_column(image, datasets.Image(decode=False))
        numbers = [n for n, f in data.features.items() if _is_label(f) and n != image]
        label = _choose_label(numbers, where)
        names = getattr(data.features[label], "names", None)
        table = _Table(
            _Column(data, image),
            list(data[label]),
            tuple(names) if names else None,
            f"`{where}`, split {name}",
            None,
        )
        splits[split] = join_tables([table])
    return same_names(splits)


def _is_label(feature: Any) -> bool:
    return hasattr(feature, "names") or str(getattr(feature, "dtype", "")).startswith(
        ("int", "uint", "string")
    )


class _Column:
    """One column of a dataset by row, read when asked."""

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name

    def __getitem__(self, row: int) -> Any:
        return self.data[row][self.name]

    def __len__(self) -> int:
        return len(self.data)
