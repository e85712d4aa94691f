from __future__ import annotations

import pytest
import torch
from walk_methods import Halver, NormScaler, Watcher, plain_run, same_tensors, stored

from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.errors import RequestError
from tiny_models import BLOCKS, make_batch, make_checkpoint


class ScaleFrom(Watcher):
    """Scales a stream's matrices by its factor, from one of the blocks on."""

    def __init__(self, factors: dict[str, float], begin: dict[str, int]) -> None:
        super().__init__()
        self.factors, self.begin = factors, begin

    def edit(self, block, names, weights):
        for stream in weights.streams:
            if block.index >= self.begin[stream]:
                for name in names:
                    weights.view(name, stream).mul_(self.factors[stream])


def batches() -> list[dict]:
    return [make_batch(2, 16), make_batch(3, 16, seed=1, padded=True)]


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_streams_in_lockstep_equal_walks_of_their_own(arch, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path / "in"))
    factors, begin = {"a": 1.0, "b": 0.9, "c": 1.1}, {"a": 99, "b": 0, "c": 2}
    writers = {s: open_writer(tmp_path / s, source) for s in factors}
    together, outputs = ScaleFrom(factors, begin), {}
    walk(
        source,
        batches(),
        together,
        writers,
        streams=tuple(factors),
        on_output=lambda stream, batch, out: outputs.__setitem__((stream, batch), out.logits),
    )
    for stream in factors:
        alone, single = ScaleFrom(factors, begin), {}
        writer = open_writer(tmp_path / f"{stream}-alone", source)
        walk(
            source,
            batches(),
            alone,
            writer,
            streams=(stream,),
            on_output=lambda _, batch, out, single=single: single.__setitem__(batch, out.logits),
        )
        for name, seen in alone.inputs.items():
            rows = [inputs[stream] for inputs in together.inputs[name] if len(inputs[stream])]
            assert len(rows) == len(seen)
            assert all(torch.equal(a, b[stream]) for a, b in zip(rows, seen)), name
        for batch, logits in single.items():
            assert torch.equal(outputs[stream, batch], logits)
        for out, made in ((tmp_path / "x", writers[stream]), (tmp_path / "y", writer)):
            made.join(out / stream)
        assert same_tensors(stored(tmp_path / "x" / stream), stored(tmp_path / "y" / stream))


def test_the_untouched_stream_is_the_dense_model(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    method, outputs = ScaleFrom({"dense": 1.0, "pruned": 0.5}, {"dense": 99, "pruned": 0}), {}
    walk(
        source,
        batches(),
        method,
        streams=("dense", "pruned"),
        on_output=lambda stream, batch, out: outputs.__setitem__((stream, batch), out.logits),
    )
    _, want = plain_run(source.load(), batches(), [])
    assert all(torch.equal(outputs["dense", i], out.logits) for i, out in enumerate(want))
    assert not torch.equal(outputs["pruned", 0], want[0].logits)
    seen = method.inputs["model.layers.2.mlp.down_proj"]
    assert len(seen) == 2
    assert all(inputs.keys() == {"dense", "pruned"} for inputs in seen)


def test_equal_streams_are_computed_once_and_hold_no_copies(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    copies = []

    class Forking(ScaleFrom):
        def finish(self, block, weights):
            copies.append({stream: len(weights._own[stream]) for stream in weights.streams})

    method = Forking({"a": 1.0, "b": 1.0, "c": 0.9}, {"a": 99, "b": 0, "c": 2})
    report = walk(source, batches(), method, streams=("a", "b", "c"))
    # "b" writes what was there: no difference, no copy, no pass. "c" forks at block 2; the last
    # block isn't passed on.
    assert [c["b"] for c in copies] == [0] * BLOCKS
    assert [c["c"] for c in copies] == [0, 0, 7, 7]
    assert report.passes == (2 + 2 + (1 + 2) + 2) / BLOCKS
    inputs = method.inputs["model.layers.2.mlp.up_proj"][0]
    assert inputs["a"] is inputs["b"] is inputs["c"]


def test_one_stream_is_edited_in_place(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))

    class Checking(Halver):
        def edit(self, block, names, weights):
            before = weights.read(names[0]).data_ptr()
            super().edit(block, names, weights)
            assert weights.view(names[0]).data_ptr() == before
            assert not weights._own["pruned"]

    walk(source, batches(), Checking())


def test_a_dropped_stream_ends_and_the_others_go_on(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))

    class Dropping(ScaleFrom):
        def finish(self, block, weights):
            if block.index == 1:
                weights.drop("b")

    method, seen = Dropping({"a": 0.9, "b": 0.8}, {"a": 0, "b": 0}), []
    writers = {s: open_writer(tmp_path / s, source) for s in ("a", "b")}
    walk(
        source,
        batches(),
        method,
        writers,
        streams=("a", "b"),
        on_output=lambda stream, batch, out: seen.append(stream),
    )
    assert seen == ["a", "a"]
    assert set(method.inputs["model.layers.1.mlp.up_proj"][0]) == {"a", "b"}
    assert set(method.inputs["model.layers.2.mlp.up_proj"][0]) == {"a"}
    assert "model.layers.0" in writers["b"].parts()
    assert "model.layers.2" not in writers["b"].parts()
    alone = open_writer(tmp_path / "alone", source)
    walk(source, batches(), ScaleFrom({"a": 0.9}, {"a": 0}), alone, streams=("a",))
    for writer, out in ((writers["a"], "one"), (alone, "two")):
        writer.join(tmp_path / out)
    assert same_tensors(stored(tmp_path / "one"), stored(tmp_path / "two"))


