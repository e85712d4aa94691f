"""The kinds that move or scale norms: their formulas, and that a layer stays a layer."""

from __future__ import annotations

import copy
import io
import math
import pickle

import edited_models
import pytest
import torch
from edited_models import tiny

import compress
from compress.checkpoints import edits
from compress.checkpoints.edits.scaled_norm import can_fold, fold
from compress.errors import RequestError

LAYERS = {  # model -> its layer 1, the layer's attention, its two norms
    "llama": ("model.layers.1", "self_attn", "input_layernorm", "post_attention_layernorm"),
    "gpt2": ("transformer.h.1", "attn", "ln_1", "ln_2"),
    "gpt_neox": ("gpt_neox.layers.1", "attention", "input_layernorm", "post_attention_layernorm"),
}
KINDS = {
    "post_norm": {},
    "branch_norm": {},
    "deep_norm": {"layers": 7},
    "sandwich_norm": {"entry": 1},
    "layer_scale": {},
}


def build(arch):
    changes = {"use_parallel_residual": False} if arch == "gpt_neox" else {}
    return tiny(arch, **changes)().eval()


def edited(arch, kind):
    model = build(arch)
    name = LAYERS[arch][0]
    edits.apply(model, {name: {"kind": kind, **KINDS[kind]}})
    edited_models.fill(model, {name: {"kind": kind}})
    return model, model.get_submodule(name)


