"""Single precision: taken only where no error within its bound changes a metric."""

from __future__ import annotations

import pytest
import torch

from compress.numerics import gram_eigenvalues
from compress.numerics.eigen import single_error
from compress.spectra import decompose as module
from compress.spectra import settled as rule
from compress.spectra.decompose import Wanted, decompose
from compress.spectra.metrics import DEFAULT_METRICS, measure_batch
from compress.spectra.settled import TOLERANCE, settled

ALPHAS = ("alpha_ks", "alpha_mid", "alpha_peak", "alpha_peak_strict")


def trained(out: int, inp: int, seed: int) -> torch.Tensor:
    """A Gaussian bulk with a heavy tail of as many directions as a tenth of the rows."""
    g = torch.Generator().manual_seed(seed)
    few = out // 10
    left = torch.randn(out, few, generator=g) * torch.arange(1, few + 1) ** -0.8
    return torch.randn(out, inp, generator=g) + left @ torch.randn(few, inp, generator=g)


@pytest.mark.parametrize("name", ALPHAS)
def test_no_error_within_the_bound_moves_what_is_settled(name):
    e = torch.stack([gram_eigenvalues(trained(100, 260, s), single=True) for s in range(24)])
    bound, known = single_error(e), settled(e, [name])
    assert known.sum() >= 8
    value = measure_batch(e, [name]).values[name]
    draw = torch.Generator().manual_seed(1)
    for turn in range(40):
        size = torch.rand(e.shape, generator=draw, dtype=torch.float64) * 2 - 1
        error = bound * (size.sign() if turn % 2 else size)
        if turn == 2:
            error = bound * torch.linspace(-1, 1, e.shape[1], dtype=torch.float64)
        moved = measure_batch((e + error).sort(1).values, [name]).values[name]
        assert float((moved - value).abs()[known].max()) <= TOLERANCE


def test_wider_errors_settle_less(monkeypatch):
    e = torch.stack([gram_eigenvalues(trained(100, 260, s), single=True) for s in range(24)])
    counts = []
    for wider in (1, 5, 1000):
        monkeypatch.setattr(rule, "single_error", lambda e, by=wider: by * single_error(e))
        counts.append(int(settled(e, ["alpha_ks"]).sum()))
    assert counts[0] > counts[1] > counts[2] == 0


def test_the_bottom_of_a_square_matrix_is_not_settled():
    e = gram_eigenvalues(torch.randn(200, 200, generator=torch.Generator().manual_seed(0)))
    assert not bool(settled(e[None], ["alpha_peak"]))
    assert bool(settled(e[None], ["stable_rank"]))
    e[0] = 1e-9 * e[-1]
    assert not bool(settled(e[None], ["entropy"]))


def used(monkeypatch) -> list[tuple[tuple[int, ...], bool]]:
    seen = []

    def watched(weight, exact=False, single=False):
        seen.append((tuple(weight.shape), single))
        return gram_eigenvalues(weight, exact, single)

    monkeypatch.setattr(module, "gram_eigenvalues", watched)
    return seen


def test_precision_goes_by_shape_and_metrics(monkeypatch):
    seen = used(monkeypatch)
    square, long, small = trained(100, 100, 0), trained(100, 260, 0), trained(40, 90, 0)
    for weight, metrics, single in (
        (square, ("alpha_ks",), True),
        (square, DEFAULT_METRICS, False),
        (long, DEFAULT_METRICS, True),
        (small, ("alpha_ks",), False),
        (long.double(), ("alpha_ks",), False),
        (long, ("alpha_ks", "mp_softrank"), False),
    ):
        seen.clear()
        decompose([("w", weight)], Wanted(metrics))
        assert seen[0] == (tuple(weight.shape), single)
    for wanted in (Wanted(("alpha_ks",), precise=True), Wanted(("alpha_ks",), exact=True)):
        seen.clear()
        decompose([("w", long)], wanted)
        assert [single for _, single in seen] == [False]


def test_what_single_precision_leaves_open_is_measured_in_double(monkeypatch):
    seen = used(monkeypatch)
    monkeypatch.setattr(module, "settled", lambda e, metrics: torch.zeros(len(e), dtype=torch.bool))
    weights = [(str(s), trained(100, 260, s)) for s in range(3)]
    found = decompose(weights, Wanted(("alpha_ks",)))
    assert [single for _, single in seen] == [True] * 3 + [False] * 3
    for (_, weight), part in zip(weights, found, strict=True):
        assert torch.equal(part.eigenvalues, gram_eigenvalues(weight))


@pytest.mark.parametrize("threads", [1, 2])
def test_alphas_are_those_of_double_precision(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = [(str(s), trained(128, 128 + 100 * (s % 2), s)) for s in range(12)]
        fast, slow = (
            measure_batch(
                torch.stack(
                    [p.eigenvalues for p in decompose(weights, Wanted(ALPHAS[:1], precise=p))]
                ),
                ALPHAS[:1],
            ).values["alpha_ks"]
            for p in (False, True)
        )
    finally:
        torch.set_num_threads(before)
    assert float((fast - slow).abs().max()) < TOLERANCE
    assert not torch.equal(fast, slow)


def test_threads_of_the_pool_start_no_teams_of_their_own(monkeypatch):
    before, seen = torch.get_num_threads(), []

    def watched(*given):
        seen.append(torch.get_num_threads())
        return gram_eigenvalues(*given)

    monkeypatch.setattr(module, "gram_eigenvalues", watched)
    torch.set_num_threads(2)
    try:
        decompose([(str(s), trained(70, 90, s)) for s in range(3)], Wanted(("alpha_ks",)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_weightwatchers_alpha_to_the_stated_tolerance():
    fit = pytest.importorskip("weightwatcher.WW_powerlaw").WWFit
    weights = [(str(s), trained(128, 300, s)) for s in range(6)]
    for (_, weight), part in zip(weights, decompose(weights, Wanted(("alpha_ks",))), strict=True):
        expected = fit(torch.linalg.svdvals(weight.double()).square().numpy()).alpha
        alpha = measure_batch(part.eigenvalues[None], ["alpha_ks"]).values["alpha_ks"]
        assert float(alpha) == pytest.approx(expected, abs=TOLERANCE)
