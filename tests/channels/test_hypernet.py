"""PASS's parts: gradients through the cut, statistics, the recurrence, the prompt's effect."""

import image_sets
import pytest
import torch
from torch.nn import functional

from compress.channels.budget import bounds, keep_for_budget, kept
from compress.channels.costs import measure_costs
from compress.channels.groups import find_groups
from compress.channels.hypernet import (
    HyperNetwork,
    group_statistics,
    make_prompt,
    straight_through,
    unit_statistics,
)
from compress.channels.masks import Masks
from compress.channels.searching import SearchSettings
from compress.errors import RequestError


@pytest.fixture(scope="module")
def net():
    model = image_sets.tiny_resnet(layer="bottleneck", widths=(16, 32))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    groups = find_groups(model, images)
    return model, images, groups, measure_costs(model, images, groups)


def _keep(net, scores, share):
    _, _, groups, costs = net
    target = share * float(costs.macs_of(costs.widths))
    return keep_for_budget(scores, groups, costs.macs_of, target, limits=bounds(groups))


@pytest.mark.parametrize("kind", ["identity", "sigmoid"])
def test_scores_get_the_gradient_of_a_leaf_mask_also_where_it_is_0(net, kind):
    model, images, groups, _ = net
    draws = torch.Generator().manual_seed(3)
    scores = [torch.randn(g.width, generator=draws, requires_grad=True) for g in groups]
    keep = _keep(net, [s.detach() for s in scores], 0.5)
    labels = torch.arange(6)
    found = []
    with Masks(model, groups) as masks:
        leaves = [k.float().requires_grad_() for k in keep]
        for values in (straight_through(scores, keep, kind), leaves):
            masks.set(values)
            loss = functional.cross_entropy(model(pixel_values=images).logits, labels)
            found.append(torch.autograd.grad(loss, scores if values is not leaves else leaves))
    for score, hard, through, direct in zip(scores, keep, *found):
        slope = torch.sigmoid(score) * (1 - torch.sigmoid(score)) if kind == "sigmoid" else 1
        torch.testing.assert_close(through, direct * slope, rtol=1e-5, atol=1e-9)
        assert (~hard).any()
    removed = torch.cat([g[~k] for g, k in zip(found[1], keep)])
    assert (removed != 0).float().mean() > 0.5  # a closed unit still says what it would do


def test_masks_are_exactly_hard_forward(net):
    scores = [torch.randn(g.width) * 1e3 for g in net[2]]
    keep = [s > 0 for s in scores]
    for kind in ("identity", "sigmoid"):
        for mask, hard in zip(straight_through(scores, keep, kind), keep):
            assert torch.equal(mask, hard.float())


def test_gradients_reach_prompt_and_every_part(net):
    model, images, groups, _ = net
    torch.manual_seed(0)
    prompt = make_prompt("pad", 16, 2)
    network = HyperNetwork(groups, group_statistics(model, groups), hidden=8)
    with torch.no_grad():
        prompt.values.normal_(0, 0.1)
    scores = network(prompt.framed())
    with Masks(model, groups) as masks:
        masks.set(straight_through(scores, _keep(net, [s.detach() for s in scores], 0.5),
                                   "identity"))  # fmt: skip
        logits = model(pixel_values=(prompt(images) - 0.5) / 0.5).logits
    functional.cross_entropy(logits, torch.arange(6)).backward()
    for name, parameter in (*network.named_parameters(), ("prompt", prompt.values)):
        assert bool((parameter.grad != 0).any()), name
    inside = prompt.values.grad[:, 2:14, 2:14]
    assert bool((inside == 0).all())  # off the frame nothing is learned


@pytest.mark.parametrize("mapper", ["group", "shared"])
def test_on_top_of_a_criterion_the_first_keep_set_is_that_criterions(net, mapper):
    model, _, groups, _ = net
    base = [unit_statistics(model, group)[:, 2] for group in groups]
    units = [unit_statistics(model, g) for g in groups] if mapper == "shared" else None
    network = HyperNetwork(groups, group_statistics(model, groups), base=base, units=units)
    scores = network(torch.zeros(3, 16, 16))
    for share in (0.7, 0.4):
        for ours, theirs in zip(_keep(net, scores, share), _keep(net, base, share)):
            assert torch.equal(ours, theirs)


def test_statistics_are_what_they_say(net):
    model, _, groups, _ = net
    inner = next(g for g in groups if len(g.writers) == 1)
    weight = model.get_submodule(inner.writers[0].module).weight.detach()
    by_hand = torch.stack([row.abs().mean() for row in weight])
    found = group_statistics(model, groups)
    row = found[groups.index(inner)]
    torch.testing.assert_close(row[: inner.width], by_hand / by_hand.mean() - 1)
    assert bool((row[inner.width :] == 0).all())
    assert found.shape == (len(groups), max(g.width for g in groups))
    assert group_statistics(model, groups, "quantiles").shape == (len(groups), 5 * 32)
    assert bool((group_statistics(model, groups, "none") == 0).all())
    with pytest.raises(RequestError, match="--stats median"):
        group_statistics(model, groups, "median")


def test_recurrence_carries_what_came_before(net):
    model, _, groups, _ = net
    statistics = group_statistics(model, groups)
    changed = statistics.clone()
    changed[0] += 1
    for recurrent in (True, False):
        torch.manual_seed(0)
        network = HyperNetwork(groups, statistics, recurrent=recurrent, prompted=False)
        before = network()
        network.statistics = changed
        moved = [not torch.equal(a, b) for a, b in zip(before, network())]
        assert moved[0]
        assert all(moved[1:]) if recurrent else not any(moved[1:])


def test_the_prompt_changes_the_scores(net):
    model, _, groups, _ = net
    network = HyperNetwork(groups, group_statistics(model, groups))
    one, two = network(torch.zeros(3, 16, 16)), network(torch.ones(3, 16, 16))
    assert all(not torch.equal(a, b) for a, b in zip(one, two))


def test_every_keep_set_fits_the_budget(net):
    _, _, groups, costs = net
    whole = float(costs.macs_of(costs.widths))
    for share in (0.8, 0.5, 0.3):
        scores = [torch.randn(g.width) for g in groups]
        assert float(costs.macs_of(kept(_keep(net, scores, share)))) <= share * whole


def test_prompt_forms():
    assert make_prompt("none", 32, None) is None
    padded = make_prompt("pad", 28, None)
    assert padded.width == 2
    assert padded.values.shape[-1] == 28
    around = make_prompt("expand", 28, 3)
    with torch.no_grad():
        made = around(torch.ones(1, 3, 28, 28))
    assert made.shape[-1] == 28  # the network's input, and its cost, stay
    assert float(made[0, :, 3:25, 3:25].min()) > 0.999
    assert float(made[0, :, :3].max()) == 0
    with pytest.raises(RequestError, match="too wide for images of 8 pixels"):
        make_prompt("pad", 8, 9)
    with pytest.raises(RequestError, match="--ste hard"):
        SearchSettings(ste="hard").check()
