"""Coupled groups, their costs in closed form, and masks on what reads them."""

import pytest
import torch

from compress.channels.costs import counted_macs, measure_costs
from compress.channels.groups import KINDS, find_groups
from compress.channels.masks import Masks
from compress.errors import RequestError
from tests.channels.families import FAMILIES, build, images


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_cost_is_what_the_counter_counts(family):
    model, example = build(family, dtype=torch.float32), images(dtype=torch.float32)
    costs = measure_costs(model, example, find_groups(model, example, prune=KINDS))
    assert int(costs.macs_of(costs.widths)) == counted_macs(model, example)
    assert int(costs.parameters_of(costs.widths)) == sum(p.numel() for p in model.parameters())


def test_a_unit_lies_in_no_two_places_and_no_two_groups_share_one(family):
    model = build(family)
    seen = set()
    for group in find_groups(model, images(), prune=("channels", "mlp", "heads", "streams")):
        for m in group.members:
            places = {(m.module, m.axis, m.parameter, int(p)) for p in m.positions.flatten()}
            assert len(places) == m.positions.numel()
            assert m.positions.shape[0] == group.width
            assert not places & seen
            seen |= places


def test_residual_stream_of_a_resnet_is_one_group():
    groups = {group.name: group for group in find_groups(build("resnet-basic"), images())}
    stem = groups["resnet.embedder.embedder.convolution"]
    stage = "resnet.encoder.stages.0.layers"
    assert {m.module for m in stem.writers} == {
        "resnet.embedder.embedder.convolution",
        f"{stage}.0.layer.1.convolution",
        f"{stage}.1.layer.1.convolution",
    }
    assert f"{stage}.1.layer.0.convolution" in {m.module for m in stem.consumers}
    assert not any("classifier" in m.module for m in stem.writers)


def test_masks_of_ones_leave_the_bits(family):
    model, example = build(family), images()
    groups = find_groups(model, example)
    plain = model(example).logits
    with Masks(model, groups) as masks:
        masks.set([torch.ones(group.width) for group in groups])
        assert torch.equal(model(example).logits, plain)
        masks.set([torch.arange(group.width) > 0 for group in groups])
        assert not torch.equal(model(example).logits, plain)
    assert torch.equal(model(example).logits, plain)


def test_gradients_reach_masks_at_zero():
    model, example = build("resnet-basic"), images()
    groups = find_groups(model, example)
    hard = [(torch.arange(g.width) % 2).double().requires_grad_() for g in groups]
    with Masks(model, groups) as masks:
        masks.set(hard)
        model(example).logits.square().sum().backward()
        reached = torch.cat([mask.grad for mask in hard])
        assert (reached[torch.cat(hard).detach() == 0] != 0).float().mean() > 0.5
        step, unit = 1e-6, hard[3].grad.abs().argmax()
        with torch.no_grad():
            sums = []
            for sign in (1, -1):
                moved = [mask.clone() for mask in hard]
                moved[3][unit] += sign * step
                masks.set(moved)
                sums.append(float(model(example).logits.square().sum()))
    slope = (sums[0] - sums[1]) / (2 * step)
    assert slope == pytest.approx(float(hard[3].grad[unit]), rel=1e-5)


def test_frozen_weights_stay_frozen_and_the_mode_stays():
    model = build("vit")
    model.requires_grad_(False)
    model.train()
    find_groups(model, images())
    assert model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_network_that_cannot_be_cut_is_refused_by_its_module():
    from transformers import BitConfig, BitForImageClassification

    config = BitConfig(embedding_size=32, hidden_sizes=[32], depths=[1], num_groups=8)
    with pytest.raises(RequestError, match=r"no channels that can be removed: `bit\..*plain"):
        find_groups(BitForImageClassification(config), images(dtype=torch.float32))


def test_kinds_that_a_network_lacks_are_named():
    with pytest.raises(RequestError, match="nothing of the kinds heads") as caught:
        find_groups(build("resnet-basic"), images(), prune=("heads",))
    assert "channels" in caught.value.hint


def test_head_dimensions_are_lined_up_by_what_they_weigh():
    """The first half of the units holds the stronger half of every head, its own for q, k and v."""
    model = build("vit")
    group = next(g for g in find_groups(model, images()) if g.kind == "head-dims")
    attention = model.vit.layers[0].attention
    query, key, value, _ = group.members
    assert torch.equal(query.positions, key.positions)
    assert not torch.equal(query.positions, value.positions)
    weigh = attention.q_proj.weight.norm(dim=1) * attention.k_proj.weight.norm(dim=1)
    for head in range(4):
        places = query.positions[:, head]
        assert set(places.tolist()) == set(range(8 * head, 8 * head + 8))
        assert weigh[places].tolist() == sorted(weigh[places].tolist(), reverse=True)


def test_families_that_are_not_tested_are_tried():
    """MobileViT's values are reshaped by a number that its code remembers; its convolutions go."""
    from transformers import MobileViTConfig, MobileViTForImageClassification

    config = MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        num_attention_heads=2, num_labels=5,
    )  # fmt: skip
    model = MobileViTForImageClassification(config).double().eval()
    groups = find_groups(model, images(64))
    assert {group.kind for group in groups} == {"channels", "mlp"}
    assert not any("attention" in m.module for g in groups for m in g.writers)
