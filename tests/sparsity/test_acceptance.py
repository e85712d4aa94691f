"""Checks of every method at once: exact counts, patterns, what padding holds, bytes on disk."""

import pytest
import torch
from layers import correlated, gaussian

import compress
from compress.calibration.statistics import ColumnMoments, ColumnNorms, Gram
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.errors import RequestError
from compress.sparsity.methods import METHODS, REFITS, Layer, prune_layer
from compress.sparsity.pruner import Pruner, Target
from tiny_models import make_batch

WAYS = [(method, "none") for method in METHODS] + [("wanda", how) for how in REFITS]


def statistics(x):
    found = {}
    for kind in (ColumnNorms, ColumnMoments, Gram):
        made = kind("layer")
        made.add(x.float())
        found[kind] = made.value()
    return found


def zeros(layer, method, how, x):
    pruned = prune_layer(layer, method, how, statistics(x))
    kept = layer.weight.masked_fill(~pruned.mask, 0)
    weight = kept if pruned.weight is None else pruned.weight
    assert torch.equal(weight == 0, ~pruned.mask)
    return weight == 0


@pytest.mark.parametrize("kind", ["drawn", "ties", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("method", "how"), WAYS)
def test_the_count_is_exact_in_every_dtype_with_ties_and_for_a_constant(method, how, dtype, kind):
    weight = gaussian(14, 48).float()
    if kind == "ties":
        weight = weight.round().where(weight.round() != 0, 1.0)
    elif kind == "constant":
        weight = torch.full_like(weight, 0.3)
    x = correlated(60, 48, shift=0.3)
    for count in (1, 263, 471):
        layer = Layer("layer", weight.to(dtype), count, None, 0.01, 128)
        assert int(zeros(layer, method, how, x).sum()) == count


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 4)])
@pytest.mark.parametrize(("method", "how"), WAYS)
def test_every_group_has_its_pattern_and_ragged_widths_are_refused_by_name(method, how, n, m):
    x, weight = correlated(60, 48, shift=0.3), gaussian(14, 48).float()
    layer = Layer("layer", weight, 14 * 48 // m * (m - n), (n, m), 0.01, 128)
    groups = zeros(layer, method, how, x).unflatten(1, (-1, m)).sum(2)
    assert bool((groups == m - n).all())
    ragged = Layer("up", gaussian(4, 50).float(), 100, (n, m), 0.01, 128)
    with pytest.raises(RequestError, match=rf"`up` has 50 inputs, which {m} doesn't divide"):
        prune_layer(ragged, method, how, statistics(correlated(60, 50)))


def pruned(path, out, batches, method):
    source = open_source(path)
    names = [n.removesuffix(".weight") for n in source.tensors if "layers" in n and "proj" in n]
    targets = {n: Target(source.tensors[f"{n}.weight"].numel // 2) for n in names}
    writer = open_writer(out / "parts", source)
    walk(source, batches, Pruner(targets, method), writer)
    writer.join(out)
    (out / "config.json").write_bytes((path / "config.json").read_bytes())
    return compress.load(out).state_dict()


@pytest.mark.parametrize("method", ["wanda", "ria", "dsnot", "sparsegpt"])
def test_what_stands_in_padding_never_enters(method, checkpoint, tmp_path):
    batches = [make_batch(rows=3, seed=seed, padded=True) for seed in range(2)]
    other = [
        {**b, "input_ids": b["input_ids"].where(b["attention_mask"] == 1, 50 + i)}
        for i, b in enumerate(batches)
    ]
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, other))
    one = pruned(checkpoint(), tmp_path / "one", batches, method)
    two = pruned(checkpoint(), tmp_path / "two", other, method)
    for name in one:
        assert torch.equal(one[name] == 0, two[name] == 0), name
        assert torch.allclose(one[name], two[name], atol=1e-5), name


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.8])
def test_a_bitmask_takes_the_bytes_of_the_formula(sparsity, checkpoint, prune, tmp_path):
    options = {"sparsity": sparsity, "allocation": "uniform", "format": "bitmask"}
    result = prune(checkpoint("llama", torch.bfloat16), tmp_path / "out", **options)
    stored = open_source(tmp_path / "out")
    parts = ("values", "mask")
    found = sum(
        stored.tensors[f"{row['module']}.weight_{part}"].numel
        * stored.tensors[f"{row['module']}.weight_{part}"].dtype.itemsize
        for row in result.plan.rows
        for part in parts
    )
    size = sum(row["size"] for row in result.plan.rows)
    density = 1 - sum(row["zeros"] for row in result.plan.rows) / size
    assert found == pytest.approx(2 * size * (density + 1 / 16), rel=0.01)
