"""The whole command on tiny random models of many families."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import families
import pytest
import torch
from moe_families import build, layers_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoints.source import open_source
from compress.errors import RequestError, RunError
from compress.experts import writing
from compress.experts.searching import Step, search_layers
from compress.experts.settings import CondenseSettings
from tiny_models import make_batch, make_checkpoint

# family -> the form that its last expert layer takes
STOCK = """qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 glm4_moe glm4_moe_lite ernie4_5_moe
    llama4_text cohere2_moe cohere2_moe_average qwen3_next lfm2_moe dots1"""
EDITS = """mixtral olmoe hunyuan_v1_moe jamba phimoe minimax minimax_m2 flex_olmo granitemoe
    granitemoeshared qwen3_5_moe_text"""
FORMS = {**dict.fromkeys(STOCK.split(), "stock"), **dict.fromkeys(EDITS.split(), "edits")}
REFUSED = ["gpt_oss", "jetmoe", "dbrx", "longcat_flash"]


def batches_of(family):
    return families.make_batches(
        "qwen2_moe" if family.startswith("cohere") else family, count=3, rows=4, length=24
    )


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("family", FORMS)
def test_family_condenses_saves_and_loads(family, tmp_path):
    """The last expert layer becomes dense; what loads computes what the result in memory does."""
    model = build(family)
    model.save_pretrained(tmp_path / "src")
    batches = batches_of(family)
    last = layers_of(tmp_path / "src")[-1]
    stock = FORMS[family] == "stock"
    asked = {"layers": f"i:{last.index}", "batches": batches, "stock_only": stock}
    done = compress.cd_moe_condense(tmp_path / "src", tmp_path / "out", experts=2, **asked)
    assert done.plan.options["form"] == FORMS[family]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(found) is type(model)
    assert not any(key.startswith(f"{last.experts}.") for key in found.state_dict())
    errors = done.plan.rows[0]["errors"]
    assert errors["refit"] <= errors["least_squares"] + 1e-6  # what it starts from
    by_hand = compress.cd_moe_condense(model, experts=2, **asked).model
    torch.testing.assert_close(logits(by_hand, batches[0]), logits(found, batches[0]))
    moved = (logits(found, batches[0]) - logits(model, batches[0])).abs().max()
    assert 0 < float(moved) < 10 * float(logits(model, batches[0]).std())


@pytest.mark.parametrize("family", FORMS)
def test_what_is_captured_is_the_layer(family, tmp_path):
    """Routing weights as taken, times the experts, plus the shared MLP: the layer's own output."""
    from compress.checkpoints.walk import walk
    from compress.experts.capture import capture
    from compress.experts.layers import apply_mlp, gated_weights
    from compress.experts.measuring import Looks

    build(family).save_pretrained(tmp_path / "src")
    layer = layers_of(tmp_path / "src")[-1]
    found = {}

    class Taking(Looks):
        def replay(self, runs):
            if runs.block.name != layer.block:
                return
            data = capture(runs, layer, "model", residual=False)
            act = runs.module(layer.experts).act_fn
            x, total = data.inputs, 0.0
            for number in range(layer.count):
                weight = data.routing[:, number, None]
                expert = layer.expert(runs.weights, number)
                if layer.scales_input:
                    total = total + apply_mlp(expert, x * weight, act)
                else:
                    total = total + weight * apply_mlp(expert, x, act)
            if layer.shared:
                shared = apply_mlp(gated_weights(runs.module(layer.shared), ""), x, act)
                total = total + (shared if data.gate is None else data.gate[:, None] * shared)
            found["sum"], found["layer"] = layer.share * total, data.outputs

    walk(open_source(tmp_path / "src"), batches_of(family), Taking(), streams=("model",))
    torch.testing.assert_close(found["sum"], found["layer"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_other_layouts_are_refused_by_name(family, tmp_path):
    families.build(family).save_pretrained(tmp_path / "src")
    with pytest.raises(RequestError, match=r"experts.*can't be condensed|can't be condensed"):
        compress.cd_moe_condense(
            tmp_path / "src", tmp_path / "out", batches=families.make_batches(family)
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return make_checkpoint("qwen2_moe", tmp_path_factory.mktemp("qwen") / "src")


BATCHES = [make_batch(4, 24, seed=s) for s in range(4)]


@pytest.mark.parametrize(
    "options",
    [
        {"layers": "all", "experts": 0},
        {"layers": 2, "experts": 1, "shared_gate": "keep"},
        {"layers": 2, "paper": True},
        {"layers": "all", "experts": 2, "refit": "sequential"},
        {"layers": 2, "layer_search": "beam:2", "metric": "loss", "score": "reap"},
        {"layers": 3, "layer_search": "single", "refit": "none", "shared_gate": "keep"},
        {"layers": "prefix:2", "experts": 4, "metric": "js-hidden"},
    ],
    ids=str,
)
def test_the_result_counts_and_loads(qwen, tmp_path, options):
    done = compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, **options)
    found = compress.load(tmp_path / "out")
    layers = {layer.name: layer for layer in layers_of(qwen)}
    gone = 0
    for row in done.plan.rows:
        layer = layers[row["module"]]
        kept = row["width"] + row.get("shared", 0)
        gate = layer.hidden if row["kind"] == "gated_dense_mlp" else 0
        gone += 3 * 32 * (4 * 24 + 40 - kept) + 4 * 32 + 32 - gate
        mlp = found.get_submodule(row["module"])
        assert not hasattr(mlp, "experts")
    receipt = done.as_dict()
    assert receipt["before"]["parameters"] - receipt["after"]["parameters"] == gone
    assert found.num_parameters() == receipt["after"]["parameters"]
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["rows"] == done.plan.rows


def test_results_do_not_depend_on_batches_or_padding(qwen, tmp_path):
    whole = torch.cat([b["input_ids"] for b in BATCHES])
    padded = []
    for row in whole.split(2):
        ids = torch.cat([torch.full((2, 5), 3), row], 1)
        padded.append({"input_ids": ids, "attention_mask": (ids != 3).long()})
    forms = {
        "one": [{"input_ids": row[None]} for row in whole],
        "four": BATCHES,
        "padded": padded,
    }
    found = {
        name: compress.cd_moe_condense(
            qwen, tmp_path / name, batches=batches, layers="all", experts=2
        ).plan.rows
        for name, batches in forms.items()
    }
    for name in ("four", "padded"):
        for one, other in zip(found["one"], found[name], strict=True):
            assert one["experts"] == other["experts"]
            assert one["constants"] == pytest.approx(other["constants"], rel=1e-3)
            assert one["errors"] == pytest.approx(other["errors"], rel=1e-3)


def test_a_plan_is_made_printed_and_used_again(qwen, tmp_path):
    plan = tmp_path / "plan.json"
    first = compress.cd_moe_condense(
        qwen, batches=BATCHES, layers=2, experts=1, dry_run=True, plan_out=plan
    )
    assert first.receipt is None
    assert "refitted" in first.render()
    again = compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, plan=plan)
    assert [r["experts"] for r in again.plan.rows] == [r["experts"] for r in first.plan.rows]
    assert [r["constants"] for r in again.plan.rows] == [r["constants"] for r in first.plan.rows]
    other = make_checkpoint("qwen2_moe", tmp_path / "other", seed=5)
    with pytest.raises(RequestError, match="another model"):
        compress.cd_moe_condense(other, tmp_path / "out2", batches=BATCHES, plan=plan)


def test_a_stock_result_needs_no_compress(qwen, tmp_path):
    asked = {"layers": "all", "stock_only": True}
    compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, **asked)
    code = (
        "import sys, torch, transformers\n"
        "sys.modules['compress'] = None\n"
        f"m = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})\n"
        "out = m(input_ids=torch.arange(4, 20)[None], labels=torch.arange(4, 20)[None])\n"
        "print(type(m.model.layers[0].mlp).__name__, float(out.loss) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["Qwen2MoeMLP", "True"], done.stderr[-500:]


def test_an_edited_result_is_trained_and_saved_again(tmp_path):
    src = make_checkpoint("mixtral", tmp_path / "src")
    compress.cd_moe_condense(src, tmp_path / "out", batches=BATCHES, layers="i:1", experts=2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").train()
    batch = {**BATCHES[0], "labels": BATCHES[0]["input_ids"]}
    before = model(**batch).loss
    before.backward()
    with torch.no_grad():
        for value in model.parameters():
            value -= 0.01 * value.grad if value.grad is not None else 0.0
    after = model(**batch).loss
    assert float(after) < float(before)
    compress.save(model, tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again, BATCHES[0]), logits(model, BATCHES[0]))


def test_a_search_is_greedy_by_its_own_values():
    """On a table of values: each step adds the layer with the smallest value, prefixes included."""
    table = {"0": 3.0, "1": 1.0, "2": 2.0, "0,1": 2.5, "1,2": 4.0, "0,2": 0.5, "0,1,2": 5.0}
    layers = [type("L", (), {"index": i})() for i in range(3)]
    steps = search_layers(
        layers, 2, 1, lambda sets: {name: table[name] for name in sets}, lambda *a: None
    )
    assert [s.layers for s in steps] == [(1,), (1, 0)]
    assert steps[0] == Step((1,), 1.0, {0: 3.0, 1: 1.0, 2: 2.0})
    wide = search_layers(
        layers, 2, 2, lambda sets: {name: table[name] for name in sets}, lambda *a: None
    )
    assert set(wide[-1].layers) == {0, 2}  # carried along, the second best gives the best pair
    assert wide[-1].value == 0.5


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    """kill -9 once the first layer is there; --resume ends with what an unbroken run writes."""
    src = make_checkpoint("qwen2_moe", tmp_path / "src")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 400)
    argv = [
        sys.executable, "-m", "compress", "cd-moe-condense", str(src), "--layers", "3",
        "--experts", "2", "--calib", str(text), "--samples", "24", "--seqlen", "64", "--quiet",
    ]  # fmt: skip
    subprocess.run([*argv, "-o", str(tmp_path / "whole")], check=True)
    run = subprocess.Popen([*argv, "-o", str(tmp_path / "out")])
    layers = tmp_path / "out.partial" / "layers"
    while run.poll() is None and not any(layers.glob("*.safetensors")):
        time.sleep(0.005)
    if run.poll() is None:
        os.kill(run.pid, signal.SIGKILL)
    run.wait()
    if not (tmp_path / "out").exists():
        assert any(layers.glob("*.safetensors"))
        subprocess.run([*argv, "-o", str(tmp_path / "out"), "--resume"], check=True)
    for name in ("model.safetensors", "config.json", "plan.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not Path(f"{tmp_path / 'out'}.partial").exists()


REFUSALS = [
    ({"experts": 5}, "`--experts 5`: `model.layers.0.mlp.experts` has 4 experts"),
    ({"experts": -1}, "below 0"),
    ({"layers": 5}, "`--layers 5`: the model has 4 layers with experts"),
    ({"layers": "i:1,9"}, "decoder layer 9 has no experts"),
    ({"layers": "some"}, "isn't N, prefix:N, all or i:1,4,7"),
    ({"score": "reep"}, "did you mean `reap`"),
    ({"layer_search": "beam:0"}, "isn't a search"),
    ({"paper": True, "score": "reap"}, "isn't what `--paper` stands for"),
    ({"shared_gate": "refit", "refit": "none"}, "can't act with `--refit none`"),
    ({"shared_gate": "keep", "stock_only": True}, "`--stock-only`: a kept shared gate"),
    ({"ridge": "0"}, "neither auto nor a positive number"),
    ({"target_bytes": 1000}, "`--target-bytes 1000` can't be reached"),
    ({"target_bytes": 1000, "layers": 2}, "give one"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS, ids=lambda v: str(v)[:40])
def test_refused_in_one_line_and_nothing_written(qwen, tmp_path, options, words):
    with pytest.raises(RequestError) as found:
        compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, **options)
    assert words in f"{found.value.message} {found.value.hint}"
    assert found.value.code == 2
    assert "\n" not in found.value.message
    assert not list(tmp_path.iterdir())


def test_dense_models_and_bare_experts_are_refused(tmp_path):
    dense = make_checkpoint("llama", tmp_path / "llama")
    with pytest.raises(RequestError, match="`LlamaForCausalLM` has no experts"):
        compress.cd_moe_condense(dense, tmp_path / "out", batches=BATCHES)
    bare = make_checkpoint("mixtral", tmp_path / "mixtral")
    with pytest.raises(RequestError, match="has no shared expert"):
        compress.cd_moe_condense(bare, tmp_path / "out", batches=BATCHES, experts=0)
    with pytest.raises(RequestError, match="can't say that a layer is dense"):
        compress.cd_moe_condense(bare, tmp_path / "out", batches=BATCHES, stock_only=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["dense", "prune"])
def test_a_checkpoint_that_computes_something_else_is_never_put_in_place(
    qwen, tmp_path, mode, monkeypatch
):
    """The writer is broken on purpose: the check before the rename sees it."""
    name = "_exchanged" if mode == "dense" else "fewer_tensors"
    right = getattr(writing, name)

    def wrong(*args):
        found = right(*args)
        key = next(k for k in found if k.endswith(("mlp.down_proj.weight", "experts.down_proj")))
        return {**found, key: found[key].roll(1, 0)}

    monkeypatch.setattr(writing, name, wrong)
    with pytest.raises(RunError, match="differs from the model in memory"):
        compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, experts=2, mode=mode)
    assert not (tmp_path / "out").exists()


