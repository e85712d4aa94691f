"""The mathematics of one layer: against singular values, against an optimiser, on hard Grams."""

import pytest
import torch

import compress
from compress.lowrank.truncate import (
    balanced,
    break_even,
    centred,
    curved,
    loss,
    root,
    scaled_gram,
    spectrum,
    truncate,
)

SHAPES = [(20, 32), (40, 24), (16, 16)]


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(kind, width, tokens=200):
    """Inputs [width, tokens] of the kinds that break decompositions."""
    x = draw(1, width, tokens)
    if kind == "few tokens":
        x = x[:, : width // 2]
    elif kind == "dead features":
        x[::3] = 0
    elif kind == "loud features":
        x[:4] *= 1e4
    elif kind == "loud and few":
        x[:4] *= 1e4
        x = x[:, : width // 2]
    return x


KINDS = ["plain", "few tokens", "dead features", "loud features", "loud and few"]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_inputs_it_is_truncated_svd(shape):
    weight = draw(0, *shape)
    values = torch.linalg.svdvals(weight)
    for rank in (1, 7, min(shape)):
        up, down = truncate(weight, None, rank)
        assert up.shape == (shape[0], rank)
        assert down.shape == (rank, shape[1])
        lost = float((weight - up @ down).square().sum())
        assert lost == pytest.approx(float(values[rank:].square().sum()), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_the_tail_of_the_outputs_singular_values(shape, kind):
    weight, x = draw(0, *shape), inputs_of(kind, shape[1])
    values = torch.linalg.svdvals(weight @ x)
    for rank in (1, 5, 9):
        up, down = truncate(weight, x @ x.T, rank)
        lost = float(((weight - up @ down) @ x).square().sum())
        best = float(values[rank:].square().sum())
        assert lost <= best * (1 + 1e-6) + 1e-9 * float(values.square().sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_weights_and_a_gram_summed_in_float32_stay_within_a_thousandth(shape, kind):
    weight = draw(0, *shape).bfloat16()
    x = inputs_of(kind, shape[1]).bfloat16().float()
    up, down = truncate(weight, x @ x.T, 6)
    values = torch.linalg.svdvals(weight.double() @ x.double())
    lost = float(((weight.double() - up @ down) @ x.double()).square().sum())
    assert lost <= 1.001 * float(values[6:].square().sum()) + 1e-12 * float(values.square().sum())


def test_an_optimiser_finds_nothing_better():
    weight, x = (
        draw(0, 6, 9),
        draw(1, 9, 40) * torch.linspace(0.1, 3, 9, dtype=torch.float64)[:, None],
    )
    up, down = truncate(weight, x @ x.T, 2)
    found = float(((weight - up @ down) @ x).square().sum())
    best = float("inf")
    for seed in range(3):
        u, v = (draw(seed + 5, 6, 2)).requires_grad_(), (draw(seed + 9, 2, 9)).requires_grad_()
        search = torch.optim.LBFGS([u, v], max_iter=500, line_search_fn="strong_wolfe")

        def error(u=u, v=v, search=search):
            search.zero_grad()
            lost = ((weight - u @ v) @ x).square().sum()
            lost.backward()
            return lost

        search.step(error)
        best = min(best, float(error().detach()))
    assert found == pytest.approx(best, rel=1e-6)


def test_no_perturbation_wins():
    weight, x = draw(0, 12, 10), inputs_of("loud features", 10)
    gram = x @ x.T
    up, down = truncate(weight, gram, 4)
    best = loss(weight, up, down, gram)
    for seed in range(100):
        size = 10.0 ** -(seed % 5)
        other = loss(
            weight, up + size * draw(seed, 12, 4), down + size * draw(seed + 1, 4, 10), gram
        )
        assert other >= best * (1 - 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_full_rank_gives_the_layer_back(shape, kind):
    weight, x = draw(0, *shape), inputs_of(kind, shape[1])
    up, down = truncate(weight, x @ x.T, min(shape))
    assert (up @ down - weight).abs().max() < 1e-5


def test_directions_without_inputs_are_chosen_by_the_weight_itself():
    weight = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    gram = torch.diag(torch.tensor([5.0, 0, 0, 0], dtype=torch.float64))
    up, down = truncate(weight, gram, 2)
    assert torch.allclose(up @ down, torch.diag(torch.tensor([1.0, 0, 0, 4.0]).double()), atol=1e-6)


def test_a_diagonal_gram_scales_columns():
    weight, scale = draw(0, 8, 12), draw(1, 12).abs() + 0.1
    up, down = truncate(weight, torch.diag(scale.square()), 3)
    u, s, v = torch.linalg.svd(weight * scale, full_matrices=False)
    assert torch.allclose(up @ down, ((u[:, :3] * s[:3]) @ v[:3]) / scale, atol=1e-9)


def test_asvd_weighs_by_the_mean_size_whatever_the_number_of_tokens():
    x = inputs_of("dead features", 12)
    once, twice = (scaled_gram(each.abs().mean(1), 0.5) for each in (x, torch.cat([x, x], 1)))
    assert torch.allclose(once, twice)
    assert torch.allclose(once.diagonal()[1:3], x.abs().mean(1)[1:3], rtol=1e-6)
    assert bool((once.diagonal() > 0).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_one_decomposition_foretells_every_rank(shape):
    weight, x = draw(0, *shape), inputs_of("plain", shape[1])
    gram = x @ x.T
    found = spectrum(weight, gram, values_only=True)
    assert found.total == pytest.approx(float((weight @ x).square().sum()), rel=1e-9)
    for rank in range(1, min(shape)):
        lost = loss(weight, *truncate(weight, gram, rank), gram)
        assert lost / found.total == pytest.approx(found.lost(rank), rel=1e-6)


def test_factors_share_the_range():
    up, down = truncate(1e4 * draw(0, 20, 30), None, 5)
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1))
    zero = balanced(torch.zeros(3, 2).double(), torch.zeros(2, 4).double())
    assert all(bool(part.isfinite().all()) for part in zero)


def test_curvature_of_the_identity_changes_nothing_and_weighs_outputs_else():
    weight, x = draw(0, 8, 10), inputs_of("plain", 10)
    gram = x @ x.T
    up, down, _ = curved(weight, gram, torch.eye(8).double(), 3)
    plain = truncate(weight, gram, 3)
    assert torch.allclose(up @ down, plain[0] @ plain[1], atol=1e-9)
    g = draw(3, 8, 50) * torch.linspace(0.1, 4, 8, dtype=torch.float64)[:, None]
    gamma = g @ g.T
    half = torch.linalg.cholesky(gamma).T  # another R with RᵀR = Γ
    up, down, found = curved(weight, gram, gamma, 3)
    lost = float((half @ (weight - up @ down) @ root(gram)).square().sum())
    values = torch.linalg.svdvals(half @ weight @ root(gram))
    assert lost == pytest.approx(float(values[3:].square().sum()), rel=1e-8)
    assert found.total == pytest.approx(float(values.square().sum()), rel=1e-8)


def test_the_centred_gram_is_that_of_inputs_less_their_mean():
    x = draw(1, 6, 50) + 3
    moved = x - x.mean(1, keepdim=True)
    assert torch.allclose(centred(x @ x.T, x.sum(1), 50), moved @ moved.T)


def test_break_even_is_the_last_rank_that_saves():
    for out, into in ((64, 64), (288, 96), (7, 3), (1, 5)):
        most = break_even(out, into)
        assert most * (out + into) < out * into or most == 0
        assert (most + 1) * (out + into) >= out * into


@pytest.mark.parametrize(
    ("weight", "gram", "rank", "said"),
    [
        (torch.ones(3, 4), None, 0, "rank 0 is outside 1 to 3"),
        (torch.ones(3, 4), None, 4, "rank 4"),
        (torch.ones(3, 4), torch.ones(3, 3), 1, r"gram must be \[4, 4\]"),
        (torch.ones(3), None, 1, r"must be \[out, in\]"),
        (torch.full((3, 4), torch.nan), None, 1, "weight holds a value"),
        (torch.ones(3, 4), torch.full((4, 4), torch.inf), 1, "gram holds a value"),
    ],
)
def test_what_does_not_fit_is_refused(weight, gram, rank, said):
    with pytest.raises(ValueError, match=said):
        compress.lowrank.truncate(weight, gram, rank)
