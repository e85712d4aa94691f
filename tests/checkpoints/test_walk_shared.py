"""Blocks that share weights (zamba): loaded along, edited once, in every stream and mode."""

from __future__ import annotations

import pytest
import torch
from families import build, make_batches
from walk_methods import Halver, NormScaler, Watcher, plain_run, same_tensors, stored

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk


@pytest.fixture(scope="module", params=["zamba", "zamba2"])
def shared(request, tmp_path_factory):
    """(source, batches, kind)"""
    place = tmp_path_factory.mktemp(request.param) / "in"
    build(request.param).save_pretrained(place, max_shard_size="20KB")
    return open_source(place), make_batches(request.param), request.param


def finals(source, batches, method, writers=None, **options):
    """Walk; return what the model in the walk's memory returns, by stream and batch."""
    found = {}
    walk(
        source,
        batches,
        method,
        writers,
        on_output=lambda stream, batch, out: found.__setitem__((stream, batch), out.logits),
        **options,
    )
    return found


def read_back(source, directory, batches):
    """Return what a plain load of the written checkpoint returns."""
    (directory / "config.json").write_bytes((source.directory / "config.json").read_bytes())
    model = open_source(directory).load()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return [out.logits for out in plain_run(model, batches, [])[1]]


def test_later_blocks_get_what_the_first_was_edited_to(shared, tmp_path):
    source, batches, _ = shared
    writer = open_writer(tmp_path / "parts", source)
    got = finals(source, batches, NormScaler(), writer)
    writer.join(tmp_path / "out")
    want = read_back(source, tmp_path / "out", batches)
    assert all(torch.equal(got["pruned", i], out) for i, out in enumerate(want))
    before = finals(source, batches, Watcher())
    assert not torch.equal(got["pruned", 0], before["pruned", 0])


class HalfOfOne(Watcher):
    """Halves every matrix, in the stream `half` alone."""

    def edit(self, block, names, weights):
        for name in names:
            weights.view(name, "half").mul_(0.5)


def test_streams_keep_their_own_version_of_what_is_shared(shared, tmp_path):
    source, batches, _ = shared
    writers = {s: open_writer(tmp_path / s, source) for s in ("as is", "half")}
    got = finals(source, batches, HalfOfOne(), writers, streams=("as is", "half"))
    plain = finals(source, batches, Watcher())
    alone = finals(source, batches, Halver(), open_writer(tmp_path / "alone", source))
    for batch in range(len(batches)):
        assert torch.equal(got["as is", batch], plain["pruned", batch])
        assert torch.equal(got["half", batch], alone["pruned", batch])


def test_dense_propagation_sees_no_edit(shared, tmp_path):
    source, batches, _ = shared
    watcher, scaler = Watcher(), NormScaler()
    seen: dict = {}
    scaler.observe = lambda matrix, inputs, keep: seen.setdefault(matrix.name, []).append(inputs)
    walk(source, batches, watcher)
    walk(source, batches, scaler, open_writer(tmp_path / "p", source), propagate="dense")
    assert seen.keys() == watcher.inputs.keys()
    for name, each in seen.items():
        for one, two in zip(each, watcher.inputs[name], strict=True):
            assert torch.equal(one["pruned"], two["pruned"])


def test_an_interrupted_walk_goes_on_with_the_edited_weights(shared, tmp_path):
    source, batches, _ = shared

    class Stop(NormScaler):
        def finish(self, block, weights):
            if block.name.endswith(".2"):
                raise KeyboardInterrupt

    whole, torn = (open_writer(tmp_path / name, source) for name in ("whole", "torn"))
    walk(source, batches, NormScaler(), whole)
    with pytest.raises(KeyboardInterrupt):
        walk(source, batches, Stop(), torn)
    report = walk(source, batches, NormScaler(), torn, resume=True)
    assert report.resumed == 2
    for writer, name in ((whole, "a"), (torn, "b")):
        writer.join(tmp_path / name)
    assert same_tensors(stored(tmp_path / "a"), stored(tmp_path / "b"))


def test_without_data_it_is_edited_once(shared, tmp_path):
    source, _, kind = shared
    writer = open_writer(tmp_path / "parts", source)
    report = walk(source, [], Halver(), writer)
    writer.join(tmp_path / "out")
    old, new = stored(source.directory), stored(tmp_path / "out")
    assert old.keys() == new.keys()
    anatomy = read_anatomy(source.load())
    part = "shared_transf.self_attn.q_proj" if kind == "zamba" else "feed_forward.down_proj"
    names = [m.parameter for m in anatomy.matrices if part in m.name]
    assert len(names) == 1
    assert torch.equal(new[names[0]], old[names[0]] * 0.5)
    tied = [reason for name, reason in report.untouched if part in name]
    assert tied == [f"tied to `{names[0]}`"]
