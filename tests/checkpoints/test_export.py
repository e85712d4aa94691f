"""Export to stock: what stock code computes, what it can't hold, what the numbers say."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import edited_models
import pytest
import torch
import transformers
from edited_models import CASES

import compress
import tiny_models
from compress.checkpoints import edits
from compress.checkpoints.export import export, to_stock
from compress.errors import RequestError

LOWRANK = [name for name in CASES if name.startswith("lowrank")]
BITMASK = [name for name in CASES if name.startswith("bitmask") and "lowrank" not in name]


@pytest.fixture
def saved(tmp_path):
    def save(name: str) -> Path:
        model = edited_models.make(name)
        compress.save(model, tmp_path / "edited")
        return tmp_path / "edited"

    return save


@pytest.mark.parametrize("name", LOWRANK)
def test_low_rank_multiplied_out_is_the_same_function(saved, name, tmp_path):
    done = export(saved(name), tmp_path / "stock")
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert "quantization_config" not in config
    auto = getattr(transformers, CASES[name].auto)
    stock, edited = auto.from_pretrained(tmp_path / "stock"), edited_models.make(name)
    assert set(done.modules) == set(CASES[name].edits)
    assert not hasattr(stock, "hf_quantizer")
    wanted = edited_models.logits(edited)
    torch.testing.assert_close(edited_models.logits(stock), wanted, rtol=1e-4, atol=1e-4)
    for module in CASES[name].edits:  # the weight is the product, by plain loops over ranks
        new, pair = stock.get_submodule(module), edited.get_submodule(module)
        down = pair.down.weight.double()
        slow = sum(
            pair.up.weight.double()[:, r].reshape(-1, *[1] * (down.dim() - 1)) * down[r][None]
            for r in range(pair.rank)
        )
        weight = new.weight.T if type(new).__name__ == "Conv1D" else new.weight
        torch.testing.assert_close(weight, slow.float(), rtol=1e-6, atol=1e-6)
        assert (new.bias is None) == (pair.bias is None)
        assert pair.bias is None or torch.equal(new.bias, pair.bias)


def test_a_process_without_this_package_opens_the_export(saved, tmp_path):
    export(saved("lowrank llama"), tmp_path / "stock")
    code = textwrap.dedent("""
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "compress":
                    raise ImportError(name)
        sys.meta_path.insert(0, Blocked())
        import torch, transformers
        model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
        torch.save(model(torch.arange(10)[None]).logits.detach(), sys.argv[1] + "/logits")
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "stock")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        wanted = edited_models.make("lowrank llama")(torch.arange(10)[None]).logits
    torch.testing.assert_close(
        torch.load(tmp_path / "stock" / "logits"), wanted, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "name",
    [n for n in CASES if not n.startswith(("lowrank", "bitmask", "scaled", "expert_list"))],
)
def test_what_stock_code_cannot_hold_is_named(saved, name, tmp_path):
    source = saved(name)
    with pytest.raises(RequestError) as caught:
        export(source, tmp_path / "stock")
    bad = [m for m, edit in CASES[name].edits.items() if edit["kind"] != "lowrank" or "mlp." in m]
    named = [module for module in bad if f"`{module}`" in caught.value.message]
    assert len(named) == min(len(bad), 4)
    assert len(bad) <= 4 or f"and {len(bad) - 4} more" in caught.value.message
    assert not (tmp_path / "stock").exists()
    assert not (tmp_path / "stock.partial").exists()


def test_sizes_that_the_config_spells_need_no_edit(tmp_path):
    model = edited_models.tiny("llama")()
    narrow = {"gate": {"out": 40}, "up": {"out": 40}, "down": {"in": 40}}
    edits.apply(
        model,
        {
            f"model.layers.{i}.mlp.{part}_proj": {"kind": "linear", **size}
            for i in range(4)
            for part, size in narrow.items()
        },
    )
    model.config.intermediate_size = 40
    compress.save(model, tmp_path / "edited")
    done = export(tmp_path / "edited", tmp_path / "stock")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert torch.equal(edited_models.logits(stock), edited_models.logits(model.eval()))
    assert done.modules == ()


def test_a_stock_checkpoint_is_copied_byte_for_byte(tmp_path):
    source = tiny_models.make_checkpoint("llama", tmp_path / "dense", max_shard_size="20KB")
    done = export(source, tmp_path / "copy")
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()} == files
    assert done.before == done.after
    assert "copied" in done.notes[0]


def test_the_numbers_are_those_of_the_files(saved, tmp_path):
    source = saved("lowrank llama")
    (source / "tokenizer.json").write_bytes(b"{}\r\n")
    done = export(source, tmp_path / "stock")
    for size, directory in ((done.before, source), (done.after, tmp_path / "stock")):
        stored = transformers.AutoModelForCausalLM.from_pretrained(directory).state_dict()
        assert size.parameters == sum(t.numel() for t in stored.values())
        assert size.bytes == (directory / "model.safetensors").stat().st_size
    assert done.as_dict()["after"] == {
        "parameters": done.after.parameters,
        "bytes": done.after.bytes,
    }
    assert json.loads(json.dumps(done.as_dict())) == done.as_dict()
    assert f"{done.after.parameters:,}" in done.render()
    assert all(len(line) <= 160 for line in done.render().splitlines()[1:])  # the first: paths
    assert (tmp_path / "stock" / "tokenizer.json").read_bytes() == b"{}\r\n"


def test_bad_requests_write_nothing(saved, tmp_path):
    source = saved("lowrank llama")
    with pytest.raises(RequestError, match="unknown form `stok`") as caught:
        export(source, tmp_path / "stock", to="stok")
    assert "`stock`" in caught.value.hint
    with pytest.raises(RequestError, match="is the source"):
        export(source, source, overwrite=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(RequestError, match="not empty"):
        export(source, tmp_path / "full")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edited", "full"]


def test_an_edit_in_the_way_leaves_the_model_in_memory_as_it_was():
    model = edited_models.make("lowrank llama")
    edits.apply(model, {"model.layers.3": {"kind": "post_norm"}})
    wanted = edited_models.logits(model)
    with pytest.raises(RequestError, match=r"`model\.layers\.3`"):
        to_stock(model)
    assert torch.equal(edited_models.logits(model), wanted)
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "LowRank"


def test_dequantize_of_transformers_multiplies_out(saved, tmp_path):
    model = compress.load(saved("lowrank gpt2"))
    wanted = edited_models.logits(model)
    model.dequantize()
    torch.testing.assert_close(edited_models.logits(model), wanted, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "plain")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(edited_models.logits(plain), edited_models.logits(model))
