"""Pictures: what the histogram counts and expects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.spectra.plots import histogram


def test_every_positive_eigenvalue_is_counted_once():
    e = torch.cat([torch.zeros(3), torch.logspace(-3, 2, 50)]).double()
    data = histogram(e, 10, 2.0, 1.0, 20)
    assert data.counts.tolist() == [5] * 10
    assert data.edges[0] == pytest.approx(1e-3, rel=1e-6)
    assert data.edges[-1] == pytest.approx(1e2, rel=1e-6)


def test_the_expected_tail_is_the_power_laws():
    n, alpha = 400, 2.5
    j = torch.arange(n, dtype=torch.float64)
    e = (1 - (j + 0.5) / n) ** (-1 / (alpha - 1))
    data = histogram(e, 20, alpha, float(e[0]), n)
    assert np.abs(data.expected - data.counts).max() < 2
    assert data.expected.sum() == pytest.approx(n, rel=0.01)
    late = histogram(e, 20, alpha, float(e[200]), 200)
    assert late.expected[data.edges[1:] < float(e[200])].max() == 0
    assert late.expected.sum() == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize("e", [[0.0, 0.0], [3.0, 3.0], [5.0]])
def test_spectra_without_width_are_drawn(e):
    data = histogram(torch.tensor(e, dtype=torch.float64), 8, 0.0, 0.0, 0)
    assert data.counts.sum() == sum(v > 0 for v in e)
    assert not data.expected.any()
