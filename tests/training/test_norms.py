"""Placement of norms: which layers, what they start as, how they save, and what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import compress
import tiny_models
from compress.checkpoints import edits
from compress.errors import RequestError
from compress.training.norms import NORMS, fold_scaled_norms, place_norms, placement_of

MOVED = [name for name in NORMS if name not in ("pre", "lns", "sub-ln")]
STOCK = ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox"]


def build(arch="llama", *, layers=4, width=32, std=0.2, seed=0, filled=True):
    config = {**tiny_models.ARCHITECTURES, **tiny_models.MORE_ARCHITECTURES}[arch]()
    config.update({"num_hidden_layers": layers, "initializer_range": std})
    config.update({"hidden_size": width, "use_cache": False})
    if arch == "gpt_neox":
        config.use_parallel_residual = False
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * layers
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return (tiny_models.fill(model, seed) if filled else model).eval()


@torch.no_grad()
def logits(model):
    return model(**tiny_models.make_batch()).logits


def layers_of(model):
    return list(placement_of(model).layers)


# which layers


@pytest.mark.parametrize(
    ("layers", "fraction", "post"),
    [(12, 0.25, 3), (24, 0.25, 6), (32, 0.0625, 2), (10, 0.29, 2), (100, 0.29, 29), (3, 0.3, 0)],
)
def test_mix_is_post_in_the_first_floor_alpha_l_layers(layers, fraction, post):
    model = build(layers=layers)
    placed = place_norms(model, "mix", fraction)
    assert list(placed.layers) == ["post"] * post + ["pre"] * (layers - post)
    assert placed.as_receipt() == {
        "norm": "mix",
        "layers": list(placed.layers),
        "post_fraction": fraction,
    }


@pytest.mark.parametrize("arch", STOCK)
def test_mix_of_none_is_the_stock_model_and_mix_of_all_is_post(arch):
    stock, none, every, post = (build(arch) for _ in range(4))
    assert place_norms(none, "mix", 0.0).warnings == ()
    assert torch.equal(logits(none), logits(stock))
    assert not hasattr(none.config, "quantization_config")
    place_norms(every, "mix", 1.0)
    place_norms(post, "post")
    assert torch.equal(logits(every), logits(post))
    assert every.config.quantization_config.modules == post.config.quantization_config.modules
    assert not torch.equal(logits(every), logits(stock))


def test_pre_is_no_edit():
    model, stock = build(), build()
    assert place_norms(model, "pre").layers == ("pre",) * 4
    assert torch.equal(logits(model), logits(stock))
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", STOCK)
def test_every_placement_on_every_stock_family(arch, norm, tmp_path):
    model = build(arch)
    stock = logits(model)
    placed = place_norms(model, norm)
    assert len(placed.layers) == 4
    assert torch.isfinite(logits(model)).all()
    assert torch.equal(logits(model), stock) == (norm == "pre")
    compress.save(model, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    assert placement_of(again) == placement_of(model)
    before = {name: parameter.clone() for name, parameter in again.named_parameters()}
    ids = tiny_models.make_batch()["input_ids"]
    optimizer = torch.optim.SGD(again.parameters(), lr=1.0)
    again.train()(ids, labels=ids).loss.backward()
    optimizer.step()
    still = [n for n, p in again.named_parameters() if torch.equal(p, before[n])]
    # softmax can't see a key's bias, and qwen's q/k norms aside nothing may stay
    assert all("bias" in name for name in still), still


def test_peri_norms_the_embedding_once():
    model = build()
    place_norms(model, "peri")
    assert [layer.normalises_entry for layer in model.model.layers] == [True] + [False] * 3
    seen = {}
    model.model.layers[0].entry_norm.register_forward_hook(lambda m, a, out: seen.update(a=a[0]))
    logits(model)
    tokens = tiny_models.make_batch()["input_ids"]
    assert torch.equal(seen["a"], model.model.embed_tokens(tokens))


# LayerNorm Scaling


def scales(model):
    return {
        name: module.depth for name, module in model.named_modules() if hasattr(module, "depth")
    }


@pytest.mark.parametrize("arch", [*STOCK, "gemma2", "phi", "opt", "deepseek_v3", "olmo2", "t5"])
def test_lns_scales_the_norms_of_branches_by_the_layers_number_and_no_others(arch):
    model = tiny_models.build(arch)
    place_norms(model, "lns")
    anatomy = compress.checkpoints.anatomy.read_anatomy(model)
    found = scales(model)
    assert set(found.values()) == {1, 2, 3, 4}
    for name, depth in found.items():
        block = next(b for b in anatomy.blocks if name.startswith(f"{b.name}."))
        assert depth == block.index + 1
    left = {n for b in anatomy.blocks for n in b.norms} - set(found)
    inside = ("q_norm", "k_norm", "q_a_layernorm", "kv_a_layernorm")
    assert all(name.endswith(inside) for name in left)
    assert {n for n in found if n.endswith(inside)} == set()


def test_lns_is_its_formula():
    model = build("gpt2")
    layer = model.transformer.h[2]
    x = torch.randn(2, 3, 32)
    plain = layer.ln_1(x), layer.ln_2(x)
    place_norms(model, "lns")
    for norm, out in zip((layer.ln_1, layer.ln_2), plain):
        torch.testing.assert_close(norm(x), out / math.sqrt(3))


FRESH = """
import sys, torch, transformers
assert "compress" not in sys.modules
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[3])
"""


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_folded_lns_is_a_stock_checkpoint_with_the_same_logits(arch, tmp_path):
    model = tiny_models.build(arch)
    place_norms(model, "lns")
    wanted, keys = logits(model), set(tiny_models.build(arch).state_dict())
    assert fold_scaled_norms(model) == []
    assert torch.allclose(logits(model), wanted, rtol=0, atol=1e-5)
    compress.save(model, tmp_path / "out")
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    torch.save(tiny_models.make_batch()["input_ids"], tmp_path / "ids")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert set(again.state_dict()) == keys
    assert placement_of(again).norm == "pre"
    if arch == "llama":  # in a process without this package
        arguments = [str(tmp_path / name) for name in ("out", "ids", "logits")]
        subprocess.run(
            [sys.executable, "-c", FRESH, *arguments],
            check=True,
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        stranger = torch.load(tmp_path / "logits")
        assert torch.equal(stranger, logits(again))
        assert torch.allclose(stranger, wanted, rtol=0, atol=1e-5)


def test_a_folded_checkpoint_goes_on_from_the_explicit_scale(tmp_path):
    model = build()
    place_norms(model, "lns")
    wanted = logits(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    fold_scaled_norms(model)
    compress.save(model, tmp_path / "out")
    again = compress.load(tmp_path / "out")
    placed = place_norms(again, "lns")
    assert placed.warnings == ()
    assert placed.norm == "lns"
    assert torch.allclose(logits(again), wanted, rtol=0, atol=1e-5)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-6, atol=0)
    fold_scaled_norms(again)
    assert torch.allclose(logits(again), wanted, rtol=0, atol=1e-5)


def test_folding_keeps_other_edits(tmp_path):
    model = build()
    edits.apply(model, {"model.layers.0.mlp.up_proj": {"kind": "lowrank", "rank": 4}})
    place_norms(model, "lns")
    wanted = logits(model)
    fold_scaled_norms(model)
    compress.save(model, tmp_path / "out")
    again = compress.load(tmp_path / "out")
    assert set(again.config.quantization_config.modules) == {"model.layers.0.mlp.up_proj"}
    assert torch.allclose(logits(again), wanted, rtol=0, atol=1e-5)


def test_exported_lns_is_stock(tmp_path):
    model = build()
    place_norms(model, "lns")
    compress.save(model, tmp_path / "in")
    done = compress.export(tmp_path / "in", tmp_path / "out")
    assert len(done.modules) == 8
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(again.config, "quantization_config")
    assert torch.allclose(logits(again), logits(model), rtol=0, atol=1e-5)


# the start


def residual_growth(norm, fraction=0.25):
    """Variance of the last layer's output over that of the first layer's."""
    model = build(layers=16, width=64, std=0.02, filled=False)
    place_norms(model, norm, fraction)
    variances = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, a, out: variances.append(float(out.var())))
    logits(model)
    return variances[-1] / variances[0]


def test_the_residual_streams_variance_grows_in_the_papers_order():
    pre, lns, mix, post = (residual_growth(norm) for norm in ("pre", "lns", "mix", "post"))
    assert pre > 1.1 * lns
    assert lns > mix
    assert mix > post
    assert post == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("arch", STOCK)
def test_deepnorm_starts_with_its_gains(arch):
    model = build(arch, layers=6, width=64, filled=False)
    model.eval()
    place_norms(model, "deepnorm", fresh=True, seed=3)
    again = build(arch, layers=6, width=64, filled=False)
    place_norms(again, "deepnorm", fresh=True, seed=3)
    assert torch.equal(logits(model), logits(again))
    beta, seen = (8 * 6) ** -0.25, 0
    for block in compress.checkpoints.anatomy.read_anatomy(model).blocks[:2]:
        layer = model.get_submodule(block.name)
        assert layer.residual_weight == pytest.approx((2 * 6) ** 0.25)
        for matrix in block.matrices:
            weight = dict(model.named_parameters())[matrix.parameter]
            weight = compress.checkpoints.anatomy.matrix_view(weight, matrix)
            parts = {matrix.role: weight}
            if matrix.role == "qkv" and matrix.transposed:
                parts = dict(zip("qkv", weight.chunk(3)))
            elif matrix.role == "qkv":
                heads = weight.unflatten(0, (model.config.num_attention_heads, 3, -1))
                parts = {name: heads[:, i].flatten(0, 1) for i, name in enumerate("qkv")}
            for role, part in parts.items():
                gain = 1.0 if role in "qk" else beta
                expected = gain * math.sqrt(2 / sum(part.shape))
                found = float(part.detach().std())
                assert found == pytest.approx(expected, rel=0.1), (matrix.name, role)
                seen += 1
    assert seen == 2 * (6 if arch.startswith("gpt") else 7)


def test_subln_starts_with_its_gain():
    model = build(layers=6, width=64, filled=False)
    place_norms(model, "sub-ln", fresh=True)
    weight = model.model.layers[0].mlp.down_proj.linear.weight
    gain = math.sqrt(math.log(12))
    expected = gain * math.sqrt(2 / sum(weight.shape))
    assert float(weight.detach().std()) == pytest.approx(expected, rel=0.1)


def test_trained_weights_are_kept():
    for norm in NORMS:
        model, stock = build(), build()
        place_norms(model, norm)
        ours = model.state_dict()
        for name, value in stock.state_dict().items():
            inner = name.replace(".weight", ".linear.weight")
            assert torch.equal(ours[name if name in ours else inner], value), (norm, name)


# going on


def train(model, steps, first=0):
    """Plain SGD with momentum from zero state, on rows that depend on the step alone."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for step in range(first, first + steps):
        ids = tiny_models.make_batch(seed=step)["input_ids"]
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


