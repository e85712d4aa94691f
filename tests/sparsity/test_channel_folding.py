"""Channel permutation in whole models: the function stays, the pattern holds, more is kept."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.sparsity import channel_folding
from compress.sparsity.channel_permutation import retained
from compress.sparsity.pruner import Pruner, Target
from tiny_models import ARCHITECTURES, MORE_ARCHITECTURES, make_batch, make_checkpoint

PATTERN = (2, 4)


class OnlyFolds(Pruner):
    """Permutes channels and prunes nothing; keeps what became of each matrix."""

    def __init__(self, names, method):
        targets = {name: Target(1, PATTERN) for name in names}
        super().__init__(targets, method, channel_permutation=True)
        self.gains, self.in_order = {}, {}

    def _prune(self, name, view, target):
        return None, None

    def finish(self, block, weights):
        self.gains |= self._folding.gains
        self.in_order |= self._folding.in_order
        super().finish(block, weights)


def folded(path, out, method="magnitude", skip=()):
    """The checkpoint with its channels permuted, and the method."""
    source = open_source(path)
    writer = open_writer(out / "parts", source)
    names = []

    class Names(OnlyFolds):
        def stages(self, block):
            new = [m.name for m in block.matrices if m.role not in skip]
            names.extend(new)
            self.targets |= {name: Target(1, PATTERN) for name in new}
            self._folding.wanted = dict.fromkeys(self.targets, PATTERN)
            return super().stages(block)

    made = Names([], method)
    walk(source, [make_batch(seed=1), make_batch(seed=2)], made, writer)
    writer.join(out)
    for file in ("config.json", "generation_config.json"):
        if (path / file).is_file():
            (out / file).write_bytes((path / file).read_bytes())
    return made


def logits(path):
    model = open_source(path).model_class().from_pretrained(path, dtype=torch.float32).eval()
    inputs = make_batch(seed=7)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        return model(**inputs).logits


def leaves(names):
    return {name.rpartition(".")[2] for name in names}


FOLDED = {
    "llama": {"o_proj", "down_proj"},
    "mistral": {"o_proj", "down_proj"},
    "qwen2": {"o_proj", "down_proj"},  # with biases of v
    "qwen3": {"o_proj", "down_proj"},
    "gemma2": {"o_proj", "down_proj"},
    "phi": {"dense", "fc2"},
    "opt": {"out_proj", "fc2"},
    "gpt2": {"c_proj"},  # of the feed-forward part
    "gpt_neox": {"dense_4h_to_h"},
    "bert": {"dense"},
    "mixtral": {"o_proj", "down_proj"},  # each expert has an order of its own
    "qwen2_moe": {"o_proj", "down_proj"},
    "phi3": {"down_proj"},
    "olmo2": {"o_proj", "down_proj"},
    "starcoder2": {"o_proj", "c_proj"},
    "deepseek_v3": {"down_proj"},
    "modernbert": set(),
    "gpt_oss": {"o_proj"},  # its experts' biases are not theirs alone
}


@pytest.mark.parametrize("arch", FOLDED)
def test_the_function_is_that_of_the_model(arch, tmp_path):
    known = {**ARCHITECTURES, **MORE_ARCHITECTURES}
    assert arch in known
    path = make_checkpoint(arch, tmp_path / "dense")
    made = folded(path, tmp_path / "folded")
    assert FOLDED[arch] <= leaves(made.gains), made.in_order
    assert not made.gains.keys() & made.in_order.keys()
    before, after = logits(path), logits(tmp_path / "folded")
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    stored = open_source(tmp_path / "folded")
    names = [n for n in open_source(path).tensors if n in stored.tensors]
    assert len(names) == len(stored.tensors)
    assert all(stored.tensors[n].shape == open_source(path).tensors[n].shape for n in names)


def test_what_reads_the_residual_stream_stays_and_is_listed(tmp_path):
    path = make_checkpoint("llama", tmp_path / "dense")
    made = folded(path, tmp_path / "folded")
    for leaf in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        reasons = {why for name, why in made.in_order.items() if name.endswith(leaf)}
        assert reasons == {channel_folding.RESIDUAL}
    before, after = (
        AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (path, tmp_path / "folded")
    )
    for name, value in before.items():
        same = torch.equal(value, after[name])
        assert same == (
            name.split(".")[-2] not in leaves(made.gains) | {"v_proj", "gate_proj", "up_proj"}
        )
        if not same:
            assert torch.equal(value.flatten().sort().values, after[name].flatten().sort().values)


def test_query_heads_of_one_value_head_share_their_order(tmp_path):
    path = make_checkpoint("llama", tmp_path / "dense")  # 4 query heads, 2 value heads, 8 channels
    folded(path, tmp_path / "folded")
    before, after = (
        AutoModelForCausalLM.from_pretrained(p).model.layers[0].self_attn
        for p in (path, tmp_path / "folded")
    )
    old, new = (m.o_proj.weight.detach().unflatten(1, (2, 2, 8)) for m in (before, after))
    rows_old, rows_new = (m.v_proj.weight.detach().unflatten(0, (2, 8)) for m in (before, after))
    for head in range(2):
        order = [int((rows_old[head] == rows_new[head, j]).all(1).nonzero()) for j in range(8)]
        assert sorted(order) == list(range(8))
        assert torch.equal(old[:, head][..., order], new[:, head])


@pytest.mark.parametrize("wrong", ["k", "q"])
def test_a_fold_that_would_change_the_function_is_undone(wrong, tmp_path, monkeypatch):
    monkeypatch.setitem(channel_folding._FEEDS, "o", (wrong,))
    path = make_checkpoint("opt", tmp_path / "dense")
    made = folded(path, tmp_path / "folded")
    reasons = {why for name, why in made.in_order.items() if name.endswith("out_proj")}
    assert reasons == {"what it reads isn't what its producer gives, channel by channel"}
    before, after = (
        AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (path, tmp_path / "folded")
    )
    for name, value in before.items():
        if "self_attn" in name:
            assert torch.equal(value, after[name]), name


def test_a_changed_output_undoes_what_its_inputs_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(channel_folding, "_close", lambda a, b: a.dim() == 2)  # inputs pass
    path = make_checkpoint("llama", tmp_path / "dense")
    made = folded(path, tmp_path / "folded")
    assert not made.gains
    assert "what its block returns would change" in made.in_order.values()
    before, after = (
        AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (path, tmp_path / "folded")
    )
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_producer_that_is_left_alone_stays_as_it_is(tmp_path):
    made = folded(make_checkpoint("llama", tmp_path / "dense"), tmp_path / "out", skip=("gate",))
    reasons = {why for name, why in made.in_order.items() if name.endswith("down_proj")}
    assert len(made.gains) == 4
    assert all("gate_proj`, which feeds it, is left alone" in why for why in reasons)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "ria", "sparsegpt", "admm", "dsnot"])
def test_the_stored_weights_have_the_pattern_and_keep_more(method, checkpoint, prune, tmp_path):
    options = {"sparsity": None, "pattern": "2:4", "method": method}
    plain = prune(checkpoint(), tmp_path / "plain", **options)
    result = prune(checkpoint(), tmp_path / "out", channel_permutation=True, **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for row in result.plan.rows:
        weight = model.get_submodule(row["module"]).weight.detach()
        groups = (weight != 0).unflatten(1, (-1, 4)).sum(2)
        assert bool((groups == 2).all())
    notes = " ".join(result.receipt.notes)
    assert "4 o_proj (+" in notes
    assert "4 down_proj (+" in notes
    assert "4 q_proj, 4 k_proj, 4 v_proj, 4 gate_proj, 4 up_proj: reads the residual" in notes
    assert not any("channel" in note for note in plain.receipt.notes)
    if method == "magnitude":
        dense = AutoModelForCausalLM.from_pretrained(checkpoint())
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            full, now = (
                m.get_submodule(f"model.layers.0.{name}").weight.detach().abs()
                for m in (dense, model)
            )
            assert float(now.sum()) > retained(full, 2, 4)


def test_stages_and_a_mixed_pattern_and_a_resume_fold_too(checkpoint, prune, tmp_path):
    options = {"pattern": "mixed:4", "channel_permutation": True, "metric": "alpha_mid"}
    for stages in ("true-sequential", "pruned"):
        result = prune(checkpoint("mixtral"), tmp_path / stages, propagate=stages, **options)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / stages)
        assert sum(int((p == 0).sum()) for p in model.parameters()) >= sum(
            row["zeros"] for row in result.plan.rows
        )
        assert any("o_proj (+" in note for note in result.receipt.notes)
    again = prune(checkpoint("mixtral"), tmp_path / "again", **options)
    one, two = (
        (tmp_path / place / "model.safetensors").read_bytes() for place in ("pruned", "again")
    )
    assert one == two
    assert json.loads((tmp_path / "again" / "receipt.json").read_text())["notes"] == list(
        again.receipt.notes
    )
