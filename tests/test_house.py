"""The house: which room may import which, and what a plain `import compress` brings in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import compress

ROOT = Path(compress.__file__).resolve().parent
# Left may import right, rooms of one set not each other (DESIGN's arrows).
ORDER = [
    {"cli"},
    {"demonstration", "diagnosis", "exporting", "recipes"},
    {"study"},
    {"spectra", "sparsity", "experts", "channels", "drought", "lowrank"},
    {"training"},
    {"jobs"},
    {"calibration"},
    {"evaluation"},
    {"reports"},
    {"checkpoints", "data"},
    {"numerics", "backends"},
]
OPEN = {"errors", "launcher", "progress", "__init__"}  # to all; they import nothing of the house
EXCEPTIONS = {("sparsity", "spectra")}
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Rooms that a file imports, inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "compress" else [
                f"compress.{alias.name}" for alias in node.names
            ]  # fmt: skip
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "compress" and len(parts) > 1:
                yield parts[1]


FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_go_to_the_right(path):
    here = room_of(path)
    for there in imports(path):
        if there in OPEN or there == here or there.startswith("__"):
            continue
        assert there in RANK, f"{there} is no room of the house"
        if here in OPEN or here == "__main__":
            assert (here, there) == ("__main__", "cli")
            continue
        right = RANK[here] < RANK[there] or (here, there) in EXCEPTIONS
        assert right, f"{here} may not import {there}"


def test_every_room_has_its_place():
    rooms = {p.name.removesuffix(".py") for p in ROOT.iterdir() if not p.name.startswith("__")}
    assert rooms - OPEN - {"shipped", "py.typed"} == set(RANK)


def test_import_compress_brings_in_neither_torch_nor_transformers():
    code = "import sys, compress; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "rich", "click", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize("name", sorted(set(compress.__all__) - {"__version__"}))
def test_every_public_name_is_a_documented_function(name):
    function = getattr(compress, name)
    assert callable(function)
    assert function.__doc__
    assert getattr(compress, name) is function  # also after its module was imported


def test_the_hearts_of_the_methods_are_public():
    assert callable(compress.numerics.allocate)
    assert callable(compress.spectra.shape_metrics)
    assert callable(compress.sparsity.wanda_mask)
    assert callable(compress.lowrank.truncate)
    with pytest.raises(AttributeError, match="no attribute `prune`"):
        compress.prune  # noqa: B018
