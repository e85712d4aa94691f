"""Products, constants, selections and the refit against what is computed directly."""

import math
from types import SimpleNamespace

import pytest
import torch
from expert_layers import make_layer, run, subsets

from compress.experts import statistics as stats
from compress.experts.condensing import Recipe, condense_layer
from compress.experts.divergence import greedy_divergence, js_divergence
from compress.experts.layers import apply_mlp
from compress.experts.refit import normal_equations, ridge_refit
from compress.experts.searching import DENSE, Scorer
from compress.experts.selection import (
    SCORES,
    by_score,
    constants_of,
    greedy_least_squares,
    least_squares,
)


@pytest.fixture
def drawn():
    """A layer of six experts and a shared MLP."""
    return make_layer()


def measured(d, **options):
    return stats.measure_experts(d.layer, d.experts, d.shared, d.data, d.act, **options)


def direct_error(d, constants, rows):
    """|Y - sum w_a B_a|^2 / |Y|^2 with every output computed."""
    got = torch.zeros_like(d.data.outputs[rows])
    if d.shared is not None:
        got = got + constants[0] * run(d.shared, d.data.inputs[rows])
    for number, expert in enumerate(d.experts):
        got = got + constants[number + 1] * run(expert, d.data.inputs[rows])
    wanted = d.data.outputs[rows]
    return float((got - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("tile", [1, 7, 10_000])
def test_errors_from_products_are_the_errors_whatever_the_tile(drawn, tile, monkeypatch):
    monkeypatch.setattr(stats, "tile_size", lambda layer: tile)
    found = measured(drawn, held_share=0.25)
    constants = torch.tensor([0.9, 0.1, 0.0, 0.3, 0.0, 0.0, -0.2], dtype=torch.float64)
    assert found.fit.tokens == 300
    assert found.fit.error(constants) == pytest.approx(
        direct_error(drawn, constants, slice(0, 300)), rel=1e-5
    )
    assert found.held.error(constants) == pytest.approx(
        direct_error(drawn, constants, slice(300, 400)), rel=1e-5
    )


def test_sums_of_routing_are_those_of_a_loop_over_tokens(drawn):
    found = measured(drawn)
    count, mass, norm, weighted = (torch.zeros(6, dtype=torch.float64) for _ in range(4))
    for t in range(400):
        for e in range(6):
            if drawn.data.chosen[t, e]:
                size = drawn.outputs[e][t].norm()
                count[e] += 1
                mass[e] += drawn.data.routing[t, e]
                norm[e] += size
                weighted[e] += drawn.data.routing[t, e] * size
    torch.testing.assert_close(found.count, count)
    torch.testing.assert_close(found.mass, mass, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.norm, norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.weighted_norm, weighted, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.conditional_mean(), mass / count, rtol=1e-5, atol=0)
    reap = by_score(found, "reap", 6)
    assert reap == (weighted / count).argsort(descending=True).tolist()


def test_all_experts_with_constant_routing_is_the_layer():
    """Where every token goes to every expert with the same weights, nothing is lost."""
    d = make_layer(routed=6)
    weights = torch.linspace(0.05, 0.3, 6)
    routing = weights.expand(400, 6).clone()
    y = sum(weights[e].double() * d.outputs[e] for e in range(6)) + run(d.shared, d.data.inputs)
    d.data = d.data._replace(
        outputs=y, routing=routing, chosen=torch.ones(400, 6, dtype=torch.bool)
    )
    made = condense_layer(
        d.layer, d.experts, d.shared, None, d.data, d.act,
        Recipe(6, weights="conditional-mean", refit=False),
    )  # fmt: skip
    assert made.row["constants"][0] == 1.0
    by_expert = dict(zip(made.row["experts"], made.row["constants"][1:], strict=True))
    assert [by_expert[e] for e in range(6)] == pytest.approx(weights.tolist(), rel=1e-5)
    torch.testing.assert_close(
        apply_mlp(made.mlp, d.data.inputs.float(), d.act), y.float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_greedy_choice_beside_all_subsets(drawn, size):
    """One expert: the best there is; more: near the best, and never better than it."""
    fit = measured(drawn).fit
    errors = {
        kept: fit.error(least_squares(fit, [0, *(e + 1 for e in kept)]))
        for kept in subsets(6, size)
    }
    kept = greedy_least_squares(fit, size, shared=True)
    mine = errors[tuple(sorted(kept))]
    assert mine >= min(errors.values()) - 1e-12
    if size == 1:
        assert mine == pytest.approx(min(errors.values()), rel=1e-9)
    else:
        assert mine <= sorted(errors.values())[len(errors) // 2]


def test_errors_never_grow_with_more_experts_and_least_squares_beats_means(drawn):
    found = measured(drawn)
    order = greedy_least_squares(found.fit, 6, shared=True)
    assert sorted(order) == list(range(6))
    errors = [
        found.fit.error(least_squares(found.fit, [0, *(e + 1 for e in order[:k])]))
        for k in range(7)
    ]
    assert errors == sorted(errors, reverse=True)
    for k in range(7):
        mean = constants_of(found, order[:k], how="conditional-mean", shared=True)
        assert errors[k] <= found.fit.error(mean) + 1e-12


def test_equal_experts_are_no_trouble(drawn):
    drawn.experts[3] = drawn.experts[1]
    found = measured(drawn)
    order = greedy_least_squares(found.fit, 3, shared=True)
    assert len(set(order)) == 3
    assert least_squares(found.fit, [0, 2, 4]).isfinite().all()


@pytest.mark.parametrize("name", [*SCORES, "do-acp"])
def test_every_score_keeps_different_experts_and_shuns_the_dead(drawn, name):
    drawn.data.chosen[:, 2] = False
    drawn.data.routing[:, 2] = 0.0
    kept = by_score(measured(drawn), name, 4)
    assert len(set(kept)) == 4
    assert 2 not in kept


def test_divergence_is_symmetric_bounded_and_zero_for_equals():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 16, generator=g) * 20 for _ in range(2))
    forth = js_divergence(a, b)
    torch.testing.assert_close(forth, js_divergence(b, a))
    assert float(forth.max()) <= math.log(2) + 1e-6
    assert float(js_divergence(a, a).abs().max()) == 0.0
    # (1/2, 1/2) against (1, 0): the middle is (3/4, 1/4).
    apart = torch.zeros(1, 2), torch.tensor([[0.0, -80.0]])
    left = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    right = math.log(1 / 0.75)
    assert float(js_divergence(*apart)) == pytest.approx((left + right) / 2, rel=1e-5)


def test_divergence_greedy_takes_the_best_single_expert(drawn):
    found = measured(drawn)
    constants = constants_of(found, list(range(6)), how="conditional-mean", shared=True)
    kept = greedy_divergence(
        drawn.layer, drawn.experts, drawn.shared, drawn.data, drawn.act, constants, 2
    )
    whole, x = drawn.data.stream, drawn.data.inputs
    wanted = whole + drawn.data.outputs
    drift = [
        float(
            js_divergence(
                wanted,
                whole + constants[0] * run(drawn.shared, x) + constants[e + 1] * drawn.outputs[e],
            ).mean()
        )
        for e in range(6)
    ]
    assert kept[0] == min(range(6), key=drift.__getitem__)
    assert kept[1] != kept[0]


def merged_of(d, kept=(0, 4)):
    recipe = Recipe(2, refit=False, given={"block.mlp": (list(kept), [1.0, 0.4, 0.3])})
    made = condense_layer(d.layer, d.experts, d.shared, None, d.data, d.act, recipe)
    return made.mlp._replace(**{k: v.double() for k, v in made.mlp._asdict().items()})


def test_refit_is_the_ridge_solution_and_its_ends_are_known(drawn):
    mlp = merged_of(drawn)
    fit = normal_equations(mlp, drawn.data, drawn.act)
    a = drawn.act(drawn.data.inputs @ mlp.gate.T) * (drawn.data.inputs @ mlp.up.T)
    assert fit.error(mlp.down) == pytest.approx(
        float((a @ mlp.down.T - drawn.data.outputs).square().sum() / fit.energy), rel=1e-5
    )
    strong = ridge_refit(fit, fit, mlp.down, ridges=(1e9,)).down
    torch.testing.assert_close(strong.double(), mlp.down, rtol=1e-4, atol=1e-5)
    weak = ridge_refit(fit, fit, mlp.down, ridges=(1e-9,))
    best = torch.linalg.lstsq(a, drawn.data.outputs).solution.T
    assert fit.error(weak.down) == pytest.approx(fit.error(best), rel=1e-4)
    assert weak.held_error < weak.anchor_error
    least = fit.error(least_squares_constants(drawn, mlp))
    assert fit.error(weak.down) <= least + 1e-9


def least_squares_constants(d, mlp):
    """The down projection with the best constants for the three MLPs in it."""
    widths = [7, 5, 5]
    parts, start = [], 0
    for w in widths:
        part = torch.zeros_like(mlp.down)
        part[:, start : start + w] = mlp.down[:, start : start + w]
        parts.append(part)
        start += w
    a = d.act(d.data.inputs @ mlp.gate.T) * (d.data.inputs @ mlp.up.T)
    columns = torch.stack([(a @ p.T).flatten() for p in parts], 1)
    best = torch.linalg.lstsq(columns, d.data.outputs.flatten()[:, None]).solution[:, 0]
    return sum(b * p for b, p in zip(best, parts, strict=True))


def test_too_few_tokens_never_make_a_layer_worse():
    d = make_layer(tokens=24)
    mlp = merged_of(d)
    fit, held = d.data.split(0.25)
    found = ridge_refit(
        normal_equations(mlp, fit, d.act), normal_equations(mlp, held, d.act), mlp.down
    )
    assert found.held_error <= found.anchor_error
    assert "24 tokens for a width of 17" in found.note


def test_a_kept_gate_leaves_the_shared_part_exact():
    d = make_layer(gated=True)
    kept = condense_layer(
        d.layer, d.experts, d.shared, d.gate_row, d.data, d.act,
        Recipe(2, shared_gate="keep", refit=False),
    )  # fmt: skip
    constant = condense_layer(
        d.layer, d.experts, d.shared, d.gate_row, d.data, d.act,
        Recipe(2, shared_gate="constant", refit=False),
    )  # fmt: skip
    assert kept.shared is d.shared
    assert kept.row["kind"] == "gated_dense_mlp"
    assert kept.row["errors"]["least_squares"] < constant.row["errors"]["least_squares"]


def test_mean_of_a_sigmoid_gate_is_the_published_constant():
    d = make_layer(gated=True)
    made = condense_layer(
        d.layer, d.experts, d.shared, d.gate_row, d.data, d.act,
        Recipe(0, weights="conditional-mean", shared_gate="constant", refit=False),
    )  # fmt: skip
    assert made.row["constants"] == [pytest.approx(float(d.data.gate.mean()))]
    assert made.mlp.width == 7


def test_texts_count_alike_however_long_they_are(drawn):
    """The published mean is over texts of their means: a short one weighs as much as a long one."""
    found = measured(drawn)
    constants = constants_of(found, list(range(6)), how="conditional-mean", shared=True)
    whole, x = drawn.data.stream, drawn.data.inputs
    wanted = whole + drawn.data.outputs
    base = whole + constants[0] * run(drawn.shared, x)
    each = torch.stack(
        [js_divergence(wanted, base + constants[e + 1] * drawn.outputs[e]) for e in range(6)]
    )
    picks = set()
    for short in range(1, 40):
        lengths = [len(x) - short, short]
        means = torch.stack([part.mean(1) for part in each.split(lengths, 1)]).mean(0)
        weight = torch.cat([torch.full((n,), 1 / n) for n in lengths])
        kept = greedy_divergence(
            drawn.layer, drawn.experts, drawn.shared, drawn.data._replace(weight=weight),
            drawn.act, constants, 1,
        )  # fmt: skip
        assert kept == [int(means.argmin())]
        picks.add(kept[0])
    assert len(picks) > 1  # else the weights would show nothing


def test_the_search_counts_texts_alike_and_padding_not_at_all():
    """js-hidden is the mean over texts of their means; the others are means over tokens."""
    g = torch.Generator().manual_seed(0)
    dense, other = torch.randn(2, 2, 6, 9, generator=g)
    mask = torch.tensor([[1] * 6, [0] * 4 + [1] * 2])
    batch = {"input_ids": torch.randint(9, (2, 6), generator=g), "attention_mask": mask}
    values = {}
    for metric in ("js-hidden", "kl-logits"):
        scorer = Scorer(metric, [batch])
        for stream, value in ((DENSE, dense), ("new", other)):
            scorer.hidden = value
            scorer(stream, 0, SimpleNamespace(logits=value))
        values[metric] = scorer.values()["new"]
        assert scorer.values()[DENSE] == pytest.approx(0.0, abs=1e-6)
    each = js_divergence(dense, other)
    assert values["js-hidden"] == pytest.approx(float(each[0].mean() + each[1, 4:].mean()) / 2)
    p, q = dense.log_softmax(-1), other.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert values["kl-logits"] == pytest.approx(float(kl[mask.bool()].mean()), rel=1e-5)
