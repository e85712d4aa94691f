"""Speed and peak memory."""

from __future__ import annotations

import pytest
import torch

from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.evaluation.speed import anonymous_bytes, measure_speed, peak_memory
from tiny_models import make_checkpoint


def _model(arch, path):
    return open_source(make_checkpoint(arch, path / arch)).load()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_reading_and_writing_are_measured(arch, tmp_path):
    model = _model(arch, tmp_path)
    found = measure_speed(model, prompt=32, new=4, batch_size=2, repeats=2)
    entry = found.as_receipt()
    assert entry["prefill_tokens_per_s"] > entry["decode_tokens_per_s"] > 0
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    assert entry["peak_bytes"] >= sum(weights.values())


def test_a_model_that_cannot_write_has_no_such_key(tmp_path):
    found = measure_speed(_model("bert", tmp_path), prompt=16, new=2, repeats=1)
    assert found.decode_tokens_per_s is None
    assert "decode_tokens_per_s" not in found.as_receipt()
    assert found.prefill_tokens_per_s > 0


def test_a_prompt_beyond_the_models_limit_is_shortened(tmp_path):
    found = measure_speed(_model("gpt2", tmp_path), prompt=500, new=8, repeats=1)
    assert found.prompt + found.new == 128


def test_decoding_writes_what_generate_writes(tmp_path, monkeypatch):
    model = _model("llama", tmp_path)
    seen = []
    forward = model.forward

    def record(*args, **kwargs):
        seen.append(kwargs["input_ids"].clone())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", record)
    measure_speed(model, prompt=8, new=5, repeats=1)
    monkeypatch.setattr(model, "forward", forward)
    prompt, written = seen[0], torch.cat(seen[1:6], 1)
    stock = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(stock[:, 8:], written)


def test_sizes_below_one(tmp_path):
    with pytest.raises(RequestError, match="prompt"):
        measure_speed(_model("llama", tmp_path), prompt=0)


def test_the_meter_sees_memory_that_was_given_back():
    with peak_memory() as memory:
        block = torch.ones(16 * 2**20)  # 64 MB
        block += 1
        del block
    assert memory.growth > 40 * 2**20
    assert memory.peak >= memory.start > 0


def test_mapped_files_are_no_anonymous_memory(tmp_path):
    import mmap

    path = tmp_path / "big"
    path.write_bytes(bytes(64 * 2**20))
    before = anonymous_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[::4096]) == 0
        assert anonymous_bytes() - before < 32 * 2**20
