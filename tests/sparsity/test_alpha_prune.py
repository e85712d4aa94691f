"""`alpha-prune` end to end, on every architecture of the foundation: what is written is right."""

import json
import subprocess
import sys

import pytest
import torch
from reference import prune_whole_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoints import edits
from compress.checkpoints.anatomy import matrix_view, read_anatomy
from compress.checkpoints.source import open_source
from compress.data.packing import prepare_calibration
from compress.reports.validate import check
from compress.sparsity import methods
from compress.sparsity.settings import METHODS, REFITS
from tiny_models import ARCHITECTURES, build, make_batch, make_checkpoint, tiny_tokenizer

MOE = {"qwen2_moe", "mixtral"}

# A stranger's process: compress can't be imported there, so nothing of ours helps the loading.
STRANGER = """
import json, sys, torch, transformers
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "compress":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
for place in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(place)
    auto = transformers.AutoModelForMaskedLM if config.model_type == "bert" else (
        transformers.AutoModelForCausalLM)
    model, info = auto.from_pretrained(place, dtype="auto", output_loading_info=True)
    bad = {k: sorted(map(str, v)) for k, v in info.items() if v and k != "conversion_errors"}
    ids = torch.load(place + ".ids", weights_only=True)
    with torch.no_grad():
        torch.save(model.eval()(ids).logits, place + ".logits")
    json.dump(bad, open(place + ".info", "w"))
"""


def dense(path):
    return open_source(path).load()


def matrices(model):
    """name -> the matrix of a model in memory, as a view, for all that anatomy finds."""
    parameters = dict(model.named_parameters())
    found = read_anatomy(model).matrices
    return {m.name: matrix_view(parameters[m.parameter].data, m) for m in found}


def zeros(tensor):
    return int((tensor == 0).sum())


