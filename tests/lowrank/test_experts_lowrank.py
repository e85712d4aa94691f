"""Stacked experts as factors: each expert apart, with the same function, and back again."""

import copy

import pytest
import torch
import transformers
from families import build, make_batches
from torch.nn.functional import silu

import compress
from compress.checkpoints import edits
from compress.checkpoints.anatomy import matrix_view, read_anatomy
from compress.checkpoints.edits.expert_list import (
    ExpertList,
    can_list,
    listed,
    stack,
    stacked_name,
)
from compress.checkpoints.edits.lowrank import LowRank
from compress.checkpoints.effective import block_weights, compare_weights
from compress.checkpoints.loader import skeleton
from compress.errors import RequestError
from compress.lowrank.command import lowrank_svd
from compress.lowrank.modules import Unit, edits_of, units_of
from compress.lowrank.scratch.factoring import factor as factor_start
from compress.lowrank.scratch.settings import ScratchSettings
from compress.lowrank.truncate import truncate
from compress.training.initial import Start

FAMILIES = ["mixtral", "qwen2_moe", "gpt_oss", "nemotron_h", "deepseek_v3"]


def experts_of(model):
    return {name: module for name, module in model.named_modules() if can_list(module)}


def as_list(model):
    """The model with its experts one by one."""
    model = copy.deepcopy(model)
    edits.swap(model, {name: {"kind": "expert_list"} for name in experts_of(model)})
    return model


@torch.no_grad()
def logits(model, batch):
    return model(**batch)[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_list_computes_what_the_stack_does_and_goes_back(kind):
    model, batch = build(kind), make_batches(kind)[0]
    other = as_list(model)
    found, wanted = logits(other, batch), logits(model, batch)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    for name, old in experts_of(model).items():
        new = copy.deepcopy(old)
        stack(other.get_submodule(name), new)
        assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters()))


