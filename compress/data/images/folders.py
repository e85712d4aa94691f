"""Pictures in class folders, in a directory or a .zip archive."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.images.pictures import FORMS, WHOLE, Pictures, same_names, split_of
from compress.errors import RequestError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class FolderTree:
    """Names relative to a directory, and the files behind them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        found = [path for path in root.rglob("*") if not _is_hidden(path.relative_to(root).parts)]
        self.folders = sorted(p.relative_to(root).as_posix() for p in found if p.is_dir())
        self.files = sorted(p.relative_to(root).as_posix() for p in found if p.is_file())

    def place(self, name: str) -> str:
        """What an error calls a file or folder."""
        return str(self.root / name)

    def reader(self, names: Sequence[str]) -> Callable[[int], bytes]:
        """Row of `names` -> the bytes of that file."""
        return _FileReader(self.root, list(names))


class ZipTree:
    """The same in an archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with zipfile.ZipFile(root) as archive:
            names = [n for n in archive.namelist() if not _is_hidden(Path(n).parts)]
        self.files = sorted(name for name in names if not name.endswith("/"))
        above = {str(p.as_posix()) for name in self.files for p in Path(name).parents}
        self.folders = sorted(({n.rstrip("/") for n in names if n.endswith("/")} | above) - {"."})

    def place(self, name: str) -> str:
        """What an error calls a file or folder."""
        return f"{self.root}/{name}"

    def reader(self, names: Sequence[str]) -> Callable[[int], bytes]:
        """Row of `names` -> the bytes of that file."""
        return _ZipReader(self.root, list(names))


class _FileReader:
    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = root, names

    def __call__(self, row: int) -> bytes:
        return (self.root / self.names[row]).read_bytes()


class _ZipReader:
    """Reads members; each process opens the archive for itself."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = root, names
        self._archive: zipfile.ZipFile | None = None

    def __call__(self, row: int) -> bytes:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.root)
        return self._archive.read(self.names[row])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def from_tree(tree: FolderTree | ZipTree) -> dict[str, Pictures]:
    """Read class folders, below splits where every folder of the top level names one."""
    base = _single_root(tree)
    tops = _children(tree.folders, base)
    if not tops:
        raise RequestError(
            f"`{tree.root}` holds no class folders",
            f"images come from {FORMS}; a class folder is named by its class",
        )
    split_names = {top: split_of(Path(top).name) for top in tops}
    if not all(split_names.values()):
        return {WHOLE: _from_classes(tree, base)}
    found: dict[str, Pictures] = {}
    for top, split in split_names.items():
        assert split is not None
        if split in found:
            raise RequestError(f"`{tree.root}` has two folders for its {split} split")
        found[split] = _from_classes(tree, top)
    return same_names(found)


def _single_root(tree: FolderTree | ZipTree) -> str:
    """Go down while there is one folder and it holds folders of folders: archives often do that."""
    base = ""
    while True:
        inside = _children(tree.folders, base)
        deeper = inside and _children(tree.folders, inside[0])
        if len(inside) != 1 or not deeper or split_of(Path(inside[0]).name):
            return base
        base = inside[0]


def _children(folders: Iterable[str], base: str) -> list[str]:
    parent = Path(base) if base else Path(".")
    return [folder for folder in folders if Path(folder).parent == parent]


def _from_classes(tree: FolderTree | ZipTree, base: str) -> Pictures:
    classes = _children(tree.folders, base)
    if not classes:
        raise RequestError(f"`{tree.place(base)}` holds no class folders")
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        own = [name for name in tree.files if name.startswith(f"{folder}/")]
        own = [name for name in own if Path(name).suffix.lower() in SUFFIXES]
        if not own:
            raise RequestError(
                f"class folder `{tree.place(folder)}` holds no image",
                f"remove it, or fill it; images end in {', '.join(sorted(SUFFIXES))}",
            )
        names += own
        labels += [label] * len(own)
    return Pictures(
        [tree.place(name) for name in names],
        tree.reader(names),
        np.array(labels, np.int64),
        tuple(Path(folder).name for folder in classes),
    )
