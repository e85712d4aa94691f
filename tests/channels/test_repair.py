"""Batch norms measured anew, and least squares on what reads the removed channels."""

import pytest
import torch
from torch import nn

from compress.channels.cutting import cut
from compress.channels.groups import find_groups
from compress.channels.masks import Masks
from compress.channels.repair import least_squares, reestimate, refit
from tests.channels.families import build, images


def batches(count=4, size=8):
    return [{"pixel_values": images(count=size, seed=i)} for i in range(count)]


def test_running_statistics_are_the_means_over_the_batches():
    model = build("resnet-basic")
    first = model.resnet.embedder.embedder
    seen = [first.convolution(batch["pixel_values"]) for batch in batches()]
    momentum = first.normalization.momentum
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert reestimate(model, batches()) == norms
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3), unbiased=True) for x in seen]).mean(0)
    assert torch.allclose(first.normalization.running_mean, mean)
    assert torch.allclose(first.normalization.running_var, variance)
    assert first.normalization.momentum == momentum
    assert not model.training
    assert reestimate(build("vit"), batches()) == 0


def system(seed=0, wide=12, tall=5, rows=200):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(wide, wide, generator=generator, dtype=torch.float64)
    inputs = torch.relu(torch.randn(rows, wide, generator=generator, dtype=torch.float64) @ mix)
    weight = torch.randn(tall, wide, generator=generator, dtype=torch.float64)
    return inputs, weight


@pytest.mark.parametrize("damp", [0.0, 1e-2, 1.0])
def test_refit_is_the_minimum_and_never_worse_than_dropping(damp):
    inputs, weight = system()
    kept, gone = torch.arange(0, 12, 2), torch.arange(1, 12, 2)
    gram = inputs.T @ inputs
    found = refit(weight, gram, kept, damp)

    def objective(columns):
        error = inputs @ weight.T - inputs[:, kept] @ columns.T
        pull = damp * gram[kept][:, kept].diagonal().mean()
        return float(error.square().sum() + pull * (columns - weight[:, kept]).square().sum())

    best = objective(found)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        noise = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        assert objective(found + 1e-3 * noise) > best
    dropped = (inputs[:, gone] @ weight[:, gone].T).square().sum()
    refitted = (inputs @ weight.T - inputs[:, kept] @ found.T).square().sum()
    assert refitted < dropped
    if damp == 0:
        plain = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
        assert torch.allclose(found, plain, atol=1e-8)


def test_a_strong_damping_is_plain_dropping():
    inputs, weight = system()
    kept = torch.arange(0, 12, 2)
    found = refit(weight, inputs.T @ inputs, kept, 1e9)
    assert torch.allclose(found, weight[:, kept], atol=1e-6)


def test_keeping_all_changes_nothing():
    inputs, weight = system()
    assert torch.equal(refit(weight, inputs.T @ inputs, torch.arange(12)), weight)


@pytest.mark.parametrize("family", ["resnet-bottleneck", "regnet-y", "mobilenet-v2", "convnext",
                                    "vit", "beit", "swin"])  # fmt: skip
def test_outputs_of_every_consumer_are_nearer(family):
    model = build(family)
    groups = find_groups(model, images())
    masks = [torch.arange(g.width) < max(1, g.width // 2) for g in groups]
    errors = least_squares(model, groups, masks, batches)
    assert errors
    for name, (dropped, fitted) in errors.items():
        assert fitted <= dropped * (1 + 1e-9), name
    assert sum(fitted < 0.95 * dropped for dropped, fitted in errors.values()) > len(errors) / 2


def test_errors_told_are_those_of_the_layer():
    """One MLP: its second layer's outputs, dense against cut, on the calibration images."""
    model = build("vit")
    groups = [g for g in find_groups(model, images()) if g.kind == "mlp"][:1]
    masks = [torch.arange(g.width) % 2 == 0 for g in groups]
    name = groups[0].consumers[0].module
    outputs = {}

    def watch(network, label, masks=None):
        found = []
        hook = network.get_submodule(name).register_forward_hook(lambda m, i, o: found.append(o))
        with torch.no_grad(), Masks(network, groups if masks else []) as hooks:
            if masks:
                hooks.set(masks)
            for batch in batches():
                network(pixel_values=batch["pixel_values"])
        hook.remove()
        outputs[label] = torch.cat(found)

    watch(model, "dense")
    watch(model, "dropped", masks)
    told = least_squares(model, groups, masks, batches)[name]
    cut(model, groups, masks)
    watch(model, "fitted")
    size = outputs["dense"].square().sum()
    dropped, fitted = (
        float((outputs[k] - outputs["dense"]).square().sum() / size) for k in ("dropped", "fitted")
    )
    bias = model.get_submodule(name).bias
    assert isinstance(bias, nn.Parameter)
    assert told == pytest.approx((dropped, fitted), rel=1e-4)
