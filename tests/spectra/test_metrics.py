"""Shape metrics: exact samples, published limits, WeightWatcher, invariances, odd spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import compress
from compress.numerics import gram_eigenvalues
from compress.spectra.metrics import DEFAULT_METRICS, measure_batch, shape_metrics

ALPHAS = ("alpha_peak", "alpha_peak_strict", "alpha_mid", "alpha_ks")


def gaussian(out: int, inp: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))


def heavy(out: int, inp: int, seed: int = 0) -> torch.Tensor:
    """A Gaussian bulk with a power-law tail, like a trained matrix."""
    spikes = gaussian(out, 20, seed + 1) * torch.arange(1, 21) ** -0.6 @ gaussian(20, inp, seed + 2)
    return gaussian(out, inp, seed) + spikes * 3


def spectrum(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(weight.double()).square()


def tail(e: np.ndarray, i: int) -> tuple[float, float]:
    """Exponent and Kolmogorov distance of the tail from index i, by the definition."""
    n = len(e) - i
    alpha = 1 + n / sum(math.log(e[j] / e[i]) for j in range(i, len(e)))
    gaps = [abs(1 - (e[j] / e[i]) ** (1 - alpha) - (j - i) / n) for j in range(i, len(e))]
    return alpha, max(gaps)


def slow(eigenvalues: torch.Tensor) -> dict[str, float]:
    """All four exponents as alpha.md 1.2 writes them, with numpy's histogram."""
    e = np.sort(eigenvalues.numpy())
    counts, edges = np.histogram(np.log10(e), bins=100)
    x = 10 ** edges[counts.argmax()]
    fits = {i: tail(e, i) for i in range(len(e) - 1)}

    def best(keep) -> float:
        return min((fits[i][1], fits[i][0]) for i in fits if keep(e[i]))[1]

    return {
        "alpha_mid": tail(e, int(len(e) / 2))[0],
        "alpha_ks": best(lambda v: True),
        "alpha_peak": best(lambda v: v <= 1.5 * x),
        "alpha_peak_strict": best(lambda v: 0.95 * x <= v <= 1.5 * x),
    }


@pytest.mark.parametrize("make", [gaussian, heavy])
@pytest.mark.parametrize("shape", [(40, 40), (60, 150), (31, 200)])
def test_exponents_are_the_definition(make, shape):
    e = spectrum(make(*shape, seed=sum(shape)))
    measured = shape_metrics(e)
    for name, expected in slow(e).items():
        assert measured[name] == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("alpha", [1.5, 2.0, 2.5, 3.0, 4.0])
def test_exact_pareto_quantiles_give_their_exponent(alpha):
    n = 1000
    j = torch.arange(n, dtype=torch.float64)
    measured = shape_metrics((1 - (j + 0.5) / n) ** (-1 / (alpha - 1)))
    assert measured["alpha_ks"] == pytest.approx(alpha, abs=0.003)
    assert measured["alpha_mid"] == pytest.approx(alpha, abs=0.006)
    assert measured["alpha_peak"] == pytest.approx(alpha, abs=0.006)


def test_a_geometric_spectrum_follows_the_codes_convention():
    measured = shape_metrics(torch.logspace(1, -4, 1024, dtype=torch.float64).square())
    assert measured["alpha_mid"] == pytest.approx(1.173888, abs=1e-6)  # the paper's: 1.17322
    ratio = 10 / 1023 * math.log(10)
    assert measured["alpha_mid"] == pytest.approx(1 + 2 / (511 * ratio), rel=1e-9)
    # The paper has 512 values above the one that they are compared with, which the code counts too.
    e = torch.logspace(1, -4, 1024, dtype=torch.float64).square().sort().values
    paper = 1 + 512 / float((e[512:] / e[511]).log().sum())
    assert paper == pytest.approx(1.17322, abs=2e-5)
    assert paper == pytest.approx(1 + 2 / (513 * ratio), rel=1e-9)


@pytest.mark.parametrize(
    ("out", "inp", "limit"),
    [
        (1024, 1024, 2.1217),
        (512, 1024, 2.7058),
        (384, 1024, 2.9910),
        (256, 1024, 3.4546),
        (1024, 8192, 4.4699),
    ],
)
def test_gaussian_limits(out, inp, limit):
    measured = shape_metrics(gram_eigenvalues(gaussian(out, inp)))
    assert measured["alpha_mid"] == pytest.approx(limit, abs=0.03)
    rank = 1 / (1 + math.sqrt(out / inp)) ** 2
    assert measured["stable_rank"] / out == pytest.approx(rank, rel=0.05)


@pytest.mark.parametrize("shape", [(64, 64), (50, 120), (200, 90)])
@pytest.mark.parametrize("make", [gaussian, heavy])
def test_alpha_ks_is_weightwatchers(shape, make):
    fit = pytest.importorskip("weightwatcher.WW_powerlaw").WWFit
    e = spectrum(make(*shape))
    e = e[e > 1e-5]
    assert shape_metrics(e)["alpha_ks"] == pytest.approx(fit(e.numpy()).alpha, rel=1e-6)


