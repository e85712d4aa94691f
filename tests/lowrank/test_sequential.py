"""Factors behind a compressed model's inputs: the closed form, its pull to W, and statistics."""

import pytest
import torch

from compress.errors import RunError
from compress.lowrank.sequential import Pair, choose_beta, least_squares, pair_loss, sequential
from compress.lowrank.statistics import InputSums, PairSums, shrinkage
from compress.lowrank.truncate import truncate


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streams(width, tokens, seed=1, noise=0.5):
    """Inputs [width, tokens] of the dense model, and what the compressed one makes of them."""
    x = draw(seed, width, tokens)
    mix = torch.eye(width, dtype=torch.float64) + 0.2 * draw(seed + 1, width, width) / width**0.5
    return x, mix @ x + noise * draw(seed + 2, width, tokens)


def pair_of(x, own):
    return Pair(x @ x.T, x @ own.T, own @ own.T)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_equal_streams_give_the_truncation(shape):
    weight, x = draw(0, *shape), draw(1, shape[1], 100)
    for beta in (0.0, 0.5, 1.0):
        up, down = sequential(weight, pair_of(x, x), 4, beta)
        plain = truncate(weight, x @ x.T, 4)
        assert torch.allclose(up @ down, plain[0] @ plain[1], atol=1e-6)


def test_an_optimiser_finds_nothing_better():
    weight, (x, own) = draw(0, 6, 9), streams(9, 60)
    pair = pair_of(x, own)
    up, down = sequential(weight, pair, 3, 1.0)
    found = float((weight @ x - up @ down @ own).square().sum())
    assert found == pytest.approx(pair_loss(weight, up, down, pair), rel=1e-9)
    best = float("inf")
    for seed in range(3):
        u, v = draw(seed + 5, 6, 3).requires_grad_(), draw(seed + 9, 3, 9).requires_grad_()
        search = torch.optim.LBFGS([u, v], max_iter=500, line_search_fn="strong_wolfe")

        def error(u=u, v=v, search=search):
            search.zero_grad()
            lost = (weight @ x - u @ v @ own).square().sum()
            lost.backward()
            return lost

        search.step(error)
        best = min(best, float(error().detach()))
    assert found == pytest.approx(best, rel=1e-6)


def test_it_beats_truncation_on_either_streams_inputs():
    weight, (x, own) = draw(0, 24, 16), streams(16, 400)
    pair = pair_of(x, own)
    lost = [
        pair_loss(weight, *factors, pair)
        for factors in (
            sequential(weight, pair, 6, 1.0),
            truncate(weight, own @ own.T, 6),
            truncate(weight, x @ x.T, 6),
        )
    ]
    assert lost[0] < min(lost[1:])


@pytest.mark.parametrize("kind", ["dead features", "loud features", "few tokens"])
def test_hard_statistics_stay_within_a_thousandth_of_the_optimum(kind):
    weight, (x, own) = draw(0, 16, 24), streams(24, 200)
    if kind == "dead features":
        x[::3], own[::3] = 0, 0
    elif kind == "loud features":
        x[:3], own[:3] = 1e4 * x[:3], 1e4 * own[:3]
    else:
        x, own = x[:, :12], own[:, :12]
    exact = weight @ x @ torch.linalg.pinv(own)
    values = torch.linalg.svdvals(exact @ own)[5:].square().sum()
    best = float((weight @ x - exact @ own).square().sum() + values)
    single = Pair(*(part.float() for part in pair_of(x, own)))
    up, down = sequential(weight, single, 5, 1.0)
    found = float((weight @ x - up @ down @ own).square().sum())
    assert found <= 1.001 * best + 1e-6 * float((weight @ x).square().sum())


def test_dead_features_keep_the_layers_own_weights():
    weight, (x, own) = draw(0, 8, 6), streams(6, 100)
    x[2], own[2] = 0, 0
    target = least_squares(weight, pair_of(x, own), 1.0)
    assert torch.allclose(target[:, 2], weight[:, 2], atol=1e-6)


def test_beta_follows_the_held_out_tokens():
    weight = draw(0, 12, 10)
    x, own = streams(10, 4000, noise=0.1)
    plenty = choose_beta(weight, pair_of(x, own), pair_of(*streams(10, 500, noise=0.1)), 6)
    assert plenty[0] == 1.0
    noisy, few = streams(10, 11, noise=2.0)
    held = streams(10, 500, seed=1, noise=2.0)
    scarce, losses = choose_beta(weight, pair_of(noisy, few), pair_of(*held), 6)
    assert scarce < 1.0
    assert losses[scarce] == min(losses.values())


def test_sums_of_two_streams_are_the_products():
    x, own = (part.T.float() for part in streams(7, 50))
    sums = PairSums("layer")
    for a, b in ((0, 20), (20, 50)):
        sums.add(x[a:b], own[a:b])
        sums.sums.end_chunk()
    found = sums.pair(centre=False)
    wanted = (x.T @ x, x.T @ own, own.T @ own)
    assert all(torch.allclose(f.float(), w, rtol=1e-4, atol=1e-4) for f, w in zip(found, wanted))
    moved, other = x - x.mean(0), own - own.mean(0)
    middle = sums.pair(centre=True)
    assert torch.allclose(middle.cross.float(), moved.T @ other, atol=1e-3)
    assert torch.allclose(sums.means()[1].float(), own.mean(0), atol=1e-6)


def test_streams_that_are_one_are_summed_once():
    x = draw(1, 30, 5).float()
    sums = PairSums("layer")
    sums.add(x, x)
    found = sums.pair(centre=False)
    assert sums.alike
    assert torch.equal(found.dense, found.gram)
    assert torch.equal(found.cross, found.gram)


def test_inputs_hold_means_and_sizes_and_refuse_what_is_not_finite():
    x = draw(1, 40, 6).float() + 1
    sums = InputSums("layer")
    sums.add(x[:10])
    sums.add(x[10:])
    found = sums.inputs()
    assert torch.allclose(found.gram, x.T @ x, rtol=1e-4)
    assert torch.allclose(found.mean.float(), x.mean(0), atol=1e-6)
    assert torch.allclose(found.mean_abs.float(), x.abs().mean(0), atol=1e-6)
    damped = found.matrix(centre=False, damp=0.5)
    whole = (x.T @ x).double()
    assert torch.allclose(
        damped, 0.5 * whole + 0.5 * whole.diagonal().mean() * torch.eye(6), rtol=1e-4
    )
    sums.add(torch.full((2, 6), torch.inf))
    with pytest.raises(RunError, match="`layer` are not finite"):
        sums.inputs()
    with pytest.raises(RunError, match="saw no calibration token"):
        InputSums("other").inputs()


def test_shrinkage_is_for_few_tokens():
    assert shrinkage("auto", 99, 10) == 0.01
    assert shrinkage("auto", 100, 10) == 0
    assert shrinkage("0.3", 1000, 10) == 0.3
