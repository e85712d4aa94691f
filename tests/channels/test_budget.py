"""The cut: never above the budget, one step further would be, whatever the scope and rounding."""

import itertools

import pytest
import torch

from compress.channels.budget import (
    SCOPES,
    bounds,
    keep_by_ratio,
    keep_for_budget,
    kept,
    unit_order,
)
from compress.channels.costs import measure_costs
from compress.channels.groups import find_groups
from compress.errors import RequestError
from tests.channels.families import build, images


def network(name="resnet-bottleneck", seed=0):
    model, example = build(name), images()
    groups = find_groups(model, example)
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(g.width, generator=generator) * (1 + i) for i, g in enumerate(groups)]
    return groups, scores, measure_costs(model, example, groups)


def slow_counts(scores, groups, cut, limits, scope):
    """The definition, by walking down the order."""
    place, owner = unit_order(scores, groups, scope, limits.least)
    counts = [0] * len(groups)
    for unit in torch.argsort(place)[:cut]:
        counts[int(owner[unit])] += 1
    out = []
    for i, count in enumerate(counts):
        step, width = int(limits.step[i]), groups[i].width
        out.append(width if count == width else max(count // step * step, int(limits.least[i])))
    return torch.tensor(out)


@pytest.mark.parametrize(("scope", "round_to"), itertools.product(SCOPES, (1, 4)))
@pytest.mark.parametrize("name", ["resnet-bottleneck", "regnet-y", "vit"])
def test_the_budget_holds_and_the_next_unit_breaks_it(name, scope, round_to):
    groups, scores, costs = network(name)
    limits = bounds(groups, min_keep=0.1, round_to=round_to)
    whole = float(costs.macs_of(costs.widths))
    for share in (0.9, 0.6, 0.4):
        masks = keep_for_budget(
            scores, groups, costs.macs_of, share * whole, limits=limits, scope=scope
        )
        counts = kept(masks)
        assert float(costs.macs_of(counts)) <= share * whole
        assert bool((counts >= limits.least).all())
        units = sum(len(score) for score in scores)
        cuts = [slow_counts(scores, groups, n, limits, scope) for n in range(units + 1)]
        affordable = [n for n, c in enumerate(cuts) if float(costs.macs_of(c)) <= share * whole]
        assert counts.tolist() == cuts[affordable[-1]].tolist()
        for mask, score in zip(masks, scores, strict=True):
            if 0 < mask.sum() < len(mask):
                assert score[mask].min() >= score[~mask].max()


def test_more_budget_never_keeps_less():
    groups, scores, costs = network()
    whole = float(costs.macs_of(costs.widths))
    before = torch.zeros(len(groups))
    for share in torch.linspace(0.2, 1.0, 9).tolist():
        now = kept(keep_for_budget(scores, groups, costs.macs_of, share * whole))
        assert bool((now >= before).all())
        before = now
    assert before.tolist() == [g.width for g in groups]


def test_channel_counts_are_multiples_or_whole():
    groups, scores, costs = network("regnet-x")
    limits = bounds(groups, round_to=8)
    masks = keep_for_budget(
        scores, groups, costs.macs_of, 0.6 * float(costs.macs_of(costs.widths)), limits=limits
    )
    for group, count in zip(groups, kept(masks).tolist(), strict=True):
        channels = count * group.writers[0].span
        assert channels % 8 == 0 or count == group.width


def test_a_budget_below_the_floors_says_the_least_reachable():
    groups, scores, costs = network()
    limits = bounds(groups, min_keep=0.5)
    whole = float(costs.macs_of(costs.widths))
    with pytest.raises(RequestError, match="can't be reached") as caught:
        keep_for_budget(scores, groups, costs.macs_of, 0.05 * whole, limits=limits)
    said = float(caught.value.hint.split()[2])
    masks = keep_for_budget(scores, groups, costs.macs_of, said * whole, limits=limits)
    assert kept(masks).tolist() == limits.least.tolist()


def test_ties_keep_the_lower_index():
    groups, _, costs = network()
    flat = [torch.ones(g.width) for g in groups]
    masks = keep_for_budget(flat, groups, costs.macs_of, 0.5 * float(costs.macs_of(costs.widths)))
    for mask in masks:
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_isomorphic_scope_is_blind_to_the_scale_of_a_scope():
    groups, scores, costs = network("vit")
    target = 0.5 * float(costs.macs_of(costs.widths))
    louder = [s * (100 if g.kind == "mlp" else 1) for s, g in zip(scores, groups, strict=True)]
    for scope, same in (("isomorphic", True), ("uniform", True), ("global", False)):
        a = keep_for_budget(scores, groups, costs.macs_of, target, scope=scope)
        b = keep_for_budget(louder, groups, costs.macs_of, target, scope=scope)
        assert (kept(a).tolist() == kept(b).tolist()) is same


def test_ratio_takes_the_same_share_of_every_group():
    groups, scores, _ = network()
    masks = keep_by_ratio(scores, groups, 0.25, bounds(groups))
    assert kept(masks).tolist() == [round(0.75 * g.width) for g in groups]


def test_many_keep_vectors_at_once():
    groups, _, costs = network("vit")
    keeps = torch.stack([costs.widths, torch.ones(len(groups), dtype=torch.int64)])
    together = costs.macs_of(keeps)
    assert together.tolist() == [float(costs.macs_of(row)) for row in keeps]


@pytest.mark.parametrize("name", ["resnet-bottleneck", "regnet-y", "vit"])
def test_filling_takes_whatever_still_fits(name):
    groups, scores, costs = network(name)
    limits = bounds(groups, round_to=4)
    target = 0.5 * float(costs.macs_of(costs.widths))
    plain, full = (
        kept(keep_for_budget(scores, groups, costs.macs_of, target, limits=limits, fill=fill))
        for fill in (False, True)
    )
    assert bool((full >= plain).all())
    assert float(costs.macs_of(full)) <= target
    for i, group in enumerate(groups):
        more = full.clone()
        more[i] = min(group.width, int(full[i]) + int(limits.step[i]))
        assert more[i] == full[i] or float(costs.macs_of(more)) > target
