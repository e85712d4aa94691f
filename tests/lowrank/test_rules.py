"""Published rules for spreading rank, output gradients, and trials of whole models."""

import math

import pytest
import torch

import compress
from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.source import open_source
from compress.lowrank.allocation import DENSE, Item, total_kept
from compress.lowrank.allocators import floored, lems, svdllm_v2, swift
from compress.lowrank.gradients import measure_gradients
from compress.lowrank.store import BlockFiles
from compress.progress import silent
from tiny_models import make_batch


def item(out=64, into=64, errors=None):
    ranks = tuple(range(1, out * into // (out + into)))
    errors = errors or tuple(1 / (1 + r) for r in ranks)
    return Item(out * into, out + into, ranks, tuple(errors))


def kept(one, rank):
    return one.kept(rank) / one.dense


def test_v2_keeps_more_of_what_loses_more_whatever_the_scale_of_losses():
    items, kinds = [item() for _ in range(4)], ["q", "q", "q", "o"]
    losses = [0.4, 0.2, 0.1, 0.3]
    ranks = svdllm_v2(items, kinds, losses, 0.6)
    assert ranks == svdllm_v2(items, kinds, [1000 * e for e in losses], 0.6)
    assert ranks[0] > ranks[1] > ranks[2]
    assert kept(items[3], ranks[3]) == pytest.approx(0.6, abs=0.04)  # alone of its kind
    assert total_kept(items, ranks) <= 0.6 * sum(i.dense for i in items)
    q = [1 / (1 + math.log(e / 0.1)) for e in losses[:3]]
    wanted = [1 - 0.4 * 3 * share / sum(q) for share in q]
    for one, rank, share in zip(items, ranks, wanted):
        assert share - 0.04 <= kept(one, rank) <= share + 1e-9


def test_swift_spreads_half_evenly_and_half_by_losses_or_importance():
    items = [item(256, 256) for _ in range(3)]
    losses, importance = [0.9, 0.45, 0.05], [0.0, 1.0, 3.0]
    by_loss = swift(items, importance, losses, 0.5, alpha=0.0)
    by_weight = swift(items, importance, losses, 0.5, alpha=1.0)
    assert by_loss[0] > by_loss[1] > by_loss[2]
    assert by_weight[0] < by_weight[1] < by_weight[2]
    beta = [1.0, 1 + 1 / 3, 2.0]
    for one, rank, b in zip(items, by_weight, beta):
        share = 0.25 + 0.25 * 3 * b / sum(beta)
        assert share - 0.04 <= kept(one, rank) <= share + 1e-9
    assert min(kept(i, r) for i, r in zip(items, by_loss)) >= 0.25


def test_lems_weighs_by_divergence_and_spares_early_blocks():
    items = [item() for _ in range(3)]
    found = lems(items, [0.2, 0.2, 0.4], [0.5, 0.5, 0.5], ["a", "b", "c"], alpha=0, gamma=5)
    assert [f.weight for f in found] == pytest.approx([0.4 * 6, 0.4 * 3.5, 0.8])
    plain = lems(items, [0.2, 0.2, 0.4], [0.5, 0.5, 0.5], ["a", "b", "c"], gamma=0)
    assert [f.weight for f in plain] == pytest.approx([0.4, 0.4, 0.8])
    raised = floored(items, [31] * 3, keep=0.8)
    assert all(f.ranks[0] == 10 for f in raised)
    assert all(f.ranks[0] == 4 for f in floored(items, [31] * 3, keep=0.4))
    assert all(len(f.errors) == len(f.ranks) for f in raised)


@pytest.mark.parametrize("arch", ["llama", "bert", "vit"])
def test_output_gradients_are_those_of_autograd(arch, checkpoint, tmp_path):
    source = open_source(checkpoint(arch))
    model = compress.load(checkpoint(arch))
    matrices = [m for m in read_anatomy(model).matrices if m.role in ("o", "fc2", "down")]
    batch = make_batch(3, 6)
    if arch == "vit":
        batch = {"pixel_values": torch.randn(3, 3, 16, 16)}
    files = BlockFiles(tmp_path / "g")
    measure_gradients(
        source, matrices, [batch], files, seed=3, device="cpu", dtype=torch.float32, progress=silent
    )
    from compress.numerics.counter import generator

    seen = {}
    for matrix in matrices:
        model.get_submodule(matrix.module).register_forward_hook(
            lambda module, inputs, output, name=matrix.name: seen.setdefault(name, output)
        )
    logits = model(**batch).logits
    if arch == "llama":
        logits, labels = logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    else:
        logits = logits.flatten(0, -2)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator(3, 0))[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / 3
    grads = torch.autograd.grad(loss, list(seen.values()))
    for (name, _), gradient in zip(seen.items(), grads):
        rows = gradient.flatten(0, -2)
        norms = rows.norm(dim=1)
        rows, norms = rows[norms > 0], norms[norms > 0]
        rows = rows * (norms.clamp(0.1 * norms.mean(), 10 * norms.mean()) / norms)[:, None]
        block = next(m.block for m in matrices if m.name == name)
        assert torch.allclose(
            files.read(block)[name], rows.T @ rows / len(rows), rtol=1e-3, atol=1e-7
        )


@pytest.mark.parametrize("rule", ["lems", "swift", "svdllm-v2", "greedy", "energy"])
def test_every_rule_keeps_the_budget_and_says_what_it_did(rule, factor, checkpoint, tmp_path):
    done = factor(checkpoint(), tmp_path / "out", alloc=rule, trial_samples=2, samples=8, keep=0.6)
    told = done.receipt.extra["lowrank"]
    assert 0.4 < told["kept"] <= 0.6
    assert done.plan.options["alloc"] == rule
    if rule == "lems":
        found = done.plan.options["divergence"]
        assert all(value > 0 for value in found.values())
    if rule == "swift":
        tried = done.plan.options["tried"]
        assert tried[f"{done.plan.options['swift_alpha']:g}"] == min(tried.values())


def test_kfac_lowers_what_the_loss_feels_and_needs_no_labels(factor, checkpoint, tmp_path):
    done = factor(checkpoint(), tmp_path / "out", method="kfac", gradient_samples=4)
    plain = factor(checkpoint(), tmp_path / "plain", method="whiten")
    errors = [r.receipt.extra["lowrank"]["error"] for r in (done, plain)]
    assert errors[0] > errors[1] * 0.9  # it doesn't minimise this error
    batches = [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(3)]
    vision = compress.lowrank_svd(checkpoint("vit"), keep=0.7, method="kfac", batches=batches)
    assert any(row["kind"] == "lowrank" for row in vision.plan.rows)


def test_trials_measure_the_model_with_layers_truncated(factor, checkpoint, text, tmp_path):
    from compress.lowrank.modules import units_of
    from compress.lowrank.settings import LowRankSettings
    from compress.lowrank.store import StatisticsStore
    from compress.lowrank.trials import TEMPERATURE, Trials

    factor(checkpoint(), dry_run=True, method="whiten", save_stats=str(tmp_path / "stats"))
    source = open_source(checkpoint())
    units = units_of(read_anatomy(compress.load(checkpoint())).matrices[:7], ())
    batches = [make_batch(2, 16)]
    trials = Trials(
        source, units, StatisticsStore(tmp_path / "stats", reads_only=True),
        LowRankSettings(method="whiten"), batches,
        device="cpu", dtype=torch.float32, progress=silent,
    )  # fmt: skip
    full = {u.name: min(u.out, u.into) for u in units}
    assert trials.divergence(full) < 1e-6
    one = units[0].name
    alone = trials.alone({one: 2})[one]
    assert alone > 1e-4
    factor(
        checkpoint(),
        tmp_path / "out",
        method="whiten",
        plan=_plan(source, one),
        load_stats=str(tmp_path / "stats"),
    )
    models = [compress.load(p) for p in (checkpoint(), tmp_path / "out")]
    with torch.no_grad():
        p, q = ((m(**batches[0]).logits / TEMPERATURE).log_softmax(-1) for m in models)
    assert alone == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert trials.divergence(full) < 1e-6  # the dense weights are back


def _plan(source, name):
    from compress.checkpoints.plan import Plan

    row = {"module": name, "kind": "lowrank", "rank": 2, "out": 32, "in": 32, "weights": 1024}
    row |= {"rank_ratio": 2 / 32, "kept": 0.125}
    return Plan("lowrank-svd", source.digest(), [row])


def test_dense_stays_a_choice_of_shares():
    items = [item(), Item(100, 200, (), ())]  # the second is too small for a rank
    assert swift(items, [1, 1], [0.1, 0.1], 1.0, 0.5) == [DENSE, DENSE]
