"""Each kind of edit: the module that it makes, what it refuses, and what a model says of it."""

from __future__ import annotations

import edited_models
import pytest
import torch
import transformers
from edited_models import tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

import compress
import tiny_models
from compress.checkpoints import edits
from compress.errors import RequestError

Q = "model.layers.0.self_attn.q_proj"


def make(old: nn.Module, **fields: object) -> nn.Module:
    kind = edits.KINDS[fields.pop("kind")]
    kind.check(fields, "here")
    return kind.make(old, fields, "here")


def svd_fill(pair, matrix: torch.Tensor) -> None:
    """Fill a pair of full rank so that it stands for `matrix`, [out, in · kernel]."""
    u, s, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
    with torch.no_grad():
        pair.up.weight.copy_((u * s).reshape(pair.up.weight.shape))
        pair.down.weight.copy_(v.reshape(pair.down.weight.shape))


# lowrank


@pytest.mark.parametrize("bias", [True, False])
def test_full_rank_stands_for_the_linear(bias):
    old = nn.Linear(6, 9, bias=bias, dtype=torch.float64)
    new = make(old, kind="lowrank", rank=6)
    svd_fill(new, old.weight)
    if bias:
        new.up.bias.data = old.bias.data
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(new(x), old(x))
    torch.testing.assert_close(new.product(), old.weight.detach())
    assert (new.bias is None) == (not bias)
    assert new.weight is new.up.weight
    assert new.rank == 6


def test_full_rank_stands_for_conv1d_of_gpt2():
    old = Conv1D(9, 6).double()
    nn.init.normal_(old.bias)
    new = make(old, kind="lowrank", rank=6)
    svd_fill(new, old.weight.T)
    new.up.bias.data = old.bias.data
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(new(x), old(x))


@pytest.mark.parametrize("kernel", [1, 3])
def test_full_rank_stands_for_a_convolution(kernel):
    old = nn.Conv1d(4, 6, kernel, stride=2, padding=1, dilation=2, dtype=torch.float64)
    rank = min(6, 4 * kernel)
    new = make(old, kind="lowrank", rank=rank)
    svd_fill(new, old.weight.flatten(1))
    new.up.bias.data = old.bias.data
    x = torch.randn(2, 4, 17, dtype=torch.float64)
    torch.testing.assert_close(new(x), old(x))
    torch.testing.assert_close(new.product(), old.weight.detach())


@pytest.mark.parametrize(
    "old", [nn.Embedding(4, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1)]
)
def test_low_rank_of_something_else(old):
    with pytest.raises(RequestError, match="`here`"):
        make(old, kind="lowrank", rank=2)


def test_a_rank_above_the_smaller_side():
    with pytest.raises(RequestError, match="rank 7 exceeds its smaller side, 6"):
        make(nn.Linear(6, 9), kind="lowrank", rank=7)


# linear, conv, norm


def test_linear_keeps_what_is_left_out_and_the_class():
    assert make(nn.Linear(6, 9), kind="linear", out=4).weight.shape == (4, 6)
    assert make(nn.Linear(6, 9, bias=False), kind="linear", **{"in": 5}).bias is None
    narrow = make(Conv1D(9, 6), kind="linear", out=4)
    assert isinstance(narrow, Conv1D)
    assert narrow(torch.ones(2, 6)).shape == (2, 4)


def test_conv_keeps_its_geometry():
    old = nn.Conv2d(8, 12, (3, 5), stride=2, padding=(1, 2), dilation=1, groups=4)
    new = make(old, kind="conv", **{"in": 6, "out": 9, "groups": 3})
    assert new.weight.shape == (9, 2, 3, 5)
    x = torch.randn(1, 8, 11, 11)
    assert new(x[:, :6]).shape[2:] == old(x).shape[2:]
    with pytest.raises(RequestError, match="groups 4 don't divide `in` 6"):
        make(old, kind="conv", **{"in": 6, "out": 12})


@pytest.mark.parametrize(
    "old",
    [
        nn.LayerNorm(8, eps=1e-3),
        transformers.models.llama.modeling_llama.LlamaRMSNorm(8, eps=1e-3),
        nn.RMSNorm(8, eps=1e-3),
    ],
)
def test_a_narrow_norm_is_the_norm_of_that_width(old):
    new, x = make(old, kind="norm", width=5), torch.randn(3, 5)
    assert old.weight.shape == (8,)
    centred = x - x.mean(-1, keepdim=True) if isinstance(old, nn.LayerNorm) else x
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(new(x), wanted)


def test_a_narrow_batch_norm_has_narrow_statistics():
    old = nn.BatchNorm2d(8).eval()
    old.running_mean += 3
    new = make(old, kind="norm", width=5)
    assert {k: tuple(v.shape) for k, v in new.state_dict().items()} == {
        **dict.fromkeys(["weight", "bias", "running_mean", "running_var"], (5,)),
        "num_batches_tracked": (),
    }
    torch.testing.assert_close(new(torch.ones(1, 5, 2, 2)), torch.ones(1, 5, 2, 2))
    assert old.running_mean.tolist() == [3.0] * 8


