"""Layer distances: closed forms in plain torch, hooks on two whole models, faults, the command."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoints import edits
from compress.checkpoints.source import open_source
from compress.cli.main import call
from compress.errors import RequestError, RunError
from compress.evaluation.distances import Pair
from compress.evaluation.evaluate import evaluate
from tiny_models import make_batch, make_checkpoint

FAMILIES = ["llama", "gpt2", "mixtral", "bert"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("distances")
    (path / "boat.txt").write_text("A small red boat sailed far. " * 300)
    return path


@pytest.fixture(scope="module")
def dense(place):
    return make_checkpoint("llama", place / "dense")


def _like(dense, path, change, **options):
    """A checkpoint beside `dense`, its model changed in memory and its tokenizer copied."""
    model = AutoModelForCausalLM.from_pretrained(dense, **options)
    with torch.no_grad():
        model = change(model) or model
    companions = [file for file in dense.iterdir() if "token" in file.name]
    compress.save(model, path, companions=companions)
    return path


@pytest.fixture(scope="module")
def pruned(place, dense):
    def change(model):
        for name, value in model.named_parameters():
            if "layers.1." in name or "layers.2.mlp" in name:
                value[value.abs() < value.abs().median()] = 0

    return _like(dense, place / "pruned", change)


@pytest.fixture(scope="module")
def factored(place, dense):
    """`q_proj` of block 0 in two factors, k_proj with the same down, and a narrower MLP in 3."""

    def change(model):
        layer = "model.layers.0.self_attn"
        changed = {
            f"{layer}.q_proj": {"kind": "lowrank", "rank": 6},
            f"{layer}.k_proj": {"kind": "lowrank_up", "rank": 6, "down": "q_proj"},
            "model.layers.3.mlp": {"kind": "gated_dense_mlp", "width": 20},
        }
        changed = {k: v for k, v in changed.items() if "mlp" not in k}
        changed |= {
            f"model.layers.3.mlp.{name}": {"kind": "linear", side: 20}
            for name, side in (("gate_proj", "out"), ("up_proj", "out"), ("down_proj", "in"))
        }
        edits.apply(model, changed)
        generator = torch.Generator().manual_seed(3)
        for name in changed:
            for value in model.get_submodule(name).parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)

    return _like(dense, place / "factored", change)


def _pair(base, other, **options):
    return Pair(open_source(base), open_source(other), **options)


def _batches(**options):
    return [make_batch(seed=seed, **options) for seed in (0, 1, 2)]


def _measured(base, other, batches=None, **options):
    batches = _batches() if batches is None else batches
    return _pair(base, other, **options).measure(batches, {"spec": "random"})


def _states(path, batches):
    """Each block's output on each batch, by plain hooks on the whole model."""
    model = open_source(path).load(torch.float32)
    layers = dict(model.named_modules())
    found: dict[str, list[torch.Tensor]] = {}

    def hook(name):
        def keep(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            found.setdefault(name, []).append(hidden.detach().double())

        return keep

    stack = "model.layers" if "model.layers.0" in layers else "transformer.h"
    for name, module in layers.items():
        if name.rpartition(".")[0] == stack:
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    return found


def _expected(base, other, batches):
    first, second = _states(base, batches), _states(other, batches)
    assert first
    expected = {}
    for name in first:
        masks = [b.get("attention_mask", torch.ones_like(b["input_ids"])).bool() for b in batches]
        one = torch.cat([h[m] for h, m in zip(first[name], masks)])
        two = torch.cat([h[m] for h, m in zip(second[name], masks)])
        cosine = torch.nn.functional.cosine_similarity(one, two, dim=-1).mean()
        expected[name] = (float((two - one).norm() / one.norm()), float(cosine))
    return expected


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_models_are_exactly_alike(tmp_path, family):
    path = make_checkpoint(family, tmp_path / family)
    found = _measured(path, path)
    assert len(found.blocks) == 4
    for block in found.blocks:
        assert (block.distance, block.error, block.cosine) == (0.0, 0.0, 1.0)
        assert not block.unlike
    assert found.outside.distance == 0.0


def test_weights_are_the_closed_form_of_both_state_dicts(dense, pruned):
    one, two = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (dense, pruned))
    found = _measured(dense, pruned, [])
    for block in found.blocks:
        names = [name for name in one if name.startswith(f"{block.name}.")]
        before, after = (torch.cat([s[n].double().flatten() for n in names]) for s in (one, two))
        assert block.distance == pytest.approx(float((after - before).norm() / before.norm()))
        assert (block.error, block.cosine) == (None, None)
        for row in block.as_dict()["modules"]:
            name = f"{row['module']}.weight"
            own = (two[name] - one[name]).double().norm() / one[name].double().norm()
            assert row["distance"] == pytest.approx(float(own))
            assert row["shape"] == list(one[name].shape)
    assert [block.distance > 0 for block in found.blocks] == [False, True, True, False]


