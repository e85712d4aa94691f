"""Layers that stay sparse with fewer experts."""

import json

import families
import pytest
import torch
from expert_layers import make_layer
from transformers import AutoModelForCausalLM

import compress
from compress.errors import RequestError
from compress.experts.fewer import (
    MERGE,
    aligned,
    clusters,
    fewer_tensors,
    kept_experts,
)
from compress.experts.statistics import measure_experts
from tiny_models import make_batch, make_checkpoint

BATCHES = [make_batch(4, 24, seed=s) for s in range(3)]


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return make_checkpoint("qwen2_moe", tmp_path_factory.mktemp("qwen") / "src")


@pytest.mark.parametrize("mode", ["prune", "merge"])
def test_all_experts_kept_is_the_model(qwen, tmp_path, mode):
    compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, mode=mode, experts=4)
    one, other = (AutoModelForCausalLM.from_pretrained(p) for p in (qwen, tmp_path / "out"))
    assert torch.equal(logits(one, BATCHES[0]), logits(other, BATCHES[0]))


def test_pruned_layers_hold_the_kept_experts_and_their_router_rows(qwen, tmp_path):
    done = compress.cd_moe_condense(
        qwen, tmp_path / "out", batches=BATCHES, mode="prune", experts=3
    )
    old, new = (AutoModelForCausalLM.from_pretrained(p) for p in (qwen, tmp_path / "out"))
    assert new.config.num_experts == 3
    for row in done.plan.rows:
        before, after = old.get_submodule(row["module"]), new.get_submodule(row["module"])
        assert torch.equal(after.gate.weight, before.gate.weight[row["experts"]])
        assert torch.equal(after.experts.down_proj, before.experts.down_proj[row["experts"]])
        assert torch.equal(after.shared_expert.up_proj.weight, before.shared_expert.up_proj.weight)
        assert torch.equal(after.shared_expert_gate.weight, before.shared_expert_gate.weight)
    receipt = done.as_dict()
    gone = receipt["before"]["parameters"] - receipt["after"]["parameters"]
    assert gone == 4 * (3 * 24 * 32 + 32)
    active = receipt["experts"]["active_parameters"]
    assert active["before"] - active["after"] == 4 * 32  # the router's rows


FAMILIES = """qwen3_moe mixtral olmoe deepseek_v2 glm4_moe_lite ernie4_5_moe hunyuan_v1_moe afmoe
    lfm2_moe minimax_m2"""


@pytest.mark.parametrize("mode", ["prune", "merge"])
@pytest.mark.parametrize("family", FAMILIES.split())
def test_family_loads_with_fewer_experts(family, mode, tmp_path):
    families.build(family).save_pretrained(tmp_path / "src")
    stored = tmp_path / "src" / "config.json"
    config = json.loads(stored.read_text())  # two groups of two leave no room for three experts
    config.update({name: 1 for name in ("n_group", "topk_group") if name in config})
    stored.write_text(json.dumps(config))
    batches = families.make_batches(family, count=2, rows=3, length=20)
    done = compress.cd_moe_condense(
        tmp_path / "src", tmp_path / "out", batches=batches, mode=mode, experts=3
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for row in done.plan.rows:
        experts = model.get_submodule(row["module"]).experts
        assert len(experts.gate_up_proj) == len(experts.down_proj) == 3
    assert logits(model, batches[0]).isfinite().all()


def test_groups_of_the_router_keep_as_many_each():
    d = make_layer(count=6)
    found = measure_experts(d.layer, d.experts, d.shared, d.data, d.act)
    kept = kept_experts(found, "reap", 4, groups=2)
    assert [e // 3 for e in kept] == [0, 0, 1, 1]
    scores = found.weighted_norm / found.count
    for group in (0, 1):
        own = scores[3 * group : 3 * group + 3]
        assert set(range(3)) - {e - 3 * group for e in kept if e // 3 == group} == {
            int(own.argmin())
        }


def test_near_experts_are_grouped_and_the_most_used_leads():
    centers = torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.1, 0.0], [5.0, 5.1], [20.0, 0.0]])
    used = torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0])
    assert clusters(centers, used, 3) == [[1, 3], [2, 0], [4]]


def test_an_expert_with_its_neurons_shuffled_merges_into_itself():
    g = torch.Generator().manual_seed(0)
    gate_up, down = torch.randn(2, 10, 6, generator=g), torch.randn(2, 6, 5, generator=g)
    order = torch.randperm(5, generator=g)
    gate, up = gate_up[0].chunk(2)
    gate_up[1] = torch.cat([gate[order], up[order]])
    down[1] = down[0][:, order]
    found = aligned((gate, up, down[0]), (gate[order], up[order], down[1]))
    assert torch.equal(order[found], torch.arange(5))
    layer = make_layer(count=2, width=5, hidden=6, shared=False).layer
    tensors = {"block.mlp.experts.gate_up_proj": gate_up, "block.mlp.experts.down_proj": down}
    row = {"kind": MERGE, "experts": [0], "clusters": [[0, 1]], "shares": [[0.3, 0.7]]}
    merged = fewer_tensors(tensors, layer, row)
    torch.testing.assert_close(merged["block.mlp.experts.gate_up_proj"], gate_up[:1])
    torch.testing.assert_close(merged["block.mlp.experts.down_proj"], down[:1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "prune", "experts": 1}, "each token is routed to 2"),
        ({"mode": "prune", "experts": 9}, "has 4 experts"),
        ({"mode": "prune", "layers": 2}, "`--layers` can't act with `--mode prune`"),
        ({"mode": "merge", "score": "reap"}, "`--score` can't act with `--mode merge`"),
        ({"mode": "prune", "score": "greedy-js"}, "isn't a score"),
        ({"mode": "prun"}, "did you mean `prune`"),
    ],
    ids=str,
)
def test_refused_in_one_line(qwen, tmp_path, options, words):
    with pytest.raises(RequestError) as found:
        compress.cd_moe_condense(qwen, tmp_path / "out", batches=BATCHES, **options)
    assert words in f"{found.value.message} {found.value.hint}"
    assert not (tmp_path / "out").exists()


def test_groups_that_cannot_be_kept_are_refused(tmp_path):
    families.build("deepseek_v3").save_pretrained(tmp_path / "src")
    with pytest.raises(RequestError, match="among 2 groups of equal size"):
        compress.cd_moe_condense(
            tmp_path / "src", tmp_path / "out", mode="prune", experts=3,
            batches=families.make_batches("deepseek_v3"),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