def test_fused_experts_on_the_disk_are_the_same_model(qwen, tmp_path):
    """A checkpoint that stores stacked tensors, not one of each expert, gives the same result."""
    model = AutoModelForCausalLM.from_pretrained(qwen)
    shutil.copytree(qwen, tmp_path / "fused")
    save_file(model.state_dict(), tmp_path / "fused" / "model.safetensors", {"format": "pt"})
    stored = load_file(tmp_path / "fused" / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in stored)
    rows = []
    for source in (qwen, tmp_path / "fused"):
        out = tmp_path / f"{source.name}-out"
        done = compress.cd_moe_condense(source, out, batches=BATCHES, layers=2, experts=2)
        rows.append(done.plan.rows)
    assert rows[0] == rows[1]
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / f"{n}-out") for n in
                  (qwen.name, "fused"))  # fmt: skip
    assert torch.equal(logits(one, BATCHES[0]), logits(other, BATCHES[0]))


def test_paper_stands_for_the_published_procedure():
    found = CondenseSettings(paper=True).resolved()
    published = ("greedy-js", "conditional-mean", "none", "constant", "greedy", "js-hidden")
    names = ("score", "weights", "refit", "shared_gate", "layer_search", "metric")
    assert tuple(getattr(found, name) for name in names) == published
    assert (found.samples, found.search_samples) == (100, 100)
    assert CondenseSettings(paper=True, samples=7).resolved().samples == 7


def test_the_peak_of_memory_is_stated(qwen, tmp_path):
    done = compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, layers=1)
    assert done.as_dict()["cost"]["peak_bytes"] > 1_000_000


@pytest.mark.parametrize("gate", ["refit", "keep"])
def test_target_bytes_is_met_by_the_fewest_layers(qwen, tmp_path, gate):
    """To the parameter: the size of two condensed layers takes two, a byte less takes three."""
    asked = {"batches": BATCHES, "experts": 1, "shared_gate": gate}
    two = compress.cd_moe_condense(qwen, tmp_path / "two", layers=2, **asked)
    size = 4 * two.receipt.after.parameters
    for target, count in ((size, 2), (size - 1, 3)):
        done = compress.cd_moe_condense(qwen, dry_run=True, target_bytes=target, **asked)
        assert len(done.plan.rows) == count
