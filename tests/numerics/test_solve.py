"""The inverse factor: the definition, and every step of the escalation."""

from __future__ import annotations

import pytest
import torch

from compress.numerics import damped_inverse_cholesky


def gram(n: int, tokens: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.T @ x / tokens


@pytest.mark.parametrize("n", [1, 5, 300, 700])  # beyond 256 the inverse is taken by halves
def test_the_factor_is_the_cholesky_factor_of_the_inverse(n):
    hessian = gram(n, 2 * n + 1)
    upper, damp, note = damped_inverse_cholesky(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert torch.allclose(upper, expected, rtol=1e-8, atol=1e-10)
    assert torch.equal(upper, upper.triu())
    assert damp == 0.01
    assert note is None


def test_the_hessian_is_only_read():
    hessian = gram(6, 20)
    before = hessian.clone()
    damped_inverse_cholesky(hessian)
    assert torch.equal(hessian, before)


def shifted(n: int, lowest: float) -> torch.Tensor:
    """Symmetric, mean diagonal about one, its lowest eigenvalue as given."""
    values = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    values[0] = lowest
    basis = torch.linalg.qr(
        torch.randn(n, n, generator=torch.Generator().manual_seed(1)).double()
    ).Q
    return (basis * values) @ basis.T


@pytest.mark.parametrize(("lowest", "damp"), [(-0.05, 0.1), (-0.5, 1.0), (-5.0, 10.0)])
def test_damping_grows_tenfold_and_says_so(lowest, damp):
    upper, used, note = damped_inverse_cholesky(shifted(20, lowest).float(), 0.01)
    assert used == pytest.approx(damp)
    assert note == f"damping {damp:g} instead of 0.01"
    assert bool(upper.isfinite().all())


def test_the_last_resort_clamps_eigenvalues_and_says_so():
    hessian = shifted(20, -50.0)
    upper, _, note = damped_inverse_cholesky(hessian.float(), 0.01)
    assert note is not None
    assert "1 of 20 eigenvalues clamped" in note
    assert "float64" in note
    inverse = torch.linalg.inv(upper.double().T @ upper.double())
    values, vectors = torch.linalg.eigh(hessian)
    repaired = (vectors * values.clamp(min=float(torch.linalg.eigvalsh(inverse)[0]))) @ vectors.T
    assert torch.allclose(inverse, repaired, rtol=1e-3, atol=1e-2)


def test_float64_is_tried_before_clamping(monkeypatch):
    import compress.numerics.solve as solve

    factor = solve._factor
    monkeypatch.setattr(solve, "_factor", lambda h: factor(h) if h.dtype == torch.float64 else None)
    upper, used, note = damped_inverse_cholesky(gram(8, 30).float(), 0.02)
    assert used == 0.02
    assert note == "float64 instead of float32, damping 0.02"
    assert upper.dtype == torch.float32


def test_zero_damping_grows_from_something():
    upper, used, note = damped_inverse_cholesky(torch.zeros(3, 3) + torch.tensor(1.0), 0.0)
    assert used > 0
    assert note is not None
    assert bool(upper.isfinite().all())


def test_a_zero_hessian_is_repaired_not_nan():
    upper, _, note = damped_inverse_cholesky(torch.zeros(3, 3))
    assert bool(upper.isfinite().all())
    assert note is not None


@pytest.mark.parametrize(
    ("hessian", "damp", "words"),
    [
        (torch.ones(2, 3), 0.01, "n, n"),
        (torch.eye(2) * torch.inf, 0.01, "finite"),
        (torch.eye(2), -0.1, "damp"),
    ],
)
def test_bad_input(hessian, damp, words):
    with pytest.raises(ValueError, match=words):
        damped_inverse_cholesky(hessian, damp)
