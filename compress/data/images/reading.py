"""Where pictures and their labels come from.

A source is a directory of class folders, with or without a level of splits above them
(`train/cat/1.jpg` or `cat/1.jpg`); the same in a .zip archive; a parquet file, or a directory of
them named by split, whose image column holds the files' bytes; a directory saved by `datasets`; or
a Hub id. Nothing is decoded here: a picture is its file's bytes and a place that errors can name.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from compress.data import files
from compress.data.images.folders import FolderTree, ZipTree, from_tree
from compress.data.images.pictures import FORMS, WHOLE, Pictures, same_names, split_of
from compress.data.images.tables import from_hub, from_parquet, from_saved, join_tables
from compress.errors import RequestError


def open_pictures(name: str, column: str | None = None) -> dict[str, Pictures]:
    """Open a source of labelled pictures.

    Args:
        name: an existing path, or a Hub id.
        column: of the images, in a table; None takes the only column that can hold them.

    Returns:
        The splits that it has, by "train", "validation" and "test"; or "all" alone.

    Raises:
        RequestError: nothing there, an empty class folder, a table without images or labels, no
            network.
    """
    path = Path(name)
    if not files.exists(name):
        return from_hub(name, column)
    try:
        if path.is_dir():
            return _from_directory(path, column)
        if path.suffix == ".parquet":
            return {WHOLE: join_tables([from_parquet(path, column)])}
        if zipfile.is_zipfile(path):
            return from_tree(ZipTree(path))
    except OSError as error:
        raise RequestError(f"`{path}` can't be read: {error.strerror or error}") from error
    raise RequestError(f"`{path}` holds no labelled images", f"images come from {FORMS}")


def _from_directory(path: Path, column: str | None) -> dict[str, Pictures]:
    if files.is_saved(path):
        return from_saved(path, column)
    tables = sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
    if not tables:
        return from_tree(FolderTree(path))
    grouped: dict[str, list[Path]] = {}
    for table in tables:
        found = split_of(table.name) or split_of(table.parent.name)
        grouped.setdefault(found or WHOLE, []).append(table)
    if len(grouped) > 1 and WHOLE in grouped:
        raise RequestError(
            f"`{grouped[WHOLE][0]}` names no split, and other files of `{path}` do",
            "name every file by its split, such as train-0.parquet and test-0.parquet",
        )
    parts = {
        split: [from_parquet(table, column) for table in own] for split, own in grouped.items()
    }
    return same_names({split: join_tables(own) for split, own in parts.items()})