def inputs_of(path, name, text):
    """[rows, in], float64: what a matrix of the dense model gets from 16 x 32 tokens."""
    model, source = dense(path), open_source(path)
    batches, _ = prepare_calibration(str(text), source.tokenizer(), samples=16, seqlen=32, seed=0)
    inputs = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda m, a: inputs.append(a[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    hook.remove()
    return torch.cat(inputs).flatten(0, -2).double()


@pytest.fixture(scope="module")
def pruned(checkpoint, text, tmp_path_factory):
    """Every architecture pruned by Wanda, and the logits that a stranger's process gets."""
    place, ids = tmp_path_factory.mktemp("pruned"), make_batch(2, 24)["input_ids"]
    results = {}
    for arch in ARCHITECTURES:
        results[arch] = compress.alpha_prune(
            checkpoint(arch), place / arch, sparsity=0.6, calib=str(text), samples=4, seqlen=32
        )
        torch.save(ids, f"{place / arch}.ids")
    places = [str(place / arch) for arch in ARCHITECTURES]
    subprocess.run([sys.executable, "-c", STRANGER, *places], check=True, cwd=place)
    return {a: (r, ids, place / a) for a, r in results.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_stranger_loads_it_and_gets_the_logits_of_the_model_in_memory(arch, pruned, checkpoint):
    result, ids, place = pruned[arch]
    assert json.loads(place.with_name(arch + ".info").read_text()) == {}
    # In memory: the dense model, its matrices overwritten by what was written to disk.
    model = dense(checkpoint(arch))
    written = matrices(dense(place))
    with torch.no_grad():
        for name, matrix in matrices(model).items():
            changed = matrix != written[name]
            assert bool((written[name][changed] == 0).all()), f"{name}: Wanda only zeroes"
            matrix[changed] = 0
        expected = model(ids).logits
    found = torch.load(place.with_name(arch + ".logits"), weights_only=True)
    assert torch.equal(found, expected)
    assert not torch.equal(expected, dense(checkpoint(arch))(ids).logits)
    assert result.receipt.after.parameters == result.receipt.before.parameters


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_zeros_are_counted_to_the_last_weight(arch, pruned):
    result, _, place = pruned[arch]
    found = matrices(dense(place))
    assert {row["module"] for row in result.plan.rows} == set(found)
    for row in result.plan.rows:
        assert zeros(found[row["module"]]) == row["zeros"], row["module"]
    total = sum(m.numel() for m in found.values())
    assert sum(row["zeros"] for row in result.plan.rows) == round(0.6 * total)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_else_is_touched(arch, pruned, checkpoint):
    _, _, place = pruned[arch]
    before, after = dense(checkpoint(arch)), dense(place)
    prunable = {m.parameter for m in read_anatomy(before).matrices}
    theirs = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        if name not in prunable:
            assert torch.equal(parameter, theirs[name]), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_files_are_those_of_stock_save_pretrained(arch, pruned, checkpoint):
    _, _, place = pruned[arch]
    source = load_file(checkpoint(arch) / "model.safetensors")
    written = load_file(place / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in source.items()} == {
        n: (t.shape, t.dtype) for n, t in written.items()
    }
    assert (place / "config.json").read_bytes() == (checkpoint(arch) / "config.json").read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (place / name).read_bytes() == (checkpoint(arch) / name).read_bytes()
    assert "sparsity_config" not in (place / "config.json").read_text()


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - MOE))
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_the_masks_are_those_of_the_whole_model_pruned_slowly(
    arch, method, checkpoint, prune, text, tmp_path
):
    path = checkpoint(arch)
    result = prune(path, tmp_path / "out", method=method)
    batches, _ = prepare_calibration(
        str(text), open_source(path).tokenizer(), samples=4, seqlen=32, seed=0
    )
    model = dense(path)
    blocks = [b.name for b in read_anatomy(model).blocks]
    counts = {row["module"]: row["zeros"] for row in result.plan.rows}
    slow = matrices(prune_whole_model(model, batches, blocks, counts, method))
    for name, found in matrices(dense(tmp_path / "out")).items():
        assert torch.equal(found, slow[name]), name


@pytest.mark.parametrize(
    "given",
    [{}, {"method": "magnitude", "refit": "exact"}, {"method": "alps"}],
    ids=lambda given: "-".join(given.values()) or "default",
)
@pytest.mark.parametrize("arch", sorted(MOE))
def test_an_expert_without_a_token_is_pruned_by_magnitude_and_noted(
    arch, given, checkpoint, prune, tmp_path
):
    # One short window can't reach all 4 experts of all 4 blocks with this seed; if it did, the
    # test would say so here.
    result = prune(checkpoint(arch), tmp_path / "out", samples=1, seqlen=2, **given)
    notes = [n for n in result.receipt.notes if "no calibration token" in n]
    assert notes
    named = {n.partition(":")[0] for n in notes}
    before, after = matrices(dense(checkpoint(arch))), matrices(dense(tmp_path / "out"))
    for name in named:
        kept = before[name].abs()[after[name] != 0]
        dropped = before[name].abs()[after[name] == 0]
        assert float(kept.min()) >= float(dropped.max())


@pytest.mark.parametrize(
    ("arch", "method", "refit"),
    [
        *((arch, method, "none") for arch in ("llama", "gpt2", "mixtral") for method in METHODS),
        ("mixtral", "magnitude", "exact"),
        ("mixtral", "sparsegpt", "cg"),
    ],
)
def test_patterns_are_exact_in_every_group(method, refit, arch, checkpoint, prune, tmp_path):
    prune(
        checkpoint(arch),
        tmp_path / "out",
        method=method,
        refit=refit,
        sparsity=None,
        pattern="2:4",
    )
    for name, matrix in matrices(dense(tmp_path / "out")).items():
        groups = (matrix != 0).reshape(-1, 4).sum(1)
        assert int(groups.min()) == int(groups.max()) == 2, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_ties_of_short_dtypes_dont_change_the_count(dtype, method, checkpoint, prune, tmp_path):
    result = prune(checkpoint("llama", dtype), tmp_path / "out", method=method, sparsity=0.7)
    found = matrices(dense(tmp_path / "out"))
    assert all(m.dtype == dtype for m in found.values())
    assert {row["module"]: row["zeros"] for row in result.plan.rows} == {
        n: zeros(m) for n, m in found.items()
    }


def test_sparsegpt_updates_survivors_and_keeps_the_layers_output_better(
    checkpoint, prune, text, tmp_path
):
    name = "model.layers.0.self_attn.q_proj"  # its inputs are the same for every method
    x = inputs_of(checkpoint(), name, text)
    weight = matrices(dense(checkpoint()))[name].double()
    error = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        prune(checkpoint(), tmp_path / method, method=method, allocation="uniform", samples=16)
        pruned = matrices(dense(tmp_path / method))[name].double()
        error[method] = float((x @ (weight - pruned).T).square().sum())
        survivors = pruned != 0
        assert bool((pruned[survivors] == weight[survivors]).all()) == (method != "sparsegpt")
    assert error["sparsegpt"] < error["wanda"] < error["magnitude"]


@pytest.mark.parametrize(
    ("method", "refit", "dtype"),
    [
        *((method, "exact", torch.bfloat16) for method in METHODS),
        *((method, "cg", torch.float16) for method in ("magnitude", "sparsegpt", "alps")),
    ],
)
def test_a_refit_keeps_the_count_and_changes_survivors(
    method, refit, dtype, checkpoint, prune, tmp_path
):
    result = prune(checkpoint("llama", dtype), tmp_path / "out", method=method, refit=refit)
    before, after = matrices(dense(checkpoint("llama", dtype))), matrices(dense(tmp_path / "out"))
    for row in result.plan.rows:
        name = row["module"]
        assert zeros(after[name]) == row["zeros"], name
        kept = after[name] != 0
        assert not torch.equal(after[name][kept], before[name][kept]), name
    assert result.receipt.settings["refit"] == refit


@pytest.mark.parametrize("method", ["wanda", "dsnot"])
def test_a_refit_leaves_the_mask_of_the_first_block_and_lowers_its_error(
    method, checkpoint, prune, text, tmp_path
):
    # 16 x 32 tokens on 32 inputs: enough that the inputs' Gram matrix has its full rank.
    name = "model.layers.0.self_attn.q_proj"
    given = {"method": method, "allocation": "uniform", "samples": 16}
    x, weight = inputs_of(checkpoint(), name, text), matrices(dense(checkpoint()))[name].double()
    found = {}
    for refit in ("none", "exact", "cg"):
        prune(checkpoint(), tmp_path / refit, refit=refit, **given)
        found[refit] = matrices(dense(tmp_path / refit))[name].double()
        assert torch.equal(found[refit] == 0, found["none"] == 0)
    error = {k: float((x @ (weight - w).T).square().sum()) for k, w in found.items()}
    assert error["exact"] < 0.99 * error["none"]
    assert error["cg"] == pytest.approx(error["exact"], rel=1e-2)


def test_every_method_and_refit_that_settings_allow_has_a_function():
    assert tuple(methods.METHODS) == METHODS
    assert ("none", *methods.REFITS, "block") == REFITS  # blocks are refitted as a whole


def test_alpha_gives_more_zeros_to_blocks_with_a_larger_metric(checkpoint, prune):
    rows = prune(checkpoint(), dry_run=True).plan.rows
    blocks = {row["block"]: (row["alpha_peak"], row["sparsity"]) for row in rows}
    ordered = sorted(blocks.values())
    assert [s for _, s in ordered] == sorted(s for _, s in ordered)
    assert len(set(ordered)) == len(blocks)


def test_owl_and_uniform_meet_the_request_too(checkpoint, prune, tmp_path):
    for allocation in ("owl", "uniform"):
        result = prune(checkpoint(), tmp_path / allocation, allocation=allocation)
        size = sum(row["size"] for row in result.plan.rows)
        assert sum(row["zeros"] for row in result.plan.rows) == round(0.6 * size)
    shares = {row["block"]: row["sparsity"] for row in result.plan.rows}
    assert max(shares.values()) - min(shares.values()) < 0.01


@pytest.mark.parametrize("propagate", ["dense", "true-sequential"])
def test_other_propagations_prune_the_same_number(propagate, checkpoint, prune, tmp_path):
    plain = prune(checkpoint(), tmp_path / "plain")
    other = prune(checkpoint(), tmp_path / "other", propagate=propagate)
    assert other.plan.rows == plain.plan.rows
    assert other.receipt.after.nonzero == plain.receipt.after.nonzero
    first = "model.layers.0.self_attn.q_proj"  # its inputs are the same whatever comes later
    a, b = matrices(dense(tmp_path / "plain")), matrices(dense(tmp_path / "other"))
    assert torch.equal(a[first], b[first])
    assert any(not torch.equal(a[n], b[n]) for n in a)


def test_skipped_modules_stay_and_the_rest_makes_up_the_share_of_its_own(
    checkpoint, prune, tmp_path
):
    result = prune(checkpoint(), tmp_path / "out", skip=("*.down_proj", "model.layers.0.*"))
    before, after = matrices(dense(checkpoint())), matrices(dense(tmp_path / "out"))
    for name in before:
        left = name.endswith("down_proj") or name.startswith("model.layers.0.")
        assert torch.equal(before[name], after[name]) == left, name
    size = sum(row["size"] for row in result.plan.rows)
    assert sum(row["zeros"] for row in result.plan.rows) == round(0.6 * size)


def test_a_plan_gives_the_same_bytes_again(checkpoint, prune, tmp_path):
    prune(checkpoint(), tmp_path / "a", plan_out=tmp_path / "plan.json")
    prune(checkpoint(), tmp_path / "b", plan=tmp_path / "plan.json", allocation="uniform")
    a, b = (tmp_path / x / "model.safetensors" for x in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert (
        json.loads((tmp_path / "a" / "plan.json").read_text())["rows"]
        == (json.loads((tmp_path / "plan.json").read_text())["rows"])
    )


def test_two_runs_give_the_same_bytes_and_another_seed_others(checkpoint, prune, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prune(checkpoint(), tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / x / "model.safetensors").read_bytes() for x in "abc")
    assert a == b
    assert a != c


def test_shards_of_the_source_may_be_any(checkpoint, prune, tmp_path):
    make_checkpoint("llama", tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    prune(tmp_path / "sharded", tmp_path / "a")
    prune(checkpoint(), tmp_path / "b")
    a, b = (tmp_path / x / "model.safetensors" for x in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_another_dtype_is_written_and_named_in_the_config(checkpoint, prune, tmp_path):
    result = prune(checkpoint(), tmp_path / "out", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert result.receipt.after.bytes < 0.6 * result.receipt.before.bytes


def test_a_dry_run_writes_nothing(checkpoint, prune, tmp_path):
    result = prune(checkpoint(), tmp_path / "out", dry_run=True)
    assert result.receipt is None
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_memory_stays_as_it_is(checkpoint, prune):
    model = dense(checkpoint())
    before = {n: p.clone() for n, p in model.named_parameters()}
    result = prune(model, tokenizer=tiny_tokenizer())
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    found = matrices(result.model)
    assert sum(map(zeros, found.values())) == sum(row["zeros"] for row in result.plan.rows)
    assert result.output is None


def test_the_receipt_tells_before_and_after(checkpoint, prune, other_text, tmp_path):
    spec = str(other_text)
    result = prune(checkpoint(), tmp_path / "out", ppl=(spec,), limit=6, speed=True)
    data = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert check(data) == []
    assert data == result.as_dict()
    assert data["before"]["perplexity"][spec]["value"] != data["after"]["perplexity"][spec]["value"]
    assert data["before"]["nonzero"] - data["after"]["nonzero"] == sum(
        row["zeros"] for row in result.plan.rows
    )
    assert (
        data["comparison"]["perplexity"][spec]["ci95"][0]
        < data["comparison"]["perplexity"][spec]["ci95"][1]
    )
    assert data["plan"]["rows"] == len(result.plan.rows)
    assert 1.5 < data["cost"]["passes"] <= 2.0
    assert data["after"]["speed"]["decode_tokens_per_s"] > 0
    assert any("zeros are stored dense" in note for note in data["notes"])
    assert "perplexity" in result.render()
    assert data["settings"]["metric"] == "alpha_peak"
    assert "owl_spread" not in data["settings"]  # what didn't act isn't told


def test_bert_is_pruned_but_not_scored(checkpoint, prune, tmp_path):
    prune(checkpoint("bert"), tmp_path / "out")
    with pytest.raises(compress.errors.RequestError, match="causal"):
        prune(checkpoint("bert"), tmp_path / "two", ppl=(str(tmp_path / "x"),))
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_slow_16_bit_cpu_computes_in_float32_and_writes_16_bit(
    method, checkpoint, prune, tmp_path, monkeypatch
):
    from compress.checkpoints import placement
    from compress.sparsity import pruner

    seen = set()
    observe = pruner.Pruner.observe

    def look(self, matrix, inputs, keep):
        seen.update(x.dtype for x in inputs.values())
        observe(self, matrix, inputs, keep)

    monkeypatch.setattr(pruner.Pruner, "observe", look)
    monkeypatch.setattr(placement, "_has_instructions", lambda dtype: False)
    result = prune(checkpoint("llama", torch.bfloat16), tmp_path / "out", method=method)
    assert seen == {torch.float32}
    written = matrices(dense(tmp_path / "out"))
    assert {m.dtype for m in written.values()} == {torch.bfloat16}
    for row in result.plan.rows:
        assert zeros(written[row["module"]]) == row["zeros"]
    if method == "wanda":  # survivors are the stored bits
        for name, before in matrices(dense(checkpoint("llama", torch.bfloat16))).items():
            kept = written[name] != 0
            assert torch.equal(written[name][kept], before[kept])


def test_a_tensor_in_another_dtype_than_the_rest_is_not_rounded(checkpoint, prune, tmp_path):
    source = tmp_path / "mixed"
    make_checkpoint("llama", source, dtype=torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    tensors[name] = torch.rand(32) + 1 / 3
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    prune(source, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written[name].dtype == torch.float32
    assert torch.equal(written[name], tensors[name])


def test_a_low_rank_checkpoint_is_pruned_inside_its_factors(prune, tmp_path):
    model = build("llama")
    name = "model.layers.1.mlp.down_proj"
    edits.apply(model, {name: {"kind": "lowrank", "rank": 8}})
    with torch.no_grad():
        for factor in ("up", "down"):
            model.get_parameter(f"{name}.{factor}.weight").normal_(0, 0.2)
    compress.save(model, tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    result = prune(tmp_path / "model", tmp_path / "out", ppl=())
    counts = {row["module"]: row["zeros"] for row in result.plan.rows}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for factor in ("up", "down"):
        weight = loaded.get_parameter(f"{name}.{factor}.weight")
        assert zeros(weight) == counts[f"{name}.{factor}"] > 0
    stock = compress.export(tmp_path / "out", tmp_path / "stock")
    assert stock.modules == (name,)
    assert sorted(p.name for p in (tmp_path / "stock").glob("*.json")) == sorted(
        {p.name for p in (tmp_path / "model").glob("*.json")} | {"plan.json", "receipt.json"}
    )