RESUME = """
import sys, torch
sys.path[:0] = sys.argv[3:]
import compress, test_norms, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
test_norms.place_norms(model, "mix")
test_norms.train(model, 2, first=2)
torch.save(test_norms.logits(model), sys.argv[2])
"""


@pytest.mark.parametrize("norm", [*MOVED, "lns", "sub-ln"])
def test_saved_and_trained_on_is_trained_on(norm, tmp_path):
    model = build()
    place_norms(model, norm)
    train(model, 2)
    compress.save(model, tmp_path / "half")
    again = compress.load(tmp_path / "half")
    place_norms(again, norm)  # stands as asked already
    wanted = logits(train(model, 2, first=2))
    assert torch.equal(logits(train(again, 2, first=2)), wanted)
    if norm == "mix":
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), str(here.parent.parent)]
        subprocess.run(
            [sys.executable, "-c", RESUME, str(tmp_path / "half"), str(tmp_path / "out"), *paths],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        assert torch.equal(torch.load(tmp_path / "out"), wanted)


# what is refused, and warned of


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan")])
def test_a_fraction_outside_zero_to_one(fraction):
    with pytest.raises(RequestError, match="from 0 to 1"):
        place_norms(build(), "mix", fraction)


def test_an_unknown_placement_suggests_the_nearest():
    with pytest.raises(RequestError, match="`sandwhich`") as caught:
        place_norms(build(), "sandwhich")
    assert "`sandwich`" in caught.value.hint


@pytest.mark.parametrize("norm", MOVED)
@pytest.mark.parametrize(
    ("arch", "module"),
    [
        ("gemma2", "model.layers.0"),
        ("phi", "model.layers.0"),
        ("falcon", "transformer.h.0"),
        ("bert", "bert.encoder.layer.3"),
        ("t5", "decoder.block.0"),
    ],
)
def test_layers_whose_norms_cannot_be_placed_are_named(arch, module, norm):
    model = tiny_models.build(arch)
    keys = set(model.state_dict())
    with pytest.raises(RequestError, match=f"`{module}`"):
        place_norms(model, norm)
    assert set(model.state_dict()) == keys
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("norm", MOVED)
def test_parallel_residual_is_refused(norm):
    model = tiny_models.build("gpt_neox")
    with pytest.raises(RequestError, match=r"`gpt_neox\.layers\.0`.*parallel residual"):
        place_norms(model, norm)
    assert place_norms(model, "lns").norm == "lns"


def test_one_layer_of_other_code_leaves_the_model_as_it_was():
    model = build()
    wanted = logits(model)
    layer = model.model.layers[3]

    class Other(type(layer)):
        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs)

    layer.__class__ = Other
    with pytest.raises(RequestError, match=r"`model\.layers\.3`"):
        place_norms(model, "sandwich")
    assert torch.equal(logits(model), wanted)
    assert layers_of(model) == ["pre"] * 4


