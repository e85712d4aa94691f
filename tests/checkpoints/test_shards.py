from __future__ import annotations

import json

import pytest
import torch
from walk_methods import same_tensors, stored

from compress.checkpoints import shards
from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import REST, BlockLoader, skeleton
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer
from compress.errors import RunError
from tiny_models import ARCHITECTURES, make_checkpoint


def opened(directory, parts, **options) -> tuple[BlockLoader, ShardWriter]:
    source = open_source(directory)
    model = skeleton(source)
    blocks = [block.name for block in read_anatomy(model).blocks]
    loader = BlockLoader(source, model, blocks=blocks)
    return loader, ShardWriter(parts, model, loader.conversions, **options)


def write_all(loader: BlockLoader, writer: ShardWriter) -> list[str]:
    names = [REST, *(block.name for block in read_anatomy(loader.model).blocks)]
    for part in names:
        loader.load(part)
        writer.write(part, loader.tensors(part))
        if part:
            loader.unload(part)
    return names


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_joined_parts_load_as_the_stock_model(arch, tmp_path):
    directory = make_checkpoint(arch, tmp_path / "in")
    loader, writer = opened(directory, tmp_path / "parts")
    assert writer.parts() == set()
    names = write_all(loader, writer)
    assert writer.parts() == set(names)
    writer.join(tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert same_tensors(stored(tmp_path / "out"), stored(directory))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        directory / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("arch", ["llama", "qwen3", "mixtral"])
def test_shards_and_index_are_of_stock_form(arch, tmp_path):
    directory = make_checkpoint(arch, tmp_path / "in", max_shard_size="30KB")
    loader, writer = opened(directory, tmp_path / "parts", max_shard_size="30KB")
    write_all(loader, writer)
    writer.join(tmp_path / "out")
    got, want = (
        json.loads((d / "model.safetensors.index.json").read_text())
        for d in (tmp_path / "out", directory)
    )
    assert got["metadata"] == want["metadata"]
    assert got["weight_map"].keys() == want["weight_map"].keys()
    assert {f.name for f in (tmp_path / "out").glob("*.safetensors")} == set(
        got["weight_map"].values()
    )
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert file.stat().st_size < 40_000
    assert same_tensors(stored(tmp_path / "out"), stored(directory))
    another = open_writer(tmp_path / "parts", open_source(directory), max_shard_size="30KB")
    another.join(tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    for file in directory.glob("*.json"):
        if "index" not in file.name:
            (tmp_path / "out" / file.name).write_bytes(file.read_bytes())
    model, whole = open_source(tmp_path / "out").load(), open_source(directory).load()
    want_state = whole.state_dict()
    assert all(torch.equal(t, want_state[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("arch", ["llama", "mixtral", "gpt2"])
def test_a_part_read_back_loads_as_it_was_written(arch, tmp_path):
    loader, writer = opened(make_checkpoint(arch, tmp_path / "in"), tmp_path / "parts")
    block = read_anatomy(loader.model).blocks[1].name
    loader.load(block)
    edited = {name: value.mul_(2).clone() for name, value in loader.tensors(block).items()}
    writer.write(block, edited)
    loader.unload(block)
    loader.load(block, writer.read(block))
    assert same_tensors(loader.tensors(block), edited)


def test_notes_travel_with_a_part(tmp_path):
    loader, writer = opened(make_checkpoint("llama", tmp_path / "in"), tmp_path / "parts")
    loader.load("model.layers.0")
    writer.write("model.layers.0", loader.tensors("model.layers.0"), {"edited": ["a"]})
    assert writer.note("model.layers.0") == {"edited": ["a"]}
    writer.remove("model.layers.0")
    assert writer.parts() == set()


def test_a_part_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """The file has its name only after its bytes are synced, the directory is synced after."""
    loader, writer = opened(make_checkpoint("llama", tmp_path / "in"), tmp_path / "parts")
    loader.load("model.layers.0")
    tensors = loader.tensors("model.layers.0")
    steps = []
    sync, replace = shards.sync, shards.os.replace

    def record_sync(path):
        steps.append(("sync", path.name, writer.parts()))
        sync(path)

    def record_replace(old, new):
        steps.append(("rename", old.name, writer.parts()))
        replace(old, new)

    monkeypatch.setattr(shards, "sync", record_sync)
    monkeypatch.setattr(shards.os, "replace", record_replace)
    writer.write("model.layers.0", tensors)
    kinds = [(kind, parts) for kind, _, parts in steps]
    assert kinds == [("sync", set()), ("rename", set()), ("sync", {"model.layers.0"})]
    assert steps[0][1] == steps[1][1]
    assert steps[2][1] == "parts"


def test_a_failed_write_leaves_nothing_and_a_full_disk_says_so(tmp_path, monkeypatch):
    loader, writer = opened(make_checkpoint("llama", tmp_path / "in"), tmp_path / "parts")
    loader.load("model.layers.0")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "sync", full)
    with pytest.raises(RunError, match="no space left"):
        writer.write("model.layers.0", loader.tensors("model.layers.0"))
    assert list((tmp_path / "parts").iterdir()) == []


def test_leftovers_of_a_killed_writer_are_no_parts_and_go(tmp_path):
    directory = make_checkpoint("llama", tmp_path / "in")
    (tmp_path / "parts").mkdir()
    for name in ("model.layers.0.tmp", ".tmpAbC123"):
        (tmp_path / "parts" / name).write_bytes(b"half")
    _, writer = opened(directory, tmp_path / "parts")
    assert writer.parts() == set()
    assert list((tmp_path / "parts").iterdir()) == []


def test_stock_names_do_not_depend_on_what_was_loaded_last(tmp_path):
    """A partial load by a mapping of its own leaves the model with what that part alone needed."""
    directory = make_checkpoint("mixtral", tmp_path / "in")
    loader, writer = opened(directory, tmp_path / "parts")
    loader.load("model.layers.1")
    loader.model._weight_conversions = []  # as after norms only
    stock = writer.stock(loader.tensors("model.layers.1"))
    want = {n: t for n, t in stored(directory).items() if n.startswith("model.layers.1.")}
    assert same_tensors(stock, want)
