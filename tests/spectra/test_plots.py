"""Pictures: what the histogram counts and expects, and how it reads as text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.spectra.plots import FIT, TAIL_STARTS, histogram, text_histogram


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
    assert "eigenvalue" in text_histogram(data)


def test_the_text_shows_heights_tail_and_axis():
    e = torch.cat([torch.full((8,), 1.0), torch.full((4,), 10.0), torch.full((1,), 99.9)]).double()
    text = text_histogram(histogram(e, 4, 2.0, 10.0, 5), height=4, bar=3)
    lines = text.splitlines()
    assert lines[0] == "count"
    assert [line[:5].strip() for line in lines[1:6]] == ["8", "6", "4", "2", "0"]
    assert lines[1] == "    8 ┤███"
    assert lines[3] == "    4 ┤███   ███"
    assert lines[4].startswith("    2 ┤███   ███")
    assert lines[4].rstrip().endswith("▄▄▄")
    assert lines[5].index(TAIL_STARTS) == lines[3].rindex("███")
    assert lines[6].split() == ["1", "5", "2e1", "eigenvalue"]  # as many as fit


def test_a_fit_above_the_bars_is_dashed():
    e = torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0], dtype=torch.float64)
    lines = text_histogram(histogram(e, 4, 1.5, 1.0, 5), height=4).splitlines()
    assert any(FIT in line for line in lines)
    assert FIT not in lines[5]


def test_one_count_is_visible_beside_many():
    e = torch.cat([torch.full((500,), 1.0), torch.full((1,), 50.0)]).double()
    lines = text_histogram(histogram(e, 10, 0.0, 0.0, 0)).splitlines()
    assert lines[4].rstrip().endswith("▁")
