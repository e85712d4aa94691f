"""Batches that a walk carries along without observing them; blocks that run again."""

import pytest
import torch

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import NotKept, open_writer, walk
from tiny_models import make_checkpoint


class Halving:
    """Scales every matrix by a stream's factor, and remembers what it was shown."""

    def __init__(self, factors):
        self.factors, self.rows = factors, {}

    def stages(self, block):
        return [[m.name for m in block.matrices]]

    def observe(self, matrix, inputs, keep):
        for stream, found in inputs.items():
            self.rows.setdefault((matrix.name, stream), []).append(found.clone())

    def edit(self, block, names, weights):
        for name in names:
            for stream in weights.streams:
                weights.view(name, stream).mul_(self.factors[stream])

    def finish(self, block, weights):
        pass


def batches(count, seed):
    g = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(4, 100, (1, 12), generator=g)} for _ in range(count)]


@pytest.mark.parametrize("propagate", ["edited", "dense"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_held_out_batches_change_nothing_and_are_the_only_ones_heard_of(
    family, propagate, tmp_path
):
    source = open_source(make_checkpoint(family, tmp_path / "in"))
    plain, carrying = Halving({"a": 0.9, "b": 0.5}), Halving({"a": 0.9, "b": 0.5})
    outputs = {}
    walk(source, batches(2, 0), plain, streams=("a", "b"), propagate=propagate)
    report = walk(
        source,
        batches(2, 0),
        carrying,
        streams=("a", "b"),
        propagate=propagate,
        held_out=batches(3, 1),
        on_output=lambda stream, batch, out: outputs.__setitem__((stream, batch), out.logits),
    )
    assert plain.rows.keys() == carrying.rows.keys()
    for key, found in plain.rows.items():
        assert all(torch.equal(a, b) for a, b in zip(found, carrying.rows[key], strict=True))
    heard = {key for key in outputs if key[1] >= 2}
    assert heard == {(s, i) for s in "ab" for i in (2, 3, 4)}
    assert propagate == "dense" or set(outputs) == heard
    assert report.passes > 0


def test_the_outputs_are_those_of_the_edited_model(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    outputs, held = {}, batches(2, 1)
    walk(
        source,
        [],
        Halving({"a": 0.5}),
        streams=("a",),
        held_out=held,
        on_output=lambda _, batch, out: outputs.__setitem__(batch, out.logits),
    )
    model = source.load()
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for matrix in read_anatomy(model).matrices:
            parameters[matrix.parameter].mul_(0.5)
        for index, batch in enumerate(held):
            torch.testing.assert_close(outputs[index], model(**batch).logits)


def test_a_block_that_runs_again_needs_a_writer(tmp_path, monkeypatch):
    from transformers import AlbertConfig, AlbertForMaskedLM
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.models.albert.modeling_albert import AlbertTransformer

    def in_turns(self, hidden_states, attention_mask=None, **kwargs):
        hidden_states = self.embedding_hidden_mapping_in(hidden_states)
        for group in (0, 1, 0):
            hidden_states = self.albert_layer_groups[group](hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    monkeypatch.setattr(AlbertTransformer, "forward", in_turns)
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=128, embedding_size=16, hidden_size=32, num_hidden_layers=2,
        num_hidden_groups=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    AlbertForMaskedLM(config).eval().save_pretrained(tmp_path / "in")
    source = open_source(tmp_path / "in")
    streams, heard = ("a", "b"), []
    given = {"streams": streams, "on_output": lambda stream, batch, out: heard.append(stream)}
    factors = {"a": 0.9, "b": 0.5}
    writers: dict[str, ShardWriter] = {s: open_writer(tmp_path / s, source) for s in streams}
    walk(source, batches(1, 0), Halving(factors), writers, **given)
    assert heard == ["a", "b"]
    with pytest.raises(NotKept, match="runs more than once"):
        walk(source, batches(1, 0), Halving(factors), **given)
