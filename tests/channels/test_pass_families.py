"""PASS's step in every family: budgets hold and gradients reach all of the hyper-network."""

import pytest
import torch

from compress.channels.budget import bounds, kept
from compress.channels.costs import measure_costs
from compress.channels.groups import find_groups
from compress.channels.searching import Searcher, SearchSettings
from compress.channels.standing import frozen
from tests.channels.families import FAMILIES, build


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("stats", ["mean", "quantiles"])
def test_a_step_of_the_search(family, stats):
    model = build(family, dtype=torch.float32)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    groups = find_groups(model, images)
    costs = measure_costs(model, images, groups)
    limits = bounds(groups)
    whole = float(costs.macs_of(costs.widths))
    share = (1 + float(costs.macs_of(limits.least)) / whole) / 2
    searcher = Searcher(
        model, groups, costs.macs_of, share * whole, limits,
        SearchSettings(stats=stats, hidden=8, prompt_size=2),
        normalise=lambda unit: (unit - 0.5) / 0.5, side=32,
    )  # fmt: skip
    with torch.no_grad():
        searcher.prompt.values.normal_(0, 0.1)  # at zero the encoder's first layer learns nothing
    before = [p.detach().clone() for p in model.parameters()]
    with frozen(model):
        searcher(images, torch.arange(4))["loss"].backward()
    for name, parameter in searcher.named_parameters():
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).any()), name
    keep = searcher.keep(searcher.scores())
    assert float(costs.macs_of(kept(keep))) <= share * whole
    assert any(not bool(part.all()) for part in keep)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(p.requires_grad for p in model.parameters())
