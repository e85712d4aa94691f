"""Scores against their definitions written slowly."""

import pytest
import torch
from torch.nn import functional

from compress.channels.criteria import (
    CRITERIA,
    WEIGHTS,
    fpgm,
    gradient_scores,
    group_norm,
    l1,
    random_scores,
    weight_scores,
)
from compress.channels.groups import find_groups, unit_rows
from compress.channels.masks import Masks
from tests.channels.families import FAMILIES, build, images


def network(name="resnet-basic"):
    model = build(name)
    return model, find_groups(model, images())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_criterion_scores_every_unit(family):
    model, groups = network(family)
    batches = [{"pixel_values": images(seed=i), "labels": torch.tensor([0, i])} for i in (1, 2)]
    for name in CRITERIA:
        if name == "random":
            scores = random_scores(groups, 0)
        elif name in WEIGHTS:
            scores = weight_scores(model, groups, name)
        else:
            scores = gradient_scores(model, groups, batches, name)
        for score, group in zip(scores, groups, strict=True):
            assert score.shape == (group.width,)
            assert bool(torch.isfinite(score).all())
            assert name == "random" or float(score.mean()) in (0.0, pytest.approx(1.0))


def test_l1_is_the_mean_over_all_writers_of_a_stream():
    model, groups = network()
    stem = groups[0]
    expected = torch.zeros(stem.width, dtype=torch.float64)
    for member in stem.writers:
        weight = model.get_submodule(member.module).weight
        expected += torch.stack([row.abs().mean() for row in weight]).detach()
    assert torch.allclose(l1(model, stem), expected / len(stem.writers))


def test_group_norm_sees_rows_columns_and_scales():
    model, groups = network()
    group = groups[1]  # inside a block: one writer, one norm, one consumer
    (writer,), (norm,), (reader,) = group.writers, group.norms, group.consumers
    first = model.get_submodule(writer.module).weight
    second = model.get_submodule(reader.module).weight
    scale = model.get_submodule(norm.module).weight
    found = group_norm(model, group).detach()
    for unit in range(group.width):
        slow = first[unit].square().sum() + second[:, unit].square().sum() + scale[unit] ** 2
        assert float(found[unit]) == pytest.approx(float(slow.detach()) / 3)


def test_fpgm_is_the_sum_of_distances():
    model, groups = network()
    rows = torch.cat([unit_rows(model, m) for m in groups[0].writers], 1)
    slow = [sum(float((a - b).detach().norm()) for b in rows) for a in rows]
    assert torch.allclose(fpgm(model, groups[0]).double(), torch.tensor(slow).double(), rtol=1e-4)


@pytest.mark.parametrize("family", ["resnet-basic", "regnet-y", "convnextv2", "vit", "swin"])
def test_fisher_is_one_backward_pass_for_each_image(family):
    model, groups = network(family)
    pixels, labels = images(count=3), torch.tensor([0, 3, 1])
    slow = [torch.zeros(g.width, dtype=torch.float64) for g in groups]
    for image, label in zip(pixels, labels, strict=True):
        ones = [torch.ones(g.width, dtype=torch.float64, requires_grad=True) for g in groups]
        with Masks(model, groups) as masks:
            masks.set(ones)
            loss = functional.cross_entropy(model(image[None]).logits.float(), label[None])
        for total, gradient in zip(slow, torch.autograd.grad(loss, ones), strict=True):
            total += gradient**2 / 2
    batch = {"pixel_values": pixels, "labels": labels}
    for found, total in zip(
        gradient_scores(model, groups, [batch], "fisher"), slow, strict=True
    ):  # float32 logits in the loss
        expected = total / total.mean() if float(total.mean()) else total
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_taylor_adds_squares_over_batches_and_leaves_no_gradient():
    model, groups = network("vit")
    batches = [{"pixel_values": images(seed=i), "labels": torch.tensor([0, i])} for i in (1, 2)]
    slow = [torch.zeros(g.width, dtype=torch.float64) for g in groups]
    for batch in batches:
        ones = [torch.ones(g.width, dtype=torch.float64, requires_grad=True) for g in groups]
        with Masks(model, groups) as masks:
            masks.set(ones)
            logits = model(batch["pixel_values"]).logits.float()
            loss = functional.cross_entropy(logits, batch["labels"])
        for total, gradient in zip(slow, torch.autograd.grad(loss, ones), strict=True):
            total += gradient**2
    found = gradient_scores(model, groups, batches, "taylor")
    for one, total in zip(found, slow, strict=True):
        assert torch.allclose(one, total / total.mean(), rtol=1e-3, atol=1e-6)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_random_scores_come_from_the_seed():
    _, groups = network()
    a, b, c = (torch.cat(random_scores(groups, seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
