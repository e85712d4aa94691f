"""Removal is masking what reads the channels, in every family, in memory and through a file."""

import pytest
import torch

import compress
from compress.channels.costs import counted_macs, measure_costs
from compress.channels.cutting import cut
from compress.channels.groups import KINDS, find_groups
from compress.channels.masks import Masks
from compress.channels.stock import make_stock
from compress.checkpoints.save import save
from compress.errors import RequestError
from tests.channels.families import FAMILIES, build, images


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def random_masks(groups, seed=0, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for group in groups:
        keep = max(1, round(share * group.width))
        order = torch.randperm(group.width, generator=generator)
        masks.append(torch.zeros(group.width, dtype=torch.bool).index_fill_(0, order[:keep], True))
    return masks


def masked_logits(model, groups, masks, example):
    with Masks(model, groups) as hooks, torch.no_grad():
        hooks.set(masks)
        return model(example).logits


def logits(model, example):
    with torch.no_grad():
        return model(example).logits


def test_every_exact_group_alone(family):
    model, example = build(family), images()
    dense = logits(model, example)
    felt = []
    for number, group in enumerate(find_groups(model, example)):
        assert group.exact
        if group.width == 1:
            continue
        copy = build(family)
        groups = find_groups(copy, example)
        masks = [torch.ones(g.width, dtype=torch.bool) for g in groups]
        masks[number] = random_masks([group])[0]
        expected = masked_logits(copy, groups, masks, example)
        felt.append(bool((expected - dense).abs().max() > 1e-6))
        cut(copy, groups, masks)
        assert (logits(copy, example) - expected).abs().max() <= 1e-10, group.name
    assert sum(felt) > 0.7 * len(felt)  # else nothing was compared (a gate may be shut)


def test_all_groups_at_once_and_through_a_file(family, tmp_path):
    model, example = build(family), images()
    groups = find_groups(model, example)
    masks = random_masks(groups)
    costs = measure_costs(model, example, groups)
    expected = masked_logits(model, groups, masks, example)
    made = cut(model, groups, masks)
    assert (logits(model, example) - expected).abs().max() <= 1e-10
    keeps = torch.stack([mask.sum() for mask in masks])
    assert counted_macs(model, example) == int(costs.macs_of(keeps))
    assert sum(p.numel() for p in model.parameters()) == int(costs.parameters_of(keeps))
    assert made
    save(model, tmp_path / "cut")
    again = type(model).from_pretrained(tmp_path / "cut", dtype=torch.float64)
    assert (logits(again, example) - expected).abs().max() <= 1e-10
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_pruning_twice_composes(family, tmp_path):
    model, example = build(family), images()
    groups = find_groups(model, example)
    first = random_masks(groups, seed=1, share=0.75)
    cut(model, groups, first)
    save(model, tmp_path / "once")
    model = type(model).from_pretrained(tmp_path / "once", dtype=torch.float64)
    groups_then = find_groups(model, example)
    assert [(g.name, g.kind) for g in groups_then] == [
        (g.name, g.kind) for g, m in zip(groups, first, strict=True)
        if not (g.kind in ("heads", "head-dims") and m.sum() == 1)
    ]  # fmt: skip
    second = random_masks(groups_then, seed=2)
    expected = masked_logits(model, groups_then, second, example)
    cut(model, groups_then, second)
    assert (logits(model, example) - expected).abs().max() <= 1e-10
    save(model, tmp_path / "twice")
    again = type(model).from_pretrained(tmp_path / "twice", dtype=torch.float64)
    assert (logits(again, example) - expected).abs().max() <= 1e-10
    both = build(family)  # the same places, all in one go
    together = []
    for group, mask in zip(groups, first, strict=True):
        match = [
            i for i, g in enumerate(groups_then) if (g.name, g.kind) == (group.name, group.kind)
        ]
        joined = mask.clone()
        if match:
            joined[mask.nonzero()[:, 0]] = second[match[0]]
        together.append(joined)
    groups = find_groups(both, example)
    cut(both, groups, together)
    assert (logits(both, example) - expected).abs().max() <= 1e-10


def test_keeping_all_changes_nothing():
    model, example = build("vit"), images()
    groups = find_groups(model, example)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert cut(model, groups, [torch.ones(g.width, dtype=torch.bool) for g in groups]) == {}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2"])
def test_a_transformer_of_one_width_is_stock(family, tmp_path):
    model, example = build(family), images()
    groups = find_groups(model, example)
    masks = [torch.arange(g.width) < max(1, g.width // 2) for g in groups]
    expected = masked_logits(model, groups, masks, example)
    cut(model, groups, masks)
    assert make_stock(model)
    assert not hasattr(model.config, "quantization_config")
    assert (logits(model, example) - expected).abs().max() <= 1e-10
    save(model, tmp_path / "stock")
    again = type(model).from_pretrained(tmp_path / "stock", dtype=torch.float64)
    assert (logits(again, example) - expected).abs().max() <= 1e-10


def test_a_resnet_that_keeps_its_proportions_is_stock(tmp_path):
    model, example = build("resnet-bottleneck"), images()
    groups = find_groups(model, example)
    masks = [torch.arange(g.width) < g.width // 2 for g in groups]
    expected = masked_logits(model, groups, masks, example)
    cut(model, groups, masks)
    assert make_stock(model)
    assert model.config.hidden_sizes == [16, 32]
    save(model, tmp_path / "stock")
    again = type(model).from_pretrained(tmp_path / "stock", dtype=torch.float64)
    assert (logits(again, example) - expected).abs().max() <= 1e-10


def test_unequal_widths_are_not_stock():
    model, example = build("resnet-bottleneck"), images()
    groups = find_groups(model, example)
    masks = [torch.arange(g.width) < g.width - (i % 2) for i, g in enumerate(groups)]
    cut(model, groups, masks)
    assert not make_stock(model)
    assert model.config.quantization_config.modules


def test_a_group_without_units_is_refused():
    model, example = build("resnet-basic"), images()
    groups = find_groups(model, example)
    masks = [torch.zeros(g.width, dtype=torch.bool) for g in groups]
    with pytest.raises(ValueError, match="would keep no unit"):
        cut(model, groups, masks)
    assert compress.channels is not None


@pytest.mark.parametrize("family", ["convnext", "convnextv2", "vit", "deit", "beit"])
def test_streams_are_cut_but_not_exactly(family, tmp_path):
    """Norms over fewer features compute something else: cut, saved, loaded, and far from masked."""
    model, example = build(family), images()
    groups = find_groups(model, example, prune=("streams",))
    assert groups
    assert not any(group.exact for group in groups)
    assert all("is over fewer channels" in group.why for group in groups)
    masks = random_masks(groups)
    masked = masked_logits(model, groups, masks, example)
    cut(model, groups, masks)
    found = logits(model, example)
    assert (found - masked).abs().max() / masked.std() > 1e-2
    save(model, tmp_path / "cut")
    again = type(model).from_pretrained(tmp_path / "cut", dtype=torch.float64)
    assert (logits(again, example) - found).abs().max() <= 1e-10


def test_streams_that_code_reads_otherwise_stay():
    """DINOv2's classifier reads its stream twice; Swin merges four neighbours between stages."""
    with pytest.raises(RequestError, match=r"`dinov2\..*doesn't run without half"):
        find_groups(build("dinov2"), images(), prune=("streams",))
    assert {group.kind for group in find_groups(build("dinov2"), images(), prune=KINDS)} == {
        "mlp", "heads", "head-dims"
    }  # fmt: skip
    streams = [g for g in find_groups(build("swin"), images(), prune=KINDS) if g.kind == "streams"]
    assert [group.width for group in streams] == [32]  # the last stage's, which nothing merges
