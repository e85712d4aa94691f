"""Hessians that can't be decomposed as they are: every solver gets through, and says how."""

import pytest
import torch
from layers import correlated, error, gaussian

from compress.numerics import solve
from compress.numerics.solve import damped_definite, solve_definite
from compress.sparsity.admm import admm
from compress.sparsity.alps import alps
from compress.sparsity.masks import magnitude_mask
from compress.sparsity.refit import refit_cg, refit_exact
from compress.sparsity.sparsegpt import sparsegpt

COUNT = 300


def by_refit(refit):
    def run(weight, hessian, count, damp=0.01):
        return refit(weight, magnitude_mask(weight, count), hessian, damp)

    return run


SOLVERS = {
    "sparsegpt": lambda w, h, c, damp=0.01: sparsegpt(w, h, c, damp=damp),
    "admm": lambda w, h, c, damp=0.01: admm(w, h, c, damp=damp),
    "alps": lambda w, h, c, damp=0.01: alps(w, h, c, damp=damp),
    "exact": by_refit(refit_exact),
    "cg": by_refit(refit_cg),
}


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("tokens", [5, 20])
@pytest.mark.parametrize("solver", SOLVERS)
def test_fewer_tokens_than_features_dead_inputs_and_any_scale(solver, tokens, scale):
    x, weight = correlated(tokens, 40).float() * scale, gaussian(12, 40).float()
    x[:, [3, 17]] = 0
    result = SOLVERS[solver](weight, x.T @ x, COUNT)
    assert int((result.weight == 0).sum()) == COUNT
    assert bool(result.weight.isfinite().all())
    assert "2 of 40 inputs are never active" in result.note
    plain = weight * result.mask
    assert float(error(weight, result.weight, x.double()).sum()) < 0.9 * float(
        error(weight, plain, x.double()).sum()
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_scale_of_the_inputs_changes_neither_mask_nor_values(solver):
    x, weight = correlated(20, 40), gaussian(12, 40)
    x[:, [3, 17]] = 0
    found = [SOLVERS[solver](weight, (x * c).T @ (x * c), COUNT) for c in (1e-4, 1.0, 1e4)]
    for other in (found[0], found[2]):
        assert torch.equal(other.mask, found[1].mask)
        assert torch.allclose(other.weight, found[1].weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("lowest", "words"),
    [
        (-0.02, "damping 0.1 instead of 0.01"),
        (-0.3, "damping 1 instead of 0.01"),
        (-3.0, "damping 10 instead of 0.01"),
        (-30.0, "eigenvalues clamped to"),
    ],
)
def test_a_hessian_that_is_not_positive_climbs_as_far_as_it_must_and_says_so(solver, lowest, words):
    # Unit diagonal, so that the solvers' own scaling leaves it: one pair of inputs is "more than
    # perfectly" correlated, which makes the eigenvalue 1 - c.
    hessian = torch.eye(40)
    hessian[3, 4] = hessian[4, 3] = 1 - lowest
    result = SOLVERS[solver](gaussian(12, 40).float(), hessian, COUNT)
    assert words in result.note
    assert bool(result.weight.isfinite().all())
    assert int((result.weight == 0).sum()) == COUNT


@pytest.mark.parametrize("solver", SOLVERS)
def test_float64_is_tried_before_eigenvalues_are_clamped(solver, monkeypatch):
    factor, definite = solve._factor, solve._is_definite
    for name, original in (("_factor", factor), ("_is_definite", definite)):
        fails = None if name == "_factor" else False
        monkeypatch.setattr(
            solve, name, lambda m, f=original, no=fails: f(m) if m.dtype == torch.float64 else no
        )
    x, weight = correlated(100, 40).float(), gaussian(12, 40).float()
    result = SOLVERS[solver](weight, x.T @ x, COUNT)
    assert result.note == "float64 instead of float32, damping 0.01"
    assert result.weight.dtype == torch.float32
    monkeypatch.setattr(solve, "_factor", factor)
    monkeypatch.setattr(solve, "_is_definite", definite)
    usual = SOLVERS[solver](weight, x.T @ x, COUNT)
    assert usual.note is None
    assert torch.allclose(result.weight, usual.weight, rtol=1e-2, atol=1e-3)


def test_rows_that_only_float64_can_decompose_are_refitted_there_and_counted(monkeypatch):
    real = torch.linalg.cholesky_ex

    def flawed(systems, **options):
        found = real(systems, **options)
        if systems.dim() == 3 and systems.dtype == torch.float32:
            found.info[:3] = 1
            found.L[:3] = torch.nan
        return found

    x, weight = correlated(100, 40).float(), gaussian(12, 40).float()
    keep = magnitude_mask(weight, COUNT)
    usual = refit_exact(weight, keep, x.T @ x)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", flawed)
    result = refit_exact(weight, keep, x.T @ x)
    assert result.note == "3 rows refitted in float64"
    assert torch.allclose(result.weight, usual.weight, rtol=1e-4, atol=1e-5)


def test_systems_that_cannot_be_decomposed_are_clamped_alone():
    good, bad = torch.eye(2) * 4, torch.tensor([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1
    found = solve_definite(torch.stack([good, bad, good]), torch.ones(3, 2))
    assert (found.doubled, found.clamped) == (0, 1)
    assert torch.allclose(found.values[[0, 2]], torch.full((2, 2), 0.25))
    assert torch.allclose(found.values[1], torch.full((2,), 1 / 3))  # along eigenvalue 3


def test_a_damped_matrix_has_room_for_rounding():
    made = damped_definite(torch.ones(8, 8), 0.01)
    assert made.note is None
    assert float(torch.linalg.eigvalsh(made.matrix.double())[0]) == pytest.approx(0.01, rel=1e-4)
