"""Weights without their zeros: sizes against the formula, equal bits, export and back."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import edited_models
import pytest
import safetensors.torch
import torch
import transformers
from edited_models import CASES, tiny

import compress
from compress.checkpoints import edits, zeros
from compress.checkpoints.census import census
from compress.checkpoints.export import export
from compress.checkpoints.packing import can_pack, expand, pack, packed_bytes
from compress.checkpoints.source import open_source
from compress.errors import RequestError

PACKED = [n for n in CASES if n.startswith("bitmask") and "lowrank" not in n]
Q = "model.layers.0.self_attn.q_proj"


def random(shape, density, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    return (torch.randn(shape, generator=generator).abs() + 0.1).to(dtype) * kept


# tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(5, 16), (8, 13), (4, 3, 2, 1), (3, 4, 24)])
def test_what_is_packed_comes_back(shape, density, dtype):
    weight = random(shape, density, dtype)
    values, mask = pack(weight)
    assert torch.equal(expand(values, mask, shape), weight)
    assert values.nbytes + mask.nbytes == packed_bytes(shape, dtype, int((weight != 0).sum()))
    if shape[-1] % 8 == 0:
        assert torch.equal(expand(values, mask), weight)
    # the bits, by a slow loop
    flat, bits = weight.flatten(), mask.flatten()
    assert [bool(bits[i // 8] >> (i % 8) & 1) for i in range(flat.numel())] == (flat != 0).tolist()
    assert torch.equal(values, flat[flat != 0])


def test_views_and_odd_values():
    weight = random((16, 8), 0.5, torch.float32).T
    weight[0, 0], weight[1, 1], weight[2, 2] = float("nan"), float("inf"), -0.0
    back = expand(*pack(weight))
    torch.testing.assert_close(back, weight, rtol=0, atol=0, equal_nan=True)
    assert not torch.signbit(back[2, 2])  # a negative zero comes back positive
    # loaders cast masks as they do weights
    values, mask = pack(weight)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(expand(values, mask.to(dtype)).isfinite(), weight.isfinite())


def test_a_bfloat16_matrix_takes_its_density_and_a_sixteenth(tmp_path):
    for density in (0.2, 0.3, 0.5):
        weight = random((512, 512), density, torch.bfloat16)
        values, mask = pack(weight)
        file = tmp_path / "packed"
        safetensors.torch.save_file({"w_values": values, "w_mask": mask}, file)
        real = float((weight != 0).float().mean())
        assert file.stat().st_size <= (real + 1 / 16 + 0.01) * weight.nbytes


def test_damaged_pairs_are_refused():
    values, mask = pack(random((4, 16), 0.5, torch.float32))
    with pytest.raises(ValueError, match="ones"):
        expand(values[1:], mask)
    with pytest.raises(ValueError, match="bits"):
        expand(values, mask, (4, 24))


def test_what_has_no_packed_form():
    assert can_pack((8, 13), torch.bfloat16)
    assert not can_pack((8, 13), torch.bfloat16, rows=True)
    assert not can_pack((3, 5), torch.bfloat16)
    assert not can_pack((0, 8), torch.bfloat16)
    assert not can_pack((8, 8), torch.int8)
    assert not can_pack((64,), torch.float32)


# models in memory


def test_edits_that_bitmask_does_not_fit():
    model = tiny("llama")()
    with pytest.raises(RequestError, match="can't replace a LlamaRMSNorm"):
        edits.apply(model, {"model.norm": {"kind": "bitmask"}})
    edits.apply(model, {Q: {"kind": "linear", "out": 24}})
    with pytest.raises(RequestError, match="kind `linear` already"):
        edits.apply(model, {Q: {"kind": "bitmask"}})
    with pytest.raises(RequestError, match="no such module"):
        edits.apply(model, {f"{Q}.up": {"kind": "bitmask"}})
    odd = tiny("mixtral", intermediate_size=52)()
    with pytest.raises(RequestError, match="multiple of 8"):
        edits.apply(odd, {"model.layers.0.mlp.experts": {"kind": "bitmask"}})


def test_a_trained_weight_is_packed_anew(tmp_path):
    model = edited_models.make("bitmask llama")
    with torch.no_grad():
        model.get_submodule(Q).weight.fill_(0.5)
        model.get_submodule("model.layers.2.mlp.down_proj").weight.zero_()
    compress.save(model, tmp_path / "out")
    again = compress.load(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("name", ["bitmask llama", "bitmask mixtral", "bitmask gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype(name, dtype, tmp_path):
    model = edited_models.make(name).to(dtype)
    compress.save(model, tmp_path / "out", max_shard_size="20KB")
    stored = open_source(tmp_path / "out")
    assert stored.dtype == dtype
    assert stored.parameters_on_disk() == sum(p.numel() for p in model.parameters())
    again = compress.load(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    full = compress.load(tmp_path / "out", dtype=torch.float32)
    for key, value in model.state_dict().items():
        assert torch.equal(full.state_dict()[key], value.float()), key


@pytest.mark.parametrize("gone", ["_values", "_mask", ""])
def test_half_a_pair_on_disk_is_an_error(gone, tmp_path):
    compress.save(edited_models.make("bitmask llama"), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    for suffix in ["_values", "_mask"]:
        if gone in ("", suffix):
            del tensors[f"{Q}.weight{suffix}"]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises((RequestError, RuntimeError), match=r"q_proj|conversion"):
        compress.load(tmp_path / "out")


# checkpoints


def sparse(arch: str, place: Path, dtype=torch.bfloat16, density=0.3, **options) -> Path:
    """A stock checkpoint whose blocks' matrices hold zeros."""
    model = tiny(arch)().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and any(part in name for part in ("layers.", ".h.")):
                parameter.copy_(random(parameter.shape, density, dtype, len(name)))
    model.save_pretrained(place, **options)
    (place / "tokenizer.json").write_bytes(b"{}\r\n")
    return place


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "mixtral", "qwen2_moe"])
def test_export_and_back_gives_the_same_file(arch, tmp_path):
    source = sparse(arch, tmp_path / "dense")
    done = export(source, tmp_path / "packed", to="bitmask")
    assert done.after.bytes < 0.75 * done.before.bytes
    assert done.after.parameters == done.before.parameters
    assert any("import compress" in note for note in done.notes)
    before, after = (census(open_source(tmp_path / p)) for p in ("dense", "packed"))
    assert before[:2] == after[:2]
    dense = transformers.AutoModelForCausalLM.from_pretrained(source)
    packed = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    for key, value in dense.state_dict().items():
        assert torch.equal(packed.state_dict()[key], value), key
    packed.save_pretrained(tmp_path / "again")
    weights = [(tmp_path / p / "model.safetensors").read_bytes() for p in ("packed", "again")]
    assert weights[0] == weights[1]
    back = export(tmp_path / "packed", tmp_path / "back")
    assert set(back.modules) == set(done.modules)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "quantization_config" not in config
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()