def test_scale_metrics_are_weightwatchers():
    util = pytest.importorskip("weightwatcher.RMT_Util")
    weight = heavy(48, 100)
    e, sigma = spectrum(weight).numpy(), torch.linalg.svdvals(weight.double()).numpy()
    measured = shape_metrics(torch.from_numpy(e))
    alpha = measured["alpha_ks"]
    expected = {
        "stable_rank": util.stable_rank(e),
        "entropy": util.matrix_entropy(sigma, 100),
        "norm": e.sum(),
        "log_norm": np.log10(e.sum()),
        "spectral_norm": e.max(),
        "log_spectral_norm": np.log10(e.max()),
        "alpha_weighted": alpha * np.log10(e.max()),
        "log_alpha_norm": np.log10((e**alpha).sum()),
    }
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, rel=1e-6), name
    assert measured["norm"] == pytest.approx(float(weight.double().norm() ** 2))


@pytest.mark.parametrize("make", [gaussian, heavy])
@pytest.mark.parametrize(
    "change",
    [
        lambda w: w * 1e-3,
        lambda w: w * 1e3,
        lambda w: w.T,
        lambda w: w.flip(0, 1).roll(3, 0),
        lambda w: torch.linalg.qr(gaussian(60, 60, 9).double()).Q.float() @ w,
    ],
    ids=["small", "large", "transpose", "permutation", "rotation"],
)
def test_invariances(make, change):
    weight = make(60, 110)
    one = shape_metrics(gram_eigenvalues(weight))
    two = shape_metrics(gram_eigenvalues(change(weight)))
    for name in (*ALPHAS, "stable_rank", "entropy"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


def test_order_and_container_are_irrelevant():
    e = spectrum(heavy(30, 50))
    one = shape_metrics(e)
    assert shape_metrics(e.flip(0)) == one
    assert shape_metrics(e.tolist()) == one


def test_a_batch_is_its_members_zeros_and_all():
    rows = torch.stack([spectrum(heavy(40, 70, seed)) for seed in range(5)])
    rows[2, rows[2].argsort()[:13]] = 0
    rows[3] = 0
    rows[4] = 2.5
    batch = measure_batch(rows)
    for i, row in enumerate(rows):
        alone = shape_metrics(row)
        for name in DEFAULT_METRICS:
            assert float(batch.values[name][i]) == pytest.approx(alone[name], rel=1e-12), name
    assert batch.rank.tolist() == [40, 40, 27, 0, 40]


def test_chunks_of_the_search_change_nothing(monkeypatch):
    e = spectrum(heavy(60, 80))
    whole = shape_metrics(e)
    monkeypatch.setattr("compress.spectra.tails._TABLE", 500)
    assert shape_metrics(e) == whole


def test_zeros_are_dropped_first():
    e = spectrum(heavy(40, 70))
    padded = shape_metrics(torch.cat([e, torch.zeros(9, dtype=torch.float64)]))
    assert padded == pytest.approx(shape_metrics(e), rel=1e-12)


def test_a_heavier_tail_has_a_smaller_exponent():
    light, weight = (
        shape_metrics(spectrum(gaussian(60, 90))),
        shape_metrics(spectrum(heavy(60, 90))),
    )
    for name in ("alpha_peak", "alpha_ks", "stable_rank", "entropy"):
        assert weight[name] < light[name]


def test_bins_wider_than_the_window_fall_back_on_the_peaks_first_value():
    # A hundred bins over 40 decades: no value need lie within 0.95 to 1.5 of an edge.
    e = torch.tensor([1e-20, 1.4e-9, 1.5e-9, 1.6e-9, 1.0, 1e20], dtype=torch.float64)
    measured = shape_metrics(e)
    assert all(math.isfinite(v) for v in measured.values())
    assert measured["alpha_peak_strict"] > 1


@pytest.mark.parametrize(
    "eigenvalues",
    [[0.0] * 8, [1.0] * 8, [3.0], [0.0], [0.0, 0.0, 5.0], [1 - 1e-9, 1.0, 1 + 1e-9], [1e-300] * 3],
    ids=["zero", "constant", "one", "one zero", "rank one", "nearly constant", "tiny"],
)
def test_degenerate_spectra_have_defined_values(eigenvalues):
    measured = shape_metrics(eigenvalues)
    assert all(isinstance(v, float) and math.isfinite(v) for v in measured.values())
    assert set(DEFAULT_METRICS) <= set(measured)
    for name in ALPHAS:
        assert measured[name] == 0
    undefined = measure_batch(torch.tensor([eigenvalues], dtype=torch.float64)).undefined
    assert bool(undefined["alpha_peak"])
    assert bool(undefined["norm"]) is False


def test_only_the_metrics_asked_for_are_computed():
    e = spectrum(heavy(20, 30))[None]
    assert set(measure_batch(e, ["alpha_mid", "norm"]).values) == {"alpha_mid", "norm"}
    assert set(measure_batch(e, ["alpha_weighted"]).values) == {"alpha_weighted"}
    everything = measure_batch(e)
    for name in DEFAULT_METRICS:
        alone = measure_batch(e, [name]).values
        assert torch.equal(alone[name], everything.values[name])


@pytest.mark.parametrize(
    ("eigenvalues", "words"),
    [([], "N >= 1"), ([[1.0]], "N >= 1"), ([1.0, -1.0], ">= 0"), ([1.0, math.nan], "finite")],
)
def test_bad_spectra_are_refused(eigenvalues, words):
    with pytest.raises(ValueError, match=words):
        shape_metrics(eigenvalues)


def test_unknown_metrics_are_named():
    with pytest.raises(ValueError, match="alpha_peek"):
        measure_batch(torch.ones(1, 3), ["alpha_peek"])


def test_the_contract_name_is_callable():
    assert compress.spectra.shape_metrics([1.0, 2.0, 4.0])["alpha_mid"] > 1
