from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import REST, BlockLoader, load_tensors, skeleton
from compress.checkpoints.source import Source, open_source
from compress.errors import RequestError
from tiny_models import ARCHITECTURES, make_checkpoint


def opened(source: Source, dtype: torch.dtype | None = None) -> BlockLoader:
    model = skeleton(source, dtype)
    blocks = [block.name for block in read_anatomy(model).blocks]
    return BlockLoader(source, model, blocks=blocks, dtype=dtype)


def parts(loader: BlockLoader) -> list[str]:
    return [REST, *(block.name for block in read_anatomy(loader.model).blocks)]


def without(tensors: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name != key}


def resave(directory: Path, change) -> Source:
    """Change a one-file checkpoint's tensors and open it."""
    file = directory / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    changed = change(tensors)
    tensors = tensors if changed is None else changed
    save_file(tensors, file, metadata={"format": "pt"})
    return open_source(directory)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_skeleton_has_no_weights_but_real_buffers(arch, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path, dtype=torch.bfloat16))
    model, whole = skeleton(source), source.load()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.training
    assert [(n, p.dtype, p.shape) for n, p in model.named_parameters()] == [
        (n, p.dtype, p.shape) for n, p in whole.named_parameters()
    ]
    wanted = dict(whole.named_buffers())
    assert dict(model.named_buffers()).keys() == wanted.keys()
    assert all(torch.equal(b, wanted[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["on disk", "fp16"])
def test_parts_loaded_one_by_one_are_what_from_pretrained_gives(arch, dtype, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path, max_shard_size="40KB"))
    loader, whole = opened(source, dtype), source.load(dtype=dtype)
    seen = set()
    loader.load_rest()
    for part in parts(loader):
        if part:
            loader.load(part)
        real = {n for n, p in loader.model.named_parameters() if not p.is_meta}
        assert real <= set(loader.names(part)) | set(loader.names(REST))
        for name, tensor in loader.tensors(part).items():
            assert torch.equal(tensor, whole.get_parameter_or_buffer(name)), name
            assert tensor.dtype == whole.get_parameter_or_buffer(name).dtype
            assert not tensor.requires_grad
            seen.add(name)
        if part:
            loader.unload(part)
            assert all(loader.model.get_parameter_or_buffer(n).is_meta for n in loader.names(part))
    assert seen == set(whole.state_dict())


def test_ties_are_ties(tmp_path):
    loader = opened(open_source(make_checkpoint("qwen3", tmp_path)))
    loader.load_rest()
    model = loader.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta


def test_a_tied_weight_stored_under_its_other_name(tmp_path):
    directory = make_checkpoint("qwen3", tmp_path)

    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    before = load_file(directory / "model.safetensors")["model.embed_tokens.weight"].clone()
    loader = opened(resave(directory, rename))
    loader.load_rest()
    assert torch.equal(loader.model.model.embed_tokens.weight, before)
    assert loader.model.lm_head.weight is loader.model.model.embed_tokens.weight


def test_a_base_checkpoint_without_the_prefix(tmp_path):
    directory = make_checkpoint("gpt2", tmp_path)

    def cut(tensors):
        return {name.removeprefix("transformer."): value for name, value in tensors.items()}

    loader = opened(resave(directory, cut))
    loader.load("transformer.h.1")
    whole = open_source(directory).load()
    for name, tensor in loader.tensors("transformer.h.1").items():
        assert torch.equal(tensor, whole.get_parameter(name))


def test_weights_that_are_never_stored_are_computed(tmp_path):
    config = transformers.MarianConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=3,
        decoder_start_token_id=1,
    )
    transformers.MarianMTModel(config).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    loader, whole = opened(source), source.load()
    loader.load_rest()
    name = "model.encoder.embed_positions.weight"
    assert name not in source.tensors
    assert torch.equal(loader.model.get_parameter(name), whole.get_parameter(name))


def test_misaligned_weights_are_moved(tmp_path):
    loader = opened(open_source(make_checkpoint("llama", tmp_path)))
    loader.load("model.layers.0")
    assert all(t.data_ptr() % 64 == 0 for t in loader.tensors("model.layers.0").values())


def test_edits_of_a_loaded_block_never_reach_the_file(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    digest = (tmp_path / "model.safetensors").read_bytes()
    loader = opened(source)
    loader.load("model.layers.0")
    for tensor in loader.tensors("model.layers.0").values():
        tensor.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == digest
    loader.load("model.layers.0")
    assert all(t.any() for t in loader.tensors("model.layers.0").values())


@pytest.mark.parametrize(
    ("arch", "key", "named"),
    [
        ("llama", "model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"),
        ("llama", "model.norm.weight", "model.norm.weight"),
        ("qwen3", "model.embed_tokens.weight", "embed_tokens"),
    ],
)
def test_a_missing_tensor_is_named_at_once(arch, key, named, tmp_path):
    source = resave(make_checkpoint(arch, tmp_path), lambda t: without(t, key))
    with pytest.raises(RequestError, match=named):
        opened(source)


def test_a_missing_expert_is_an_error(tmp_path):
    directory = make_checkpoint("mixtral", tmp_path)
    key = next(k for k in open_source(directory).tensors if ".1." in k and "experts.2.w1" in k)
    source = resave(directory, lambda t: without(t, key))
    loader = opened(source)
    with pytest.raises(RequestError, match=r"layers\.1\.mlp\.experts"):
        loader.load("model.layers.1")


def test_a_wrong_shape_is_named(tmp_path):
    def widen(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(50, 32)

    loader = opened(resave(make_checkpoint("llama", tmp_path), widen))
    with pytest.raises(RequestError, match=r"up_proj\.weight` is \(50, 32\).*\(48, 32\)"):
        loader.load("model.layers.0")


def test_tensors_that_the_class_does_not_use_are_ignored_as_from_pretrained_ignores_them(tmp_path):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    loader = opened(resave(make_checkpoint("llama", tmp_path), add))
    loader.load("model.layers.0")


def test_load_tensors_into_a_whole_model(tmp_path):
    """What a trainer's resume needs: fused experts and all, from stock names."""
    one = open_source(make_checkpoint("mixtral", tmp_path / "one", seed=0))
    two = open_source(make_checkpoint("mixtral", tmp_path / "two", seed=1))
    model = one.load()
    filled = load_tensors(model, two.read(two.tensors))
    want = two.load().state_dict()
    assert filled == set(want)
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())
    with pytest.raises(RequestError, match="nothing_like_it"):
        load_tensors(model, {"nothing_like_it.weight": torch.zeros(2)})


def test_a_config_of_another_model_is_refused(tmp_path):
    directory = make_checkpoint("llama", tmp_path / "a")
    other = make_checkpoint("gpt2", tmp_path / "b")
    shutil.copy(other / "config.json", directory / "config.json")
    with pytest.raises(RequestError, match="lacks"):
        opened(open_source(directory))