def test_sizes_from_shards(tmp_path):
    sparse("llama", tmp_path / "dense", max_shard_size="30KB")
    export(tmp_path / "dense", tmp_path / "packed", to="bitmask")
    stored = open_source(tmp_path / "packed")
    dense = safetensors.torch.load_file
    parts = {}
    for file in (tmp_path / "dense").glob("*.safetensors"):
        parts.update(dense(file))
    for name in stored.tensors:
        if name.endswith("_values"):
            base = name.removesuffix("_values")
            pair = stored.read([name, base + "_mask"]).values()
            density = float((parts[base] != 0).float().mean())
            size = sum(tensor.nbytes for tensor in pair)
            assert size <= (density + 1 / 16 + 1e-6) * parts[base].nbytes


def test_only_what_gets_smaller_is_packed(tmp_path):
    model = tiny("llama")().to(torch.bfloat16)
    with torch.no_grad():
        model.get_submodule(Q).weight.zero_()
    model.save_pretrained(tmp_path / "dense")
    done = export(tmp_path / "dense", tmp_path / "packed", to="bitmask")
    assert done.modules == (Q,)
    assert "27 with too few zeros stay dense" in done.notes[0]
    tiny("llama")().save_pretrained(tmp_path / "full")
    with pytest.raises(RequestError, match="no matrix with enough zeros"):
        export(tmp_path / "full", tmp_path / "no", to="bitmask")
    assert not (tmp_path / "no").exists()
    assert not (tmp_path / "no.partial").exists()


def test_other_edits_stay(tmp_path):
    model = edited_models.make("lowrank llama").to(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.up.weight.mul_(0)
        model.model.layers[1].mlp.up_proj.weight.mul_(0)
    compress.save(model, tmp_path / "edited")
    done = export(tmp_path / "edited", tmp_path / "packed", to="bitmask")
    assert set(done.modules) == {f"{Q}.up", "model.layers.1.mlp.up_proj"}
    packed = compress.load(tmp_path / "packed")
    before = compress.load(tmp_path / "edited")
    assert torch.equal(edited_models.logits(packed), edited_models.logits(before))
    stock = export(tmp_path / "packed", tmp_path / "stock")
    assert set(stock.modules) == {*done.modules, *CASES["lowrank llama"].edits} - {f"{Q}.up"}


@pytest.mark.parametrize("name", PACKED)
def test_files_to_dense_leave_no_trace(name, tmp_path):
    model = edited_models.make(name)
    compress.save(model, tmp_path / "packed")
    source = open_source(tmp_path / "packed")
    zeros.write_zeros(source, tmp_path / "dense", tmp_path / "pieces", "dense")
    stock = getattr(transformers, CASES[name].auto).from_pretrained(tmp_path / "dense")
    assert not hasattr(stock.config, "quantization_config")
    for key, value in model.state_dict().items():
        assert torch.equal(stock.state_dict()[key], value), key
    plain = CASES[name].build()
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    assert open_source(tmp_path / "dense").tensors.keys() == (
        open_source(tmp_path / "plain").tensors.keys()
    )


def test_a_stranger_fails_on_an_export(tmp_path):
    export(sparse("llama", tmp_path / "dense"), tmp_path / "packed", to="bitmask")
    code = textwrap.dedent("""
        import sys
        sys.modules["compress"] = None
        import transformers
        for cls in ("AutoModelForCausalLM", "AutoModel"):
            try:
                getattr(transformers, cls).from_pretrained(sys.argv[1])
            except RuntimeError as error:
                assert "mismatch" in str(error)
            else:
                raise SystemExit("loaded")
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "packed")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
