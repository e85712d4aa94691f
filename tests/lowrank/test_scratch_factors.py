"""The start of factors, by closed forms; decay against autograd; bits that nothing else moves."""

import copy
import math

import pytest
import torch
from speech_models import tiny_conformer

from compress.checkpoints.anatomy import read_anatomy
from compress.lowrank.modules import choose
from compress.lowrank.scratch.decay import frobenius_gradients, set_factor_decay
from compress.lowrank.scratch.factors import (
    INITS,
    as_matrix,
    factor_model,
    low_rank_layers,
    make_factors,
    signed_svd,
    start_weights,
)
from compress.lowrank.scratch.sizes import SPEECH, speech_config
from compress.lowrank.scratch.watching import UpdateNorms, update_norm
from compress.training.optimizers import build_optimizer

SHAPES = [(24, 24), (48, 16), (16, 48)]


def weight(out, into, seed=0):
    return torch.randn(out, into, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("init", ["svd", "svd-scaled", "orthogonal"])
def test_factors_start_balanced(shape, init):
    up, down = make_factors(weight(*shape), 5, init, 0, "x")
    assert up.shape == (shape[0], 5)
    assert down.shape == (5, shape[1])
    torch.testing.assert_close(up.T @ up, down @ down.T, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_is_the_best_of_its_rank(shape):
    whole = weight(*shape).double()
    up, down = make_factors(whole, 5, "svd", 0, "x")
    values = torch.linalg.svdvals(whole)
    lost = float((whole - up @ down).norm() ** 2)
    assert lost == pytest.approx(float((values[5:] ** 2).sum()))
    everything = make_factors(whole, min(shape), "svd", 0, "x")
    torch.testing.assert_close(everything.up @ everything.down, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("init", ["svd-scaled", "orthogonal"])
def test_scaled_starts_keep_the_norm_of_the_whole(shape, init):
    whole = weight(*shape)
    up, down = make_factors(whole, 5, init, 0, "x")
    assert float((up @ down).norm()) == pytest.approx(float(whole.norm()), rel=1e-6)
    plain = make_factors(whole, 5, "svd", 0, "x")
    kept = float((plain.up @ plain.down).norm() ** 2 / whole.double().norm() ** 2)
    if init == "svd-scaled":  # each factor times kept^(-1/4)
        torch.testing.assert_close(up, plain.up * kept**-0.25)
    else:
        torch.testing.assert_close(
            torch.linalg.svdvals(up @ down)[:5].std(), torch.tensor(0.0).double()
        )


def test_gaussian_products_have_the_spread_of_the_whole():
    whole = 0.37 * weight(300, 200)
    up, down = make_factors(whole, 40, "gaussian", 3, "x")
    assert float((up @ down).std()) == pytest.approx(0.37, rel=0.05)
    assert float(up.norm()) == pytest.approx(float(down.norm()), rel=0.05)  # balanced in the mean
    again = make_factors(whole, 40, "gaussian", 3, "y")
    assert not torch.equal(again.up, up)


def test_signs_are_chosen():
    matrix = weight(12, 7).double()
    left, values, right = signed_svd(matrix)
    largest = left.gather(0, left.abs().argmax(0)[None])
    assert (largest > 0).all()
    torch.testing.assert_close(left * values @ right, matrix)
    for other in (matrix.flip(0), -matrix):  # another start of LAPACK's, the same rule
        a, s, b = signed_svd(other)
        assert (a.gather(0, a.abs().argmax(0)[None]) > 0).all()
        torch.testing.assert_close(a * s @ b, other)


@pytest.mark.parametrize("init", INITS)
def test_bits_depend_on_neither_order_nor_threads(init):
    first, second = tiny_conformer(), tiny_conformer(seed=5)  # another start of the family's
    names = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.conv.pointwise_conv1"]
    threads = torch.get_num_threads()
    start_weights(first, 7)
    factor_model(first, dict.fromkeys(names, 6), init, 7)
    try:
        torch.set_num_threads(3)
        start_weights(second, 7)
        factor_model(second, dict.fromkeys(reversed(names), 6), init, 7)
    finally:
        torch.set_num_threads(threads)
    mine, other = first.state_dict(), second.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_the_dense_arm_shares_w0():
    dense, thin, another = tiny_conformer(), tiny_conformer(), tiny_conformer()
    for model in (dense, thin):
        start_weights(model, 1)
    start_weights(another, 2)
    name = "encoder.layers.1.feed_forward1.linear2"
    whole = as_matrix(dense.get_submodule(name)).double()
    factor_model(thin, {name: 8}, "svd", 1)
    layer = low_rank_layers(thin)[name]
    u, s, v = torch.linalg.svd(whole)
    torch.testing.assert_close(layer.product(), u[:, :8] * s[:8] @ v[:8], atol=1e-6, rtol=1e-5)
    assert torch.equal(layer.bias, dense.get_submodule(name).bias)
    rest = {k: v for k, v in dense.state_dict().items() if not k.startswith(name)}
    assert all(torch.equal(thin.state_dict()[key], value) for key, value in rest.items())
    assert not torch.equal(as_matrix(another.get_submodule(name)).double(), whole)


def test_full_rank_factors_compute_what_the_dense_model_does():
    dense = tiny_conformer().eval()
    thin = copy.deepcopy(dense)
    sides = {"encoder.layers.0.self_attn.v_proj": 32, "encoder.layers.1.conv.pointwise_conv1": 32}
    factor_model(thin, sides, "svd", 0)
    features = torch.randn(2, 40, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = dense(features).logits, thin(features).logits
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_start_is_that_of_reset_parameters():
    model = tiny_conformer()
    small = float(model.encoder.layers[0].feed_forward1.linear1.weight.detach().std())
    start_weights(model, 0)
    layer = model.encoder.layers[0].feed_forward1.linear1
    bound = 1 / math.sqrt(32)
    assert small == pytest.approx(0.02, rel=0.1)
    assert float(layer.weight.detach().abs().max()) <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert float(layer.bias.detach().abs().max()) <= bound
    stem = model.encoder.subsampling.layers[0]
    assert float(stem.weight.detach().abs().max()) <= 1 / 3
    assert torch.equal(model.encoder.layers[0].norm_out.weight, torch.ones(32))


def test_the_family_s_start_erases_the_input():
    """The first block sees nothing of it: what the stem makes is below the norm's epsilon."""
    features = torch.randn(1, 40, 20, generator=torch.Generator().manual_seed(0))
    spread = {}
    for kind in ("family", "reset"):
        model = tiny_conformer().eval()
        if kind == "reset":
            start_weights(model, 0)
        with torch.no_grad():
            made = model.encoder.subsampling(features) * model.encoder.input_scale
        spread[kind] = float(made.std(1).mean())
    assert spread["family"] < 3e-3 < 3e-2 < spread["reset"]


def test_frobenius_gradients_are_autograd_s():
    up = weight(7, 3, 1).double().requires_grad_()
    down = weight(3, 5, 2).double().requires_grad_()
    (0.5 * (up @ down).square().sum()).backward()
    by_up, by_down = frobenius_gradients(up.detach(), down.detach())
    torch.testing.assert_close(by_up, up.grad)
    torch.testing.assert_close(by_down, down.grad)


def test_the_norm_of_an_update_is_that_of_the_difference():
    up, down, other = weight(9, 3, 1), weight(3, 14, 2), 1e-2 * weight(9, 3, 3)
    found = update_norm(up + other, down * 1.01, up, down)
    expected = torch.linalg.matrix_norm((up + other) @ (down * 1.01) - up @ down, ord=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_updates_are_watched_in_steps_that_are_logged():
    model = tiny_conformer()
    name = "encoder.layers.0.conv.pointwise_conv1"
    factor_model(model, {name: 4}, "svd", 0)
    watch = UpdateNorms(every=2)
    layer = low_rank_layers(model)[name]
    for step in range(4):
        watch(model, step)
        before = layer.product()
        with torch.no_grad():
            layer.up.weight.mul_(1.1)
            layer.down.weight.add_(0.01 * step)
        told = watch.report()
        if step % 2 == 0:
            assert told == {}
        else:
            moved = torch.linalg.matrix_norm((layer.product() - before).flatten(1), ord=2)
            assert told == {"update_norm": pytest.approx(float(moved), rel=1e-4)}


@pytest.mark.parametrize("kind", ["none", "l2", "frobenius"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_what_decay_does_to_factors_alone(kind, optimizer):
    """With gradients of zero a step is the decay and nothing else."""
    model = tiny_conformer()
    names = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.conv.pointwise_conv2"]
    factor_model(model, dict.fromkeys(names, 4), "svd", 0)
    layers = low_rank_layers(model)
    made = build_optimizer(optimizer, model, 0.1, weight_decay=0.5)
    set_factor_decay(made, layers, kind, 0.5)
    listed = [p for group in made.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == sum(1 for _ in model.parameters())
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    other = "encoder.layers.0.self_attn.k_proj"
    dense = before.get_submodule(other).weight
    torch.testing.assert_close(model.get_submodule(other).weight, 0.95 * dense)
    for name in names:
        old, new = low_rank_layers(before)[name], layers[name]
        u, v = old.up.weight.flatten(1), old.down.weight.flatten(1)
        expected = {"none": (u, v), "l2": (0.95 * u, 0.95 * v)}
        expected["frobenius"] = (u - 0.05 * u @ (v @ v.T), v - 0.05 * (u.T @ u) @ v)
        torch.testing.assert_close(new.up.weight.flatten(1), expected[kind][0])
        torch.testing.assert_close(new.down.weight.flatten(1), expected[kind][1])


def test_the_paper_s_encoder_has_the_paper_s_layers():
    """12 blocks of width 768: 35.4 M in attention, 113.2 M in feed-forward, 21.2 M in convolutions;
    attention at 12 % and feed-forward at 25 % leave less than half of them.
    """
    from transformers import ParakeetForCTC

    with torch.device("meta"):
        model = ParakeetForCTC(speech_config(SPEECH["conformer-base"]))
    anatomy = read_anatomy(model)
    counts = {}
    for group in ("attention", "ffn", "conv"):
        own = choose(model, anatomy, (group,), ()).matrices
        thin = {"attention": 0.12, "ffn": 0.25, "conv": 1.0}[group]
        ranks = [round(thin * min(m.shape)) for m in own]
        counts[group] = (
            sum(m.numel for m in own),
            sum(r * sum(m.shape) if thin < 1 else m.numel for r, m in zip(ranks, own)),
        )
    whole = {group: round(dense / 1e6, 1) for group, (dense, _) in counts.items()}
    assert whole == {"attention": 35.4, "ffn": 113.2, "conv": 21.2}
    assert sum(d for d, _ in counts.values()) / sum(t for _, t in counts.values()) > 2
