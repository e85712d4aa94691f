"""The Marchenko-Pastur bulk of a spectrum, as WeightWatcher fits it.

An N × M matrix of noise (N >= M, Q = N/M, entries of variance sigma²/N) has its eigenvalues between
sigma² (1 ± 1/sqrt(Q))². The scale sigma is fitted to the density of all eigenvalues; what lies
above the bulk is what training put there. Definitions: WeightWatcher 0.7.7 (`mp_fit`,
`fit_density_with_range`), so that its thresholds hold here too: eigenvalues rescaled to mean 1, a
triangular kernel of width 0.1 at 1000 points, a square matrix fitted by the quarter circle of its
singular values, sigma by a grid of 195 and a descent. Their density is estimated anew for each
sigma; here once, which is all the difference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.optimize

_WIDTH = 0.1  # of the kernel, half its base
_POINTS = 1000
_LEAST_DENSITY = 0.01  # where the spectrum has next to nothing, nothing is fitted
_WORST = 1000.0  # residual of a sigma whose bulk can't hold the density's peak
_GRID = (0.05, 2.0, 0.01)  # of sigma, in units of the one that puts the largest value at the edge


def bulk_metrics(eigenvalues: np.ndarray, shape: tuple[int, int]) -> dict[str, float | None]:
    """Fit the bulk of one spectrum.

    Args:
        eigenvalues: [min(shape)] squared singular values, any order and scale.
        shape: of the matrix, either way round.

    Returns:
        mp_softrank: the bulk's upper edge over the largest eigenvalue.
        sigma_mp: the scale, of eigenvalues rescaled to mean 1.
        bulk_max: the upper edge, in units of the eigenvalues.
        num_spikes: how many lie beyond it and the Tracy-Widom range.
        None each where fewer than two eigenvalues are positive.
    """
    names = ("mp_softrank", "sigma_mp", "bulk_max", "num_spikes")
    mean = float(eigenvalues.mean())
    if np.count_nonzero(eigenvalues) < 2 or not mean > 0:
        return dict.fromkeys(names)
    long, short = max(shape), min(shape)
    values = eigenvalues / mean
    sigma = _fit_sigma(values, long / short)
    root = np.sqrt(short / long)
    edge = (sigma * (1 + root)) ** 2
    # The largest eigenvalue of noise scatters by this much about the edge.
    scatter = np.sqrt(root * edge ** (2 / 3) * short ** (-2 / 3))
    spikes = int((values > edge + scatter).sum())
    found = (edge / values.max(), sigma, edge * mean, float(spikes))
    return dict(zip(names, map(float, found), strict=True))


def _fit_sigma(values: np.ndarray, ratio: float) -> float:
    """The scale with the least squared residual to the density of the values."""
    squared = _residual(np.sqrt(values) if ratio == 1 else values, ratio)
    largest = np.sqrt(values.max()) / (1 + np.sqrt(1 / ratio))
    low, high, step = (bound * largest for bound in _GRID)
    tried = np.arange(low, high, step)
    best = tried[np.argmin([squared(sigma) for sigma in tried])]
    return float(scipy.optimize.fmin(lambda s: squared(float(s[0])), [best], disp=False)[0])


def _residual(values: np.ndarray, ratio: float) -> Callable[[float], float]:
    """From sigma to the summed squared difference between law and density."""
    x = np.linspace(0, values.max() + 0.5, _POINTS)
    density = _density(values, x)
    x, density = x[density > _LEAST_DENSITY], density[density > _LEAST_DENSITY]
    peak, last = x[density.argmax()], x[-1]
    if ratio == 1:
        circle = np.sqrt(np.clip(4 - x**2, 0, None))
        return lambda sigma: float(((circle / (np.pi * sigma**2) - density) ** 2).sum())

    def squared(sigma: float) -> float:
        lower, upper = ((sigma * (1 + sign * np.sqrt(1 / ratio))) ** 2 for sign in (-1, 1))
        if upper < peak or upper > last or lower > peak:
            return _WORST**2 * _POINTS
        inside = np.sqrt(np.clip((upper - x) * (x - lower), 0, None))
        law = np.divide(
            inside * ratio, 2 * np.pi * sigma**2 * x, out=np.zeros_like(x), where=inside > 0
        )
        return float(((law - density) ** 2).sum())

    return squared


def _density(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Triangular kernel estimate at x, from sums of the sorted values below each point."""
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], ordered.cumsum()])

    def ramp(at: np.ndarray) -> np.ndarray:
        """The sum of max(0, at - value) over all values."""
        below = np.searchsorted(ordered, at)
        return below * at - sums[below]

    # A triangle is the second difference of a ramp.
    triangle = ramp(x - _WIDTH) - 2 * ramp(x) + ramp(x + _WIDTH)
    return triangle / (len(values) * _WIDTH**2)