@pytest.mark.parametrize("padded", [False, True])
def test_activations_are_those_of_hooks_on_two_whole_models(dense, pruned, padded):
    batches = _batches(padded=padded, rows=3)
    found = _measured(dense, pruned, batches)
    expected = _expected(dense, pruned, batches)
    assert [block.name for block in found.blocks] == list(expected)
    for block in found.blocks:
        error, cosine = expected[block.name]
        assert block.error == pytest.approx(error, rel=1e-5, abs=1e-7)
        assert block.cosine == pytest.approx(cosine, rel=1e-6)
    assert found.blocks[0].error == 0.0
    assert found.blocks[3].error > found.blocks[1].error > 0.01  # block 3 itself is unchanged


def test_blocks_that_return_tuples(tmp_path):
    one = make_checkpoint("gpt2", tmp_path / "one")
    other = make_checkpoint("gpt2", tmp_path / "other", seed=1)
    found, expected = _measured(one, other), _expected(one, other, _batches())
    for block in found.blocks:
        assert (block.error, block.cosine) == pytest.approx(expected[block.name], rel=1e-5)


def test_factors_are_multiplied_out_and_other_shapes_are_told(dense, factored):
    whole = AutoModelForCausalLM.from_pretrained(dense).requires_grad_(False)
    thin = AutoModelForCausalLM.from_pretrained(factored).requires_grad_(False)
    found = _measured(dense, factored)
    first = whole.model.layers[0].self_attn
    rows = {row["module"]: row for row in found.blocks[0].as_dict()["modules"]}
    down = thin.model.layers[0].self_attn.q_proj.down.weight.double()
    for name in ("q_proj", "k_proj"):
        up = getattr(thin.model.layers[0].self_attn, name).up.weight.double()
        dense_weight = getattr(first, name).weight.double()
        own = (up @ down - dense_weight).norm() / dense_weight.norm()
        assert rows[f"model.layers.0.self_attn.{name}"]["distance"] == pytest.approx(float(own))
    assert not [name for name in rows if name.endswith((".up", ".down"))]
    last = found.blocks[3]
    assert {weight.name.rpartition(".")[2] for weight in last.unlike} == {
        *("gate_proj", "up_proj", "down_proj")
    }
    sizes = {weight.reason for weight in last.unlike}
    assert sizes == {"48 × 32 and 20 × 32", "32 × 48 and 32 × 20"}
    assert last.distance == 0.0  # of what is left: attention and norms, which are as they were
    expected = _expected(dense, factored, _batches())
    assert last.error == pytest.approx(expected[last.name][0], rel=1e-5)


def test_experts_that_became_one_mlp_have_no_distance(place):
    base = make_checkpoint("mixtral", place / "experts")
    other = _like(
        base,
        place / "condensed",
        lambda m: edits.apply(m, {"model.layers.2.mlp": {"kind": "dense_mlp", "width": 20}}),
    )
    found = _measured(base, other)
    assert all(not block.unlike for block in found.blocks if block.name != "model.layers.2")
    reasons = {w.name: w.reason for w in found.blocks[2].unlike}
    assert reasons["model.layers.2.mlp.experts.0.gate_proj"] == "not in the other model"
    assert reasons["model.layers.2.mlp.gate_proj"] == "not in the model compared with"
    assert found.blocks[2].distance == 0.0
    assert found.blocks[2].error > 0


def test_fewer_experts_are_not_paired_by_number(place):
    base = make_checkpoint("mixtral", place / "eight")

    def drop(model):
        for layer in model.model.layers:
            for name in ("gate_up_proj", "down_proj"):
                kept = getattr(layer.mlp.experts, name).detach()[1:].clone()
                setattr(layer.mlp.experts, name, torch.nn.Parameter(kept))
            layer.mlp.gate.weight = torch.nn.Parameter(layer.mlp.gate.weight.detach()[1:].clone())
        model.config.num_local_experts -= 1

    found = _measured(base, _like(base, place / "seven", drop), [])
    unlike = {weight.name: weight.reason for weight in found.blocks[0].unlike}
    assert unlike["model.layers.0.mlp.experts.1.up_proj"].startswith("of ")
    assert "are left" in unlike["model.layers.0.mlp.experts.1.up_proj"]
    assert "model.layers.0.self_attn.q_proj" not in unlike