def test_plain_loops_over_tokens_and_experts_agree():
    model = build("mixtral")
    name, old = next(iter(experts_of(model).items()))
    new = as_list(model).get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, old.down_proj.shape[1], generator=generator)
    count = old.down_proj.shape[0]
    index = torch.stack([torch.randperm(count, generator=generator)[:2] for _ in range(11)])
    index[:, 0] = torch.where(index[:, 0] == 3, 3 - index[:, 1], index[:, 0])  # fewer for the last
    weights = torch.rand(11, 2, generator=generator)
    slow = torch.zeros_like(hidden)
    for token in range(11):
        for place in range(2):
            expert, x = int(index[token, place]), hidden[token]
            gate, up = (old.gate_up_proj[expert] @ x).chunk(2)
            slow[token] += weights[token, place] * (old.down_proj[expert] @ (silu(gate) * up))
    assert torch.allclose(new(hidden, index, weights), slow, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_experts_that_were_chosen_and_no_others():
    model = as_list(build("mixtral"))
    experts = next(m for m in model.modules() if isinstance(m, ExpertList))
    hidden = torch.randn(5, experts[0].up_linear.in_features)
    index = torch.tensor([[0, 1]] * 5)
    experts(hidden, index, torch.ones(5, 2)).sum().backward()
    assert float(experts[1].down_linear.weight.grad.abs().sum()) > 0
    assert experts[2].down_linear.weight.grad is None


def test_layout_of_interleaved_transposed_experts_with_biases():
    experts = next(iter(experts_of(build("gpt_oss")).values()))
    views = listed(dict(experts.named_parameters()), experts)
    assert torch.equal(views["1.gate_linear.weight"], experts.gate_up_proj[1, :, 0::2].T)
    assert torch.equal(views["1.up_linear.weight"], experts.gate_up_proj[1, :, 1::2].T)
    assert torch.equal(views["2.up_linear.bias"], experts.gate_up_proj_bias[2, 1::2])
    assert torch.equal(views["0.down_linear.weight"], experts.down_proj[0].T)


def test_only_stacks_that_the_library_runs_become_lists():
    model = build("llama4_text")
    name = next(n for n, _ in model.named_modules() if n.endswith(".experts"))
    with pytest.raises(RequestError, match="can't replace a Llama4TextExperts"):
        edits.apply(model, {name: {"kind": "expert_list"}})
    with pytest.raises(RequestError, match=r"their own code runs stacked"):
        lowrank_svd(model, keep=0.7, include=["*.experts.*"], batches=make_batches("llama4_text"))


@pytest.mark.parametrize("method", ["svd", "whiten", "kfac", "sequential"])
def test_every_method_factors_experts(method, factor, checkpoint, tmp_path):
    path = checkpoint("mixtral")
    done = factor(path, tmp_path / "out", method=method, include=["ffn"], round=1, keep=0.6)
    told = done.receipt.extra["lowrank"]
    assert any("experts are stored and run one by one" in note for note in done.receipt.notes)
    assert told["factored"] > 12
    model = compress.load(tmp_path / "out")
    names = {n for n, m in model.named_modules() if isinstance(m, LowRank)}
    assert len(names) == told["factored"]
    assert all(".mlp.experts." in name for name in names)


def test_plain_svd_of_an_expert_is_that_of_its_matrix(factor, checkpoint, tmp_path):
    path = checkpoint("mixtral")
    done = factor(path, tmp_path / "out", method="svd", include=["*.down_proj"], rank=8)
    assert {row["rank"] for row in done.plan.rows} == {8}
    dense, found = compress.load(path), compress.load(tmp_path / "out")
    matrices = {m.name: m for b in read_anatomy(dense).blocks for m in b.editable}
    for row in done.plan.rows:
        matrix = matrices[row["module"]]
        weight = matrix_view(dense.get_parameter(matrix.parameter), matrix).double()
        layer = found.get_submodule(row["module"].replace("down_proj", "down_linear"))
        assert torch.allclose(layer.product(), torch.matmul(*truncate(weight, None, 8)), atol=1e-5)
    left = next(m for m in matrices.values() if m.name.endswith("experts.1.up_proj"))
    kept = found.get_submodule(left.name.replace("up_proj", "up_linear")).weight
    assert torch.equal(kept, matrix_view(dense.get_parameter(left.parameter), left))


def test_gate_and_up_of_an_expert_share_a_factor(factor, checkpoint, tmp_path):
    done = factor(checkpoint("mixtral"), tmp_path / "out", share=["gate-up"], include=["ffn"])
    pairs = [row for row in done.plan.rows if row.get("shared")]
    assert pairs
    found = compress.load(tmp_path / "out")
    for row in pairs:
        expert = found.get_submodule(row["module"].rpartition(".")[0])
        assert expert.up_linear.down is expert.gate_linear.down


def test_stock_form_is_the_stack_again(factor, checkpoint, tmp_path):
    factor(checkpoint("mixtral"), tmp_path / "out", share=["gate-up"])
    done = compress.export(tmp_path / "out", tmp_path / "stock")
    assert any("experts" in name for name in done.modules)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert not any(isinstance(m, (ExpertList, LowRank)) for m in stock.modules())
    edited, tokens = compress.load(tmp_path / "out"), {"input_ids": torch.arange(10)[None]}
    wanted = logits(edited, tokens)
    assert torch.allclose(logits(stock, tokens), wanted, rtol=1e-3, atol=1e-4)
    for name, experts in edited.named_modules():
        if isinstance(experts, ExpertList):
            gate = experts[1].gate_linear
            product = gate.product() if isinstance(gate, LowRank) else gate.weight
            rows = stock.get_submodule(name).gate_up_proj[1][: product.shape[0]]
            assert torch.allclose(rows, product.float(), atol=1e-6)


def test_what_was_made_is_pruned_factored_further_and_compared(factor, checkpoint, text, tmp_path):
    path = checkpoint("mixtral")
    factor(path, tmp_path / "one", include=["*.down_proj"], rank=8)
    factor(tmp_path / "one", tmp_path / "two", include=["attention"], keep=0.7)
    compress.alpha_prune(
        tmp_path / "one", tmp_path / "pruned", sparsity=0.5, method="wanda", calib=str(text),
        samples=8, seqlen=32,
    )  # fmt: skip
    pruned = compress.load(tmp_path / "pruned")
    experts = next(m for m in pruned.modules() if isinstance(m, ExpertList))
    assert any(float((expert.up_linear.weight == 0).float().mean()) > 0.2 for expert in experts)
    one, other = compress.load(path), compress.load(tmp_path / "one")
    for block in read_anatomy(one).blocks:
        twin = next(b for b in read_anatomy(other).blocks if b.name == block.name)
        rows = list(compare_weights(block_weights(one, block), block_weights(other, twin)))
        assert all(row.squares is not None for row in rows), "an expert has one name in both"
        same = {row.name for row in rows if row.squares and row.squares[0] == 0}
        assert not any(name.endswith("down_proj") for name in same)
        assert f"{block.name}.mlp.experts.0.up_proj" in same


def test_a_family_whose_files_rename_a_part_is_left_alone(checkpoint, monkeypatch):
    """Where one layer of a list wouldn't come back, none of that list may be taken apart."""
    from compress.checkpoints.source import open_source
    from compress.lowrank import storable

    source = open_source(checkpoint("mixtral"))
    model = skeleton(source)
    anatomy = read_anatomy(model)
    units = units_of([m for b in anatomy.blocks for m in b.editable], ())
    assert storable.unstorable(source, units) == {}
    come_back = storable._Names.come_back

    def one_fails(self, name, like=None):
        return "0.mlp.experts.2.gate_linear.weight" not in name and come_back(self, name, like)

    monkeypatch.setattr(storable._Names, "come_back", one_fails)
    found = storable.unstorable(source, units)
    assert {name.partition(".experts.")[0] for name in found} == {"model.layers.0.mlp"}
    assert len(found) == sum("layers.0.mlp.experts" in unit.name for unit in units)


def test_edits_of_an_expert_name_its_list_once():
    model = build("mixtral")
    matrices = [m for b in read_anatomy(model).blocks for m in b.editable if m.expert is not None]
    made = edits_of((Unit((m,)), 2) for m in matrices)
    kinds = [fields["kind"] for fields in made.values()]
    assert kinds.count("expert_list") == len(experts_of(model))
    assert kinds.count("lowrank") == len(matrices)


def test_from_scratch_experts_start_as_factors_of_the_dense_start():
    dense, model = build("mixtral"), build("mixtral")
    settings = ScratchSettings(rank_ratio=0.5, include=("ffn",), start="family")
    start = Start("mixtral", model.config, None)
    done = factor_start(model, start, settings)
    assert done.plan is not None
    for row in done.plan.rows:
        layer = model.get_submodule(row["module"])
        name = stacked_name(row["module"])
        matrix = next(m for b in read_anatomy(dense).blocks for m in b.editable if m.name == name)
        weight = matrix_view(dense.get_parameter(matrix.parameter), matrix)
        up, down = truncate(weight.double(), None, row["rank"])
        assert torch.allclose(layer.product(), up @ down, atol=1e-5)
    experts = [m for b in read_anatomy(dense).blocks for m in b.editable if m.expert is not None]
    assert len(done.plan.rows) == len(experts)
