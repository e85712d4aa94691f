"""`lowrank-svd` from a checkpoint to a checkpoint: what is written, said, counted, used again."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

import compress
from compress.checkpoints.edits.lowrank import LowRank
from compress.checkpoints.edits.lowrank_up import LowRankUp
from compress.lowrank.command import lowrank_svd
from compress.lowrank.truncate import truncate
from tiny_models import ARCHITECTURES, fill, make_batch


def logits(model, batch=None):
    with torch.no_grad():
        return model(**(batch or make_batch())).logits


def factored(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, LowRank | LowRankUp)}


@pytest.mark.parametrize("method", ["svd", "asvd", "whiten", "sequential"])
def test_every_method_writes_a_model_that_loads_and_counts_right(
    method, factor, checkpoint, tmp_path
):
    done = factor(checkpoint(), tmp_path / "out", method=method)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    chosen = sum(row["weights"] for row in plan["rows"])
    held = sum(row["weights"] * row.get("kept", 1) for row in plan["rows"])
    assert held <= 0.7 * chosen + 1
    before = load_file(checkpoint() / "model.safetensors")
    saved = sum(v.numel() for v in before.values()) - sum(v.numel() for v in stored.values())
    assert saved == round(chosen - held)
    model = compress.load(tmp_path / "out")
    ranks = {row["module"]: row["rank"] for row in plan["rows"] if row["kind"] == "lowrank"}
    assert {n: m.rank for n, m in factored(model).items()} == ranks
    assert all(
        row["rank"] * (row["out"] + row["in"]) < row["weights"]
        for row in plan["rows"]
        if "rank" in row
    )
    assert done.receipt.extra["lowrank"]["kept"] == pytest.approx(held / chosen, abs=1e-5)
    for row in plan["rows"]:
        if row["kind"] == "lowrank":
            assert row["optimum"] <= row["error"] * (1 + 1e-6) + 1e-9
            assert row["stored_error"] == pytest.approx(row["error"], rel=1e-3, abs=1e-5)


def test_whitened_factors_are_those_of_truncate_on_the_layers_own_inputs(
    factor, checkpoint, tmp_path
):
    done = factor(checkpoint(), tmp_path / "out", method="whiten", rank=6, damp=0, samples=4)
    dense, model = (compress.load(p) for p in (checkpoint(), tmp_path / "out"))
    from compress.checkpoints.source import open_source
    from compress.lowrank.preparing import load_data, open_job
    from compress.lowrank.settings import LowRankSettings
    from compress.progress import silent
    from compress.reports.clock import Clock

    calib = done.receipt.settings["calib"]
    settings = LowRankSettings(method="whiten", calib=calib, samples=4, seqlen=32)
    job = open_job(open_source(checkpoint()), settings, silent, Clock())
    load_data(job, None, lambda text: None)
    seen = []
    layer = dense.model.layers[2].mlp.down_proj
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    for batch in job.batches:
        logits(dense, batch)
    x = torch.cat(seen).double()
    up, down = truncate(layer.weight, x.T @ x, 6)
    product = model.get_submodule("model.layers.2.mlp.down_proj").product()
    assert torch.allclose(product, up @ down, atol=1e-5)


def test_on_a_trained_model_each_better_method_reads_better(demo_model, tmp_path):
    found = {}
    for method in ("svd", "whiten", "sequential"):
        done = lowrank_svd(
            demo_model, tmp_path / method, method=method, alloc="uniform", keep=0.7,
            calib="demo", samples=32, seqlen=128, ppl=("demo",), limit=20,
        )  # fmt: skip
        found[method] = done.receipt.after.perplexity["demo"].value
    assert found["sequential"] < found["whiten"] < found["svd"]


def test_means_move_into_biases_where_there_are_any(factor, checkpoint, tmp_path):
    options = {"method": "whiten", "rank_ratio": 0.25, "include": ("*.fc1",)}
    factor(checkpoint("phi"), tmp_path / "with", **options)
    factor(checkpoint("phi"), tmp_path / "without", mean_correction=False, **options)
    stored = [load_file(tmp_path / n / "model.safetensors") for n in ("with", "without")]
    name = "model.layers.0.mlp.fc1.up.bias"
    before = load_file(checkpoint("phi") / "model.safetensors")["model.layers.0.mlp.fc1.bias"]
    assert not torch.allclose(stored[0][name], before)
    assert torch.equal(stored[1][name], before)


@pytest.mark.parametrize("arch", ["llama", "bert", "gpt_neox"])
def test_layers_share_a_down_factor(arch, factor, checkpoint, tmp_path):
    done = factor(checkpoint(arch), tmp_path / "out", share=("qkv", "gate-up"), alloc="uniform")
    model = compress.load(tmp_path / "out")
    borrowers = {n for n, m in factored(model).items() if isinstance(m, LowRankUp)}
    wanted = {r["module"] for r in done.plan.rows if r.get("shared", r["module"]) != r["module"]}
    assert borrowers == wanted
    assert bool(borrowers) == (arch != "gpt_neox")  # whose q, k, v are one layer
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not any(f"{name}.down.weight" in stored for name in borrowers)
    out = logits(model)
    with torch.inference_mode():
        assert torch.equal(model(**make_batch()).logits, out)
    training = model.train()(**make_batch(), labels=make_batch()["input_ids"])
    training.loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.endswith("down.weight"))
    compress.export(tmp_path / "out", tmp_path / "stock", to="stock")
    stock = compress.load(tmp_path / "stock")
    assert not factored(stock)
    assert torch.allclose(logits(stock), out, atol=1e-4)


def test_export_multiplies_out(factor, checkpoint, tmp_path):
    factor(checkpoint("gpt2"), tmp_path / "out")
    compress.export(tmp_path / "out", tmp_path / "stock", to="stock")
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert "quantization_config" not in config
    models = [compress.load(tmp_path / n) for n in ("out", "stock")]
    assert torch.allclose(*(logits(m) for m in models), atol=1e-4)


def test_low_rank_after_and_before_pruning(factor, checkpoint, text, tmp_path):
    options = {"sparsity": 0.5, "calib": str(text), "samples": 4, "seqlen": 32}
    options["allocation"] = "uniform"
    factor(checkpoint(), tmp_path / "thin")
    compress.alpha_prune(tmp_path / "thin", tmp_path / "thin-sparse", **options)
    pruned = compress.load(tmp_path / "thin-sparse")
    assert factored(pruned).keys() == factored(compress.load(tmp_path / "thin")).keys()
    parts = [m.up.weight for m in factored(pruned).values()]
    assert all(0.4 < float((p == 0).double().mean()) < 0.6 for p in parts)
    compress.alpha_prune(checkpoint(), tmp_path / "sparse", **options)
    done = factor(tmp_path / "sparse", tmp_path / "sparse-thin")
    assert done.receipt.extra["lowrank"]["factored"] > 0
    with pytest.raises(compress.errors.RequestError, match="factor already"):
        factor(tmp_path / "thin", tmp_path / "no", include=("*.up",))


def test_the_rest_of_a_factored_model_can_be_factored_later(factor, checkpoint, tmp_path):
    factor(checkpoint(), tmp_path / "one", include=("ffn",))
    factor(tmp_path / "one", tmp_path / "two", include=("attention",))
    names = factored(compress.load(tmp_path / "two"))
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in names} == {"mlp", "self_attn"}


def test_a_plan_is_used_again_and_statistics_serve_many_ratios(factor, checkpoint, tmp_path):
    stats = tmp_path / "stats"
    factor(
        checkpoint(),
        dry_run=True,
        plan_out=tmp_path / "p.json",
        save_stats=str(stats),
        method="whiten",
    )
    first = factor(checkpoint(), tmp_path / "a", plan=tmp_path / "p.json", method="whiten")
    second = factor(
        checkpoint(), tmp_path / "b", method="whiten", load_stats=str(stats), calib="nowhere"
    )
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in "ab"]
    assert files[0] == files[1]
    assert first.plan.rows == second.plan.rows
    other = factor(checkpoint(), tmp_path / "c", method="whiten", load_stats=str(stats), keep=0.5)
    assert other.receipt.extra["lowrank"]["kept"] <= 0.5


def test_keeping_all_leaves_a_stock_model(factor, checkpoint, tmp_path):
    done = factor(checkpoint(), tmp_path / "out", keep=1.0)
    assert all(row["kind"] == "dense" for row in done.plan.rows)
    before, after = (load_file(p / "model.safetensors") for p in (checkpoint(), tmp_path / "out"))
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_file_of_ranks_and_the_other_sizes(factor, checkpoint, tmp_path):
    ranks = tmp_path / "ranks.json"
    ranks.write_text(json.dumps({"*.q_proj": 5, "*.down_proj": 9, "*": "dense"}))
    rows = factor(checkpoint(), dry_run=True, alloc=str(ranks)).plan.rows
    assert {(r["module"].rpartition(".")[2], r.get("rank")) for r in rows} >= {
        ("q_proj", 5),
        ("down_proj", 9),
        ("o_proj", None),
    }
    rows = factor(checkpoint(), dry_run=True, rank=7, method="svd").plan.rows
    assert {r.get("rank") for r in rows} == {7}
    rows = factor(checkpoint(), dry_run=True, rank_ratio=0.25, method="svd").plan.rows
    assert all(r["rank"] == min(r["out"], r["in"]) // 4 for r in rows)
    rows = factor(checkpoint(), dry_run=True, energy=0.6, method="svd").plan.rows
    assert all(r["foretold"] <= 0.4**0.5 for r in rows if "rank" in r)
    done = factor(checkpoint(), tmp_path / "out", keep_model=0.8, method="svd")
    assert 0.75 < done.receipt.extra["lowrank"]["kept_model"] <= 0.8


def test_factors_in_fewer_bits_than_the_model(factor, checkpoint, tmp_path):
    factor(checkpoint(), tmp_path / "out", factor_dtype="bfloat16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {v.dtype for k, v in stored.items() if k.endswith((".up.weight", ".down.weight"))}
    assert kinds == {torch.bfloat16}
    assert compress.load(tmp_path / "out").dtype == torch.float32


def test_a_model_in_memory_comes_back_in_memory(checkpoint):
    model = compress.load(checkpoint())
    batches = [make_batch(2, 24, seed=s) for s in range(8)]
    done = lowrank_svd(model, keep=0.7, batches=batches)
    assert done.output is None
    assert factored(done.model)
    assert not factored(model)


def test_terminal_and_json(checkpoint, text, tmp_path, capsys):
    from compress.cli.main import call

    argv = [
        "lowrank-svd",
        str(checkpoint()),
        "--calib",
        str(text),
        "--samples",
        "8",
        "--seqlen",
        "32",
    ]
    assert call([*argv, "-o", str(tmp_path / "out"), "--keep", "0.7", "--json"]) == 0
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert data["command"] == "lowrank-svd"
    assert data["lowrank"]["factored"] > 0
    assert call([*argv, "--dry-run"]) == 0
    text_shown = capsys.readouterr().out
    assert "down_proj" in text_shown
    assert max(map(len, text_shown.splitlines())) <= 80


def test_recovery_lowers_the_held_out_loss_and_trains_factors_alone(factor, checkpoint, tmp_path):
    options = {"keep": 0.5, "samples": 32, "method": "whiten"}
    factor(checkpoint(), tmp_path / "plain", **options)
    done = factor(checkpoint(), tmp_path / "tuned", recover=12, recover_lr=3e-3, **options)
    told = done.receipt.extra["lowrank"]["recovery"]
    assert told["used"]
    assert told["held_out_loss"]["after"] < told["held_out_loss"]["before"]
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "tuned"))
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {n for n in one if n.endswith((".up.weight", ".down.weight"))}


def test_recovery_without_logits_and_one_that_does_not_help(tmp_path):
    batches = [make_batch(2, 16, seed=s) for s in range(8)]
    model = fill(BertModel(ARCHITECTURES["bert"]())).eval()
    done = lowrank_svd(model, tmp_path / "out", batches=batches, keep=0.6, recover=4)
    assert done.receipt.extra["lowrank"]["recovery"]["held_out_loss"]["before"] < 1
    done = lowrank_svd(
        model, tmp_path / "bad", batches=batches, keep=0.6, recover=2, recover_lr=100.0
    )
    assert not done.receipt.extra["lowrank"]["recovery"]["used"]
    assert any("the factors stay as they were" in note for note in done.receipt.notes)


def test_speed_is_told_by_the_number_of_tokens(factor, checkpoint, tmp_path):
    done = factor(checkpoint(), tmp_path / "out", method="svd", speed=True)
    for side in (done.receipt.before, done.receipt.after):
        assert list(side.extra["latency"]) == ["1_token_s", "16_tokens_s", "256_tokens_s"]
        assert all(value > 0 for value in side.extra["latency"].values())
    assert "latency, 256 tokens" in done.render()


def test_a_borrowed_factor_needs_its_neighbour(checkpoint):
    from compress.checkpoints import edits

    model = compress.load(checkpoint())
    name = "model.layers.0.self_attn.k_proj"
    for rank, down, said in (
        (4, "q_proj", "has no factors of rank 4"),
        (4, "none", "has no factors of rank 4"),
        (4, "a.b", "no module's name"),
    ):
        with pytest.raises(compress.errors.RequestError, match=said):
            edits.apply(model, {name: {"kind": "lowrank_up", "rank": rank, "down": down}})
        assert isinstance(model.get_submodule(name), torch.nn.Linear)
    both = {
        "model.layers.0.self_attn.q_proj": {"kind": "lowrank", "rank": 6},
        name: {"kind": "lowrank_up", "rank": 4, "down": "q_proj"},
    }
    with pytest.raises(compress.errors.RequestError, match="has no factors of rank 4"):
        edits.apply(model, both)
    assert not factored(model)