@pytest.mark.parametrize("old", [nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Conv1d(4, 4, 1)])
def test_a_norm_edit_of_something_else(old):
    with pytest.raises(RequestError, match="`here`"):
        make(old, kind="norm", width=2)


# dense_mlp


def one_expert(arch: str):
    """A model whose only routed expert gets all the weight, and its block, expert and extras."""
    if arch == "mixtral":
        model = tiny("mixtral", num_local_experts=1, num_experts_per_tok=1)()
    elif arch == "gpt_oss":
        config = edited_models.gpt_oss().config
        config.num_local_experts = config.num_experts_per_tok = 1
        model = transformers.GptOssForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=2.0)  # large, so that the clamps bite
    else:
        model = tiny("qwen2_moe", num_experts=1, num_experts_per_tok=1, norm_topk_prob=True)()
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.shared_expert.down_proj.weight.zero_()
    return model.eval()


@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_dense_mlp_filled_from_the_only_expert_is_that_mixture(arch):
    model = one_expert(arch)
    wanted = edited_models.logits(model)
    experts = model.model.layers[1].mlp.experts
    width = experts.gate_up_proj.shape[2 if arch == "gpt_oss" else 1] // 2
    edits.apply(model, {"model.layers.1.mlp": {"kind": "dense_mlp", "width": width}})
    new = model.model.layers[1].mlp
    with torch.no_grad():
        if arch == "gpt_oss":
            new.gate_proj.weight.copy_(experts.gate_up_proj[0, :, ::2].T)
            new.up_proj.weight.copy_(experts.gate_up_proj[0, :, 1::2].T)
            new.down_proj.weight.copy_(experts.down_proj[0].T)
            new.gate_proj.bias.copy_(experts.gate_up_proj_bias[0, ::2])
            new.up_proj.bias.copy_(experts.gate_up_proj_bias[0, 1::2])
            new.down_proj.bias.copy_(experts.down_proj_bias[0])
        else:
            new.gate_proj.weight.copy_(experts.gate_up_proj[0, :width])
            new.up_proj.weight.copy_(experts.gate_up_proj[0, width:])
            new.down_proj.weight.copy_(experts.down_proj[0])
    torch.testing.assert_close(edited_models.logits(model), wanted, rtol=1e-4, atol=1e-4)


def test_the_router_loss_ends_with_the_last_router(tmp_path):
    model = tiny("mixtral", output_router_logits=True)()
    ids = torch.arange(8)[None]
    layers = [f"model.layers.{i}.mlp" for i in range(4)]
    edits.apply(model, {name: {"kind": "dense_mlp", "width": 8} for name in layers[:3]})
    assert model(ids, labels=ids).aux_loss is not None
    edits.apply(model, {layers[3]: {"kind": "dense_mlp", "width": 8}})
    assert torch.isfinite(model(ids, labels=ids).loss)
    compress.save(model, tmp_path / "out")
    assert torch.isfinite(compress.load(tmp_path / "out")(ids, labels=ids).loss)


# post_norm


def test_post_norm_is_its_formula():
    for arch, path, first, second in (
        ("llama", "model.layers.0", "input_layernorm", "post_attention_layernorm"),
        ("gpt2", "transformer.h.0", "ln_1", "ln_2"),
    ):
        model = tiny(arch)().eval()
        edits.apply(model, {path: {"kind": "post_norm"}})
        layer = model.get_submodule(path)
        attention = layer.self_attn if arch == "llama" else layer.attn
        seen = {}
        attention.register_forward_hook(lambda m, a, out, seen=seen: seen.update(out=out[0]))
        layer.register_forward_hook(
            lambda m, a, k, out, seen=seen: seen.update(x=a[0] if a else k["hidden_states"], y=out),
            with_kwargs=True,
        )
        edited_models.logits(model)
        with torch.no_grad():
            h = getattr(layer, first)(seen["x"] + seen["out"])
            assert torch.equal(getattr(layer, second)(h + layer.mlp(h)), seen["y"])


@pytest.mark.parametrize("arch", ["gemma2", "phi", "opt", "bert", "gpt_neox"])
def test_layers_of_other_code_are_refused(arch):
    model = tiny_models.build(arch)
    name = next(n for n, m in model.named_modules() if n.endswith(".0") and "layer" in n)
    with pytest.raises(RequestError, match=f"`{name}`"):
        edits.apply(model, {name: {"kind": "post_norm"}})
    assert not hasattr(model.config, "quantization_config")


# apply


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"kind": "lowrank"}, ["`rank`", "needs"]),
        ({"kind": "lowrank", "rank": 0}, ["`rank`", "0"]),
        ({"kind": "lowrank", "rank": True}, ["`rank`", "True"]),
        ({"kind": "lowrank", "rank": 4.0}, ["`rank`", "4.0"]),
        ({"kind": "lowrank", "rnk": 4, "rank": 4}, ["`rnk`"]),
        ({"kind": "linear", "out": "4"}, ["`out`", "'4'"]),
        ({"kind": "post_norm", "width": 3}, ["`width`"]),
        ({"kind": "nothing"}, ["nothing"]),
        ({"rank": 3}, ["None"]),
        ("lowrank", ["None"]),
    ],
)
def test_a_bad_edit_names_the_module_and_the_field(edit, words):
    model = tiny("llama")()
    with pytest.raises(RequestError) as caught:
        edits.apply(model, {Q: edit})
    for word in [f"`{Q}`", *words]:
        assert word in caught.value.message
    assert not hasattr(model.config, "quantization_config")