def test_other_dtypes_are_compared_in_float32(place, dense):
    half = _like(dense, place / "half", lambda model: model.to(torch.bfloat16))
    found = _measured(dense, half)
    for block in found.blocks:
        assert 0 < block.distance < 2**-8
        assert block.cosine > 0.99


def test_one_block_of_each_is_in_memory(dense, pruned):
    seen = []

    class Watched(Pair):
        def _load(self, name, weights):
            held = super()._load(name, weights)
            for side in (self.base, self.other):
                inside = {
                    key.rpartition(".layers.")[2].partition(".")[0]
                    for key, value in side.model.named_parameters()
                    if ".layers." in key and not value.is_meta
                }
                seen.append((name, inside))
            return held

    Watched(open_source(dense), open_source(pruned)).measure(_batches(), {})
    assert len(seen) == 8
    assert all(inside == {name.rpartition(".")[2]} for name, inside in seen)


# ---- faults


def test_models_that_are_no_versions_of_one(place, dense):
    def saved(name, arch="llama", **changes):
        from transformers import AutoModelForCausalLM as Auto

        from tiny_models import ARCHITECTURES, fill, tiny_tokenizer

        config = ARCHITECTURES[arch]()
        config.update(changes)
        fill(Auto.from_config(config)).save_pretrained(place / name)
        tiny_tokenizer().save_pretrained(place / name)
        return place / name

    with pytest.raises(RequestError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        _pair(dense, make_checkpoint("gpt2", place / "gpt2"))
    with pytest.raises(RequestError, match=r"3 blocks.*has 4"):
        _pair(dense, saved("short", num_hidden_layers=3))
    with pytest.raises(RequestError, match=r"64 features.*of 32"):
        _pair(dense, saved("wide", hidden_size=64, head_dim=16))
    renamed = place / "renamed"
    shutil.copytree(dense, renamed)
    text = (renamed / "tokenizer.json").read_text(encoding="utf-8")
    assert '"a"' in text
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (renamed / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(RequestError, match="different vocabularies") as error:
        _pair(dense, renamed)
    assert error.value.code == 2


def test_an_overflow_names_the_block(place, dense):
    def change(model):
        model.model.layers[2].mlp.down_proj.weight.mul_(1e38)

    with pytest.raises(RunError, match=r"model\.layers\.2"):
        _measured(dense, _like(dense, place / "loud", change))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distances": True}, "another model"),
        ({"against": "dense", "ppl": ["x"], "data": "demo"}, "--data demo"),
        ({"against": "dense", "distances": True, "seqlen": 999}, "limit of 128"),
        ({"against": "dense", "distances": True, "data": "gone.txt"}, "no such file"),
        ({"against": "dense", "distances": True, "samples": 0}, "--samples 0"),
    ],
)
def test_bad_requests(place, pruned, options, said):
    if "against" in options:
        options = {**options, "against": place / options["against"]}
    with pytest.raises(RequestError, match=said) as error:
        evaluate(pruned, device="cpu", **options)
    assert error.value.code == 2


# ---- the command


def test_the_table_and_the_json(place, dense, pruned, capsys):
    options = ["--against", str(dense), "--distances", "--data", str(place / "boat.txt"),
               "--samples", "4", "--seqlen", "32", "--device", "cpu"]  # fmt: skip
    assert call(["eval", str(pruned), *options]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "distance of pruned from dense, 4 × 32 tokens of" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "layers" in line}
    assert rows["model.layers.0"] == ["model.layers.0", "0", "0", "1"]
    assert "█" in rows["model.layers.3"][-1]
    assert call(["eval", str(pruned), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["comparison"]["distances"]
    assert [block["block"] for block in found["blocks"]] == [f"model.layers.{i}" for i in range(4)]
    assert found["data"]["windows"] == 4
    assert found["blocks"][0]["activations"] == 0
    assert found["blocks"][3]["activations"] > 0
    assert found["outside"]["weights"] == 0
    assert call(["eval", str(pruned), "--against", str(place / "nowhere"), "--distances"]) == 2


def test_models_without_text_are_compared_by_weights(tmp_path):
    one = make_checkpoint("vit", tmp_path / "one", tokenizer=False)
    two = make_checkpoint("vit", tmp_path / "two", seed=1, tokenizer=False)
    found = evaluate(two, against=one, distances=True, device="cpu")
    result = found.as_dict()
    blocks = result["comparison"]["distances"]["blocks"]
    assert all(block["weights"] > 0 and "activations" not in block for block in blocks)
    assert "pixel_values" in result["notes"][0]
    assert "weights alone" in found.render()