def reference(layer, kind, norm1, norm2, x, attend, mlp):
    """The layer's output by the formulas of the papers, from functions of hidden states."""
    if kind == "post_norm":
        h = norm1(x + attend(x))
        return norm2(h + mlp(h))
    if kind == "deep_norm":
        a = (2 * 7) ** 0.25
        h = norm1(a * x + attend(x))
        return norm2(a * h + mlp(h))
    if kind == "branch_norm":
        h = x + norm1(attend(x))
        return h + norm2(mlp(h))
    if kind == "layer_scale":
        h = x + layer.attention_scale * attend(norm1(x))
        return h + layer.mlp_scale * mlp(norm2(h))
    x = layer.entry_norm(x)
    h = x + layer.attention_out_norm(attend(norm1(x)))
    return h + layer.mlp_out_norm(mlp(norm2(h)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", LAYERS)
def test_a_layer_is_its_formula(arch, kind):
    model, layer = edited(arch, kind)
    _, attention, first, second = LAYERS[arch]
    seen = {}

    def keep(module, args, kwargs, output):
        seen[module] = (args, kwargs, output)

    for module in (layer, layer.get_submodule(attention)):
        module.register_forward_hook(keep, with_kwargs=True)
    edited_models.logits(model)
    args, kwargs, output = seen[layer]
    inner = dict(seen[layer.get_submodule(attention)][1])
    inner.pop("hidden_states", None)
    x = args[0] if args else kwargs["hidden_states"]
    mlp = layer.mlp
    norms = layer.get_submodule(first), layer.get_submodule(second)

    def attend(h):
        return layer.get_submodule(attention)(h, **inner)[0]

    with torch.no_grad():
        wanted = reference(layer, kind, *norms, x, attend, mlp)
        assert torch.equal(output, wanted)
        stock = x + attend(norms[0](x))
        stock = stock + mlp(norms[1](stock))
    assert not torch.allclose(output, stock, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", LAYERS)
def test_checkpointing_caches_and_copies_change_nothing(arch, kind):
    model, layer = edited(arch, kind)
    ids = edited_models.inputs(model)["input_ids"]
    wanted = edited_models.logits(model)
    for twin in (copy.deepcopy(model), pickle.load(io.BytesIO(pickle.dumps(model)))):
        assert torch.equal(edited_models.logits(twin), wanted)
        assert twin.get_submodule(LAYERS[arch][0]).__class__ is layer.__class__
    long = [
        model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use)
        for use in (False, True)
    ]
    assert torch.equal(*long)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)  # gpt2 has dropout
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_the_layers_outputs(kind):
    model, layer = edited("llama", kind)
    seen = {}
    layer.register_forward_hook(lambda m, a, out: seen.update(out=out))
    states = model(**edited_models.inputs(model), output_hidden_states=True).hidden_states
    assert len(states) == 5
    assert torch.equal(states[2], seen["out"])


def test_new_parameters_start_as_no_change_of_scale():
    model = build("llama")
    edits.apply(
        model,
        {
            "model.layers.0": {"kind": "sandwich_norm", "entry": 1},
            "model.layers.1": {"kind": "layer_scale"},
            "model.layers.2.self_attn.o_proj": {"kind": "normed_input"},
        },
    )
    first, second, third = model.model.layers[:3]
    for norm in (first.attention_out_norm, first.mlp_out_norm, first.entry_norm):
        assert norm.weight.tolist() == [1.0] * 32
        assert norm is not first.input_layernorm
    assert second.mlp_scale.tolist() == pytest.approx([1e-4] * 32)
    assert third.self_attn.o_proj.norm.weight.tolist() == [1.0] * 32


def test_a_normed_projection_keeps_its_weights():
    model, stock = build("gpt2"), build("gpt2")
    name = "transformer.h.0.attn.c_proj"
    stock.load_state_dict(model.state_dict())
    edits.apply(model, {name: {"kind": "normed_input"}})
    new, old = model.get_submodule(name), stock.get_submodule(name)
    x = torch.randn(3, 32)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(new(x), old(normed))
    assert new.weight is new.linear.weight


def test_a_lowrank_projection_inside_a_normed_one(tmp_path):
    model = build("llama")
    name = "model.layers.0.mlp.down_proj"
    edits.apply(model, {name: {"kind": "normed_input"}})
    edits.apply(model, {f"{name}.linear": {"kind": "lowrank", "rank": 4}})
    compress.save(model, tmp_path / "out")
    again = compress.load(tmp_path / "out")
    assert again.get_submodule(f"{name}.linear").rank == 4
    assert torch.equal(edited_models.logits(again), edited_models.logits(model))


# scaled_norm


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("depth", [2, 4])
def test_a_scaled_norm_and_its_fold(arch, depth):
    model = tiny(arch)().eval()
    name = next(n for n, _ in model.named_modules() if n.endswith(("0.input_layernorm", "0.ln_1")))
    norm, x = model.get_submodule(name), torch.randn(5, 32)
    with torch.no_grad():
        plain = norm(x)
        cls = type(norm)
        edits.apply(model, {name: {"kind": "scaled_norm", "depth": depth}})
        assert model.get_submodule(name) is norm
        assert isinstance(norm, cls)
        assert torch.equal(norm(x), plain * (1 / math.sqrt(depth)))
        before = {key: value.clone() for key, value in norm.state_dict().items()}
        assert can_fold(norm)
        assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
        assert fold(norm)
        assert type(norm) is cls
        torch.testing.assert_close(norm(x), plain / math.sqrt(depth), rtol=1e-6, atol=1e-6)
        if depth == 4 and arch != "gemma2":  # a power of two: no rounding
            assert torch.equal(norm(x), plain / 2)


def test_a_norm_without_weight_cannot_be_folded():
    norm = edits.KINDS["scaled_norm"].make(
        torch.nn.LayerNorm(8, elementwise_affine=False), {"depth": 2}, "here"
    )
    assert not can_fold(norm)
    assert not fold(norm)
    assert norm.depth == 2


def test_folding_rounds_a_half_precision_weight_once():
    norm = torch.nn.RMSNorm(64, dtype=torch.bfloat16)
    weight = torch.nn.init.normal_(norm.weight).detach().clone()
    edits.KINDS["scaled_norm"].make(norm, {"depth": 3}, "here")
    assert fold(norm)
    assert torch.equal(norm.weight, (weight.float() * (1 / math.sqrt(3))).bfloat16())


# what is refused


def test_parallel_residual_is_named():
    model = tiny("gpt_neox")()
    with pytest.raises(RequestError, match=r"`gpt_neox\.layers\.0`.*side by side"):
        edits.apply(model, {"gpt_neox.layers.0": {"kind": "sandwich_norm"}})


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("model.layers.0", "post_norm"), {"kind": "branch_norm"}),
        (("model.layers.0.input_layernorm", "scaled_norm"), {"kind": "norm", "width": 8}),
        (("model.layers.0.mlp.up_proj", "normed_input"), {"kind": "lowrank", "rank": 2}),
    ],
)
def test_an_edit_in_place_leaves_no_room_for_another(first, then):
    model = build("llama")
    name, kind = first
    edits.apply(model, {name: {"kind": kind, **({"depth": 2} if kind == "scaled_norm" else {})}})
    wanted = edited_models.logits(model)
    with pytest.raises(RequestError, match=f"`{name}`.*`{kind}`"):
        edits.apply(model, {name: then})
    assert torch.equal(edited_models.logits(model), wanted)


def test_a_failed_edit_takes_added_norms_away_again():
    model = build("llama")
    keys, wanted = set(model.state_dict()), edited_models.logits(model)
    with pytest.raises(RequestError, match="exceeds"):
        edits.apply(
            model,
            {
                "model.layers.0": {"kind": "sandwich_norm"},
                "model.layers.1.input_layernorm": {"kind": "scaled_norm", "depth": 2},
                "model.layers.1.self_attn.q_proj": {"kind": "lowrank", "rank": 400},
            },
        )
    assert set(model.state_dict()) == keys
    assert torch.equal(edited_models.logits(model), wanted)


@pytest.mark.parametrize("kind", ["scaled_norm", "normed_input"])
def test_modules_of_another_sort_are_refused(kind):
    fields = {"depth": 2} if kind == "scaled_norm" else {}
    for name in ("model.layers.0.mlp", "model.embed_tokens"):
        with pytest.raises(RequestError, match=f"`{name}`"):
            edits.apply(build("llama"), {name: {"kind": kind, **fields}})