def test_an_unknown_module_suggests_the_nearest():
    with pytest.raises(RequestError, match="has no such module") as caught:
        edits.apply(tiny("llama")(), {Q + "j": {"kind": "lowrank", "rank": 2}})
    assert f"`{Q}`" in caught.value.hint


def test_one_bad_edit_undoes_the_others():
    model = tiny("llama")().eval()
    wanted, modules = edited_models.logits(model), dict(model.named_modules())
    with pytest.raises(RequestError, match="exceeds"):
        edits.apply(
            model,
            {
                "model.layers.0": {"kind": "post_norm"},
                Q: {"kind": "lowrank", "rank": 4},
                "model.layers.1.self_attn.q_proj": {"kind": "lowrank", "rank": 4000},
            },
        )
    assert torch.equal(edited_models.logits(model), wanted)
    assert dict(model.named_modules()) == modules


def test_tied_and_shared_modules_are_refused():
    model = tiny("qwen3")()
    with pytest.raises(RequestError, match="shared"):
        edits.apply(model, {"lm_head": {"kind": "lowrank", "rank": 4}})
    model = tiny("llama")()
    model.model.layers[1].mlp.gate_proj = model.model.layers[0].mlp.gate_proj
    with pytest.raises(RequestError, match=r"layers\.1\.mlp\.gate_proj"):
        edits.apply(model, {"model.layers.0.mlp.gate_proj": {"kind": "lowrank", "rank": 4}})


def test_names_resolve_with_and_without_the_prefix():
    model = tiny("llama")()
    edits.apply(model, {"layers.0.self_attn.q_proj": {"kind": "lowrank", "rank": 4}})
    assert list(model.config.quantization_config.modules) == [Q]
    base = model.model
    assert edits.resolve(base, [Q]) == {Q: "layers.0.self_attn.q_proj"}


def test_edits_add_up_and_replace_each_other(tmp_path):
    model = tiny("llama")()
    down, mlp = "model.layers.0.mlp.down_proj", "model.layers.0.mlp"
    edits.apply(model, {down: {"kind": "linear", "in": 40}})
    edits.apply(model, {down: {"kind": "lowrank", "rank": 4}})
    modules = model.config.quantization_config.modules
    assert modules == {down: {"kind": "lowrank", "rank": 4, "in": 40}}
    assert model.get_submodule(down).down.weight.shape == (4, 40)
    edits.apply(model, {down: {"kind": "lowrank", "rank": 3}, Q: {"kind": "lowrank", "rank": 2}})
    assert modules is not model.config.quantization_config.modules
    assert model.get_submodule(down).rank == 3
    edits.apply(model, {mlp: {"kind": "dense_mlp", "width": 10}})  # takes what lay inside along
    edits.apply(model, {"model.layers.0": {"kind": "post_norm"}})  # and this one doesn't
    assert set(model.config.quantization_config.modules) == {mlp, Q, "model.layers.0"}
    compress.save(model, tmp_path / "out")
    again = compress.load(tmp_path / "out")
    edits.apply(again, {mlp: {"kind": "dense_mlp", "width": 6}})
    compress.save(again, tmp_path / "out", overwrite=True)
    third = compress.load(tmp_path / "out")
    assert third.model.layers[0].mlp.up_proj.weight.shape == (6, 32)
    assert torch.equal(edited_models.logits(third), edited_models.logits(again.eval()))


def test_a_bias_that_still_fits_is_kept_and_frozen_stays_frozen():
    model = tiny("llama", attention_bias=True)()
    old = model.get_submodule(Q)
    old.requires_grad_(False)
    bias = old.bias.clone()
    edits.apply(model, {Q: {"kind": "lowrank", "rank": 4}})
    new = model.get_submodule(Q)
    assert torch.equal(new.bias, bias)
    assert not any(parameter.requires_grad for parameter in new.parameters())


def test_an_edited_model_keeps_its_dtype_and_works_on_meta():
    model = tiny("llama")().to(torch.bfloat16)
    edits.apply(model, {Q: {"kind": "lowrank", "rank": 4}})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.device("meta"):
        skeleton = transformers.LlamaForCausalLM(tiny_models.ARCHITECTURES["llama"]())
    edits.apply(skeleton, {Q: {"kind": "lowrank", "rank": 4}})
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_a_model_of_another_quantization_is_refused():
    model = tiny("llama")()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(RequestError, match="gptq"):
        edits.apply(model, {Q: {"kind": "lowrank", "rank": 4}})


def test_no_edits_leave_a_stock_model():
    model = tiny("llama")()
    edits.apply(model, {})
    assert not hasattr(model.config, "quantization_config")
