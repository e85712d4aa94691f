"""The budget on an accelerator: nothing meets a tensor of the CPU, and nobody waits for it.

The pretended device (pretend_cuda) has no kernels for convolutions, so whole networks aren't run
there; the cut is what a search does at every step.
"""

import pytest
import torch
from pretend_cuda import pretend

from compress.channels.budget import bounds, keep_for_budget
from compress.channels.costs import measure_costs
from compress.channels.groups import find_groups
from tests.channels.families import build, images

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")


@pytest.mark.parametrize("scope", ["global", "isomorphic", "uniform"])
def test_the_cut_is_made_on_the_device(scope):
    model, example = build("vit"), images()
    groups = find_groups(model, example)
    costs = measure_costs(model, example, groups)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(group.width, generator=generator) for group in groups]
    options = {"limits": bounds(groups, round_to=2), "scope": scope}
    target = 0.6 * float(costs.macs_of(costs.widths))
    here = keep_for_budget(scores, groups, costs.macs_of, target, **options)
    with pretend() as reads:
        there = keep_for_budget(
            [score.cuda() for score in scores], groups, costs.macs_of, target, check=False,
            **options,
        )  # fmt: skip
        waited = sum(reads.values())
        found = [mask.cpu() for mask in there]
    assert all(torch.equal(a, b) for a, b in zip(here, found, strict=True))
    assert waited == 0