@pytest.mark.parametrize(("first", "then"), [("post", "pre"), ("mix", "post"), ("lns", "mix")])
def test_norms_placed_otherwise_already(first, then):
    model = build()
    place_norms(model, first)
    with pytest.raises(RequestError, match="placed already"):
        place_norms(model, then)
    with pytest.raises(RequestError, match="placed already, as"):
        place_norms(model, "mix", 0.75)
    assert place_norms(model, first).layers == placement_of(model).layers


def test_mixtures_of_experts_have_no_subln():
    with pytest.raises(RequestError, match=r"`model\.layers\.0` has \d+ output projections"):
        place_norms(tiny_models.build("mixtral"), "sub-ln")


def test_deepnorm_of_an_unknown_attention_leaves_the_model_as_it_was():
    model = tiny_models.build("deepseek_v3")
    with pytest.raises(RequestError, match="kv_a_proj"):
        place_norms(model, "deepnorm", fresh=True)
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize(
    ("norm", "options", "words"),
    [
        ("mix", {"warmup": 0.05, "fresh": True}, ["5.0%"]),
        ("mix", {"warmup": 0.1, "fresh": True}, []),
        ("lns", {"warmup": 0.01, "fresh": True}, []),
        ("mix", {}, ["trained weights"]),
        ("pre", {"warmup": 0.0}, []),
    ],
)
def test_warnings(norm, options, words):
    said = place_norms(build(filled=False), norm, **options).warnings
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said))


def test_mix_of_less_than_a_layer_says_that_it_changes_nothing():
    (said,) = place_norms(build(layers=3), "mix", post_fraction=0.3, fresh=True).warnings
    assert "0.3 of 3 layers is less than one" in said
    assert place_norms(build(layers=3), "mix", post_fraction=0.0, fresh=True).warnings == ()


def test_warnings_of_depth_and_of_a_scaled_start():
    deep = place_norms(build(layers=25), "post", fresh=True).warnings
    assert len(deep) == 1
    assert "25 layers" in deep[0]
    assert place_norms(build(layers=24), "post", fresh=True).warnings == ()
    assert place_norms(build(layers=25), "deepnorm", fresh=True).warnings == ()
    scaled = place_norms(build("gpt2", filled=False), "lns", fresh=True).warnings
    assert len(scaled) == 1
    assert "sqrt(2 L)" in scaled[0]
    assert place_norms(build("llama", filled=False), "lns", fresh=True).warnings == ()
