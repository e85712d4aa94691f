"""Plans find spectra that were measured before: by content, whoever wrote them, or say why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.spectra import decompose
from compress.spectra.cache import SpectraCache

PLAN = {"sparsity": 0.5, "method": "magnitude", "dry_run": True}
PRUNE = {"sparsity": 0.5, "method": "magnitude", "allocation": "alpha"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spectra"


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """A count of the decompositions."""
    found = []

    def watched(weight, exact=False, single=False):
        found.append(1)
        return real(weight, exact, single)

    real = decompose.gram_eigenvalues
    monkeypatch.setattr(decompose, "gram_eigenvalues", watched)
    return found


def entries(cache: Path) -> list[Path]:
    return sorted(p for p in cache.rglob("*") if p.is_file())


@pytest.fixture
def llama(checkpoint) -> Path:
    return checkpoint("llama")


@pytest.mark.parametrize("allocation", ["alpha", "farms"])
def test_a_second_plan_measures_nothing_and_is_the_same(allocation, llama, prune, measured):
    first = prune(llama, allocation=allocation, **PLAN)
    many = len(measured)
    assert many >= 28
    second = prune(llama, allocation=allocation, **PLAN)
    assert len(measured) == many
    assert second.plan.rows == first.plan.rows


def test_another_model_never_hits(llama, prune, measured, tmp_path):
    from safetensors.torch import load_file, save_file

    prune(llama, allocation="alpha", **PLAN)
    many = len(measured)
    other = Path(shutil.copytree(llama, tmp_path / "other"))  # the same names and shapes
    tensors = load_file(other / "model.safetensors")
    changed = [n for n, t in tensors.items() if t.dim() == 2 and ".layers." in n]
    for name in changed[:-1]:
        tensors[name] = tensors[name] * 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    prune(other, allocation="alpha", **PLAN)
    assert len(measured) == many + len(changed) - 1  # the one left alone is known


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("version", "28 entries were written by another version, and measured anew"),
        ("cut", "1 entry was damaged, and measured anew"),
        ("flipped", "1 entry was damaged, and measured anew"),
        ("emptied", "1 entry was damaged, and measured anew"),
    ],
)
def test_entries_that_cannot_be_trusted_are_said(
    damage, words, llama, prune, cache, monkeypatch, tmp_path
):
    first = prune(llama, tmp_path / "a", **PRUNE)
    if damage == "version":
        monkeypatch.setattr("compress.spectra.cache.MEASURES", 99)
    else:
        file = entries(cache)[0]
        whole = file.read_bytes()
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        file.write_bytes({"cut": whole[:-3], "flipped": flipped, "emptied": b""}[damage])
    again = prune(llama, tmp_path / "b", **PRUNE)
    assert again.plan.rows == first.plan.rows
    assert any(words in note for note in again.receipt.notes)
    third = prune(llama, tmp_path / "c", **PRUNE)
    assert not any("measured anew" in note for note in third.receipt.notes)
    assert len(entries(cache)) == 28


def test_a_cache_that_cannot_be_written_is_said_and_the_plan_made(llama, prune, cache, tmp_path):
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    result = prune(llama, tmp_path / "a", **PRUNE)
    assert any("couldn't be kept in the cache" in note for note in result.receipt.notes)


WRITER = """
import sys, numpy as np
from compress.spectra.cache import SpectraCache
cache = SpectraCache(sys.argv[1])
for turn in range(150):
    for name in "abc":
        cache.write(name, "x", np.full(500, ord(name), float))
        found = cache.read(name, "x")
        assert found is not None and (found == ord(name)).all(), (turn, name)
assert cache.problem is None and not cache.damaged
"""


def test_writers_at_the_same_time_never_spoil_an_entry(cache):
    command = [sys.executable, "-c", WRITER, str(cache.parent)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == ""
        assert writer.returncode == 0
    assert len(entries(cache)) == 3


def test_precision_is_part_of_the_key(cache):
    weight = torch.randn(80, 200, generator=torch.Generator().manual_seed(0))
    store = SpectraCache(cache.parent)
    fast, precise = decompose.Wanted(("alpha_ks",)), decompose.Wanted(("alpha_ks",), precise=True)
    one = decompose.decompose([("w", weight)], fast, store)[0]
    two = decompose.decompose([("w", weight)], precise, store)[0]
    assert not two.cached
    assert not torch.equal(one.eigenvalues, two.eigenvalues)
    # What double precision measured serves both.
    three = decompose.decompose([("w", weight)], fast, store)[0]
    assert three.cached
    assert torch.equal(three.eigenvalues, two.eigenvalues)


def test_a_dry_run_says_its_notes_too(llama, prune, cache, monkeypatch, capsys):
    said: list[str] = []
    prune(llama, allocation="alpha", **PLAN)
    monkeypatch.setattr("compress.spectra.cache.MEASURES", 99)
    prune(llama, allocation="alpha", say=said.append, **PLAN)
    assert any("28 entries were written by another version" in line for line in said)