def test_stages_see_each_streams_own_edits(tmp_path):
    """With stages, streams differ inside a block: each must collect with its own weights."""
    source = open_source(make_checkpoint("llama", tmp_path))
    roles = [("q", "k", "v"), ("o",), ("gate", "up", "down")]

    class Staged(ScaleFrom):
        def stages(self, block):
            return [[m.name for m in block.matrices if m.role in group] for group in roles]

    method = Staged({"a": 1.0, "b": 0.5}, {"a": 99, "b": 0})
    walk(source, batches(), method, streams=("a", "b"))
    o_inputs = method.inputs["model.layers.0.self_attn.o_proj"][0]
    assert not torch.equal(o_inputs["a"], o_inputs["b"])


def test_reading_costs_no_copy_and_a_parameter_can_be_written(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    norm = "model.layers.0.input_layernorm.weight"

    class NormDoubler(Halver):
        def edit(self, block, names, weights):
            weights.read(names[0], "b")
            assert not weights._own["b"]
            if block.index == 0:
                weights.parameter(norm, "b").mul_(2)

    writers = {s: open_writer(tmp_path / s, source) for s in ("a", "b")}
    walk(source, batches(), NormDoubler(), writers, streams=("a", "b"))
    for stream, writer in writers.items():
        writer.join(tmp_path / "out" / stream)
    before = stored(tmp_path / "in")
    assert same_tensors(stored(tmp_path / "out" / "a"), before)
    assert torch.equal(stored(tmp_path / "out" / "b")[norm], 2 * before[norm])


def test_wrong_names_are_named(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))

    class Wrong(Halver):
        def edit(self, block, names, weights):
            weights.view(names[0], "prunde")

    with pytest.raises(KeyError, match="pruned"):
        walk(source, [], Wrong())
    writer = open_writer(tmp_path / "parts", source)
    with pytest.raises(RequestError, match="other"):
        walk(source, [], Halver(), {"other": writer})


def test_resume_with_streams(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    factors, begin = {"dense": 1.0, "b": 0.9, "c": 1.1}, {"dense": 99, "b": 0, "c": 1}
    streams = tuple(factors)

    def run(name: str, stop: int | None, resume: bool) -> dict:
        def interrupt(block, stream, batch, output):
            if block.index == stop:
                raise KeyboardInterrupt

        writers = {s: open_writer(tmp_path / name / s, source) for s in ("b", "c")}
        method = ScaleFrom(factors, begin)
        try:
            walk(
                source,
                batches(),
                method,
                writers,
                streams=streams,
                resume=resume,
                on_block=interrupt,
            )
        except KeyboardInterrupt:
            return {}
        for stream, writer in writers.items():
            writer.join(tmp_path / name / "out" / stream)
        return {s: stored(tmp_path / name / "out" / s) for s in writers}

    want = run("whole", None, False)
    run("broken", 2, False)
    got = run("broken", None, True)
    assert all(same_tensors(got[s], want[s]) for s in ("b", "c"))


def test_data_dependent_edits_of_a_first_stream(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    report = walk(source, batches(), NormScaler(), streams=("pruned", "dense"))
    assert report.untouched == []
