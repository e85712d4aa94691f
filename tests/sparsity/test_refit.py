"""Refitting a mask: the optimum by its condition and row by row, against every solver's values."""

import pytest
import torch
from layers import correlated, error, gaussian

from compress.errors import RunError
from compress.sparsity import refit as module
from compress.sparsity.admm import admm
from compress.sparsity.alps import alps
from compress.sparsity.masks import magnitude_mask, nm_mask, wanda_mask_counts
from compress.sparsity.refit import refit_cg, refit_exact
from compress.sparsity.sparsegpt import sparsegpt


def damped(hessian, damp=0.01):
    return hessian + damp * torch.diag(hessian.diagonal())


def by_rows(weight, keep, hessian):
    """w_P = H_PP⁻¹ H_P: w, one row at a time."""
    out = torch.zeros_like(weight)
    for i, kept in enumerate(keep):
        if bool(kept.any()):
            system = hessian[kept][:, kept]
            out[i, kept] = torch.linalg.solve(system, hessian[kept] @ weight[i])
    return out


@pytest.mark.parametrize("chunk", [1, 700, 2**25])
def test_exact_is_the_optimum_row_by_row(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    x, weight = correlated(80, 24), gaussian(10, 24)
    keep = magnitude_mask(weight, 150)  # rows keep different numbers
    keep[3] = False
    keep[4] = True
    hessian = damped(x.T @ x)
    result = refit_exact(weight, keep, x.T @ x)
    assert torch.allclose(result.weight, by_rows(weight, keep, hessian), rtol=1e-8, atol=1e-10)
    assert torch.equal(result.mask, keep)
    assert torch.equal(result.weight == 0, ~keep)
    assert torch.equal(result.weight[4], weight[4])
    gradient = ((result.weight - weight) @ hessian) * keep
    assert float(gradient.abs().max()) < 1e-9 * float((weight @ hessian).abs().max())


def test_conjugate_gradients_come_to_the_same_from_any_start():
    x, weight = correlated(80, 24), gaussian(10, 24)
    keep = magnitude_mask(weight, 150)
    best = refit_exact(weight, keep, x.T @ x).weight
    for start in (None, weight + 1, gaussian(10, 24, 9)):
        found = refit_cg(weight, keep, x.T @ x, start=start, iterations=200, tolerance=1e-10).weight
        assert torch.allclose(found, best, rtol=1e-6, atol=1e-7)
        assert torch.equal(found == 0, ~keep)
    rough = refit_cg(weight, keep, x.T @ x).weight
    assert float(error(weight, rough, x).sum()) < 1.01 * float(error(weight, best, x).sum())


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
@pytest.mark.parametrize("solver", [sparsegpt, admm, alps])
def test_no_solver_beats_the_optimum_for_its_mask(solver, sparsity):
    x, weight = correlated(500, 96), gaussian(48, 96)
    solved = solver(weight, x.T @ x, round(sparsity * weight.numel()))
    best = refit_exact(weight, solved.mask, x.T @ x, 1e-9).weight
    assert bool((error(weight, best, x) <= error(weight, solved.weight, x) * (1 + 1e-6)).all())
    usual = refit_exact(weight, solved.mask, x.T @ x).weight
    assert float(error(weight, usual, x).sum()) < float(error(weight, solved.weight, x).sum())


def test_wandas_mask_refitted_beats_sparsegpt():
    x, weight = correlated(500, 96), gaussian(48, 96)
    keep = wanda_mask_counts(weight, x.norm(dim=0), 2304)
    refitted = refit_exact(weight, keep, x.T @ x).weight
    solved = sparsegpt(weight, x.T @ x, 2304).weight
    assert float(error(weight, refitted, x).sum()) < float(error(weight, solved, x).sum())


@pytest.mark.parametrize("refit", [refit_exact, refit_cg])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_spherical_hessian_leaves_survivors_bit_equal(refit, dtype):
    weight = gaussian(24, 60).to(dtype)
    keep = nm_mask(weight.abs(), 2, 4)
    result = refit(weight, keep, 37 * torch.eye(60))
    assert torch.equal(result.weight, torch.where(keep, weight, 0))
    assert result.weight.dtype == dtype
    assert result.note is None


@pytest.mark.parametrize("refit", [refit_exact, refit_cg])
def test_survivors_on_dead_inputs_stay_and_are_noted(refit):
    x, weight = correlated(100, 16), gaussian(4, 16)
    x[:, [3, 9]] = 0
    keep = magnitude_mask(weight, 30)
    result = refit(weight, keep, x.T @ x)
    assert torch.equal(result.weight[:, [3, 9]], (weight * keep)[:, [3, 9]])
    assert not torch.equal(result.weight, weight * keep)
    assert "2 of 16 inputs are never active" in result.note


def test_survivors_never_round_to_zero():
    # 6e-8 is float16's least number; making up for the first takes nine tenths off the second.
    weight = torch.tensor([[6e-8, 6e-8, 1.0]]).half()
    hessian = torch.tensor([[1.0, -0.9, 0.0], [-0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    keep = torch.tensor([[False, True, True]])
    for refit in (refit_exact, refit_cg):
        assert torch.equal(refit(weight, keep, hessian, 1e-3).weight == 0, ~keep)


@pytest.mark.parametrize("refit", [refit_exact, refit_cg])
def test_faults_are_named(refit):
    weight, keep = gaussian(4, 10), torch.ones(4, 10, dtype=torch.bool)
    with pytest.raises(RunError, match=r"`up`.*not finite"):
        refit(weight, keep, torch.eye(10) * torch.nan, name="up")
    with pytest.raises(ValueError, match="Hessian of"):
        refit(weight, keep, torch.eye(3))
