"""Shape metrics of empirical spectral densities: how heavy the tail of a weight matrix is.

Letters: B spectra in a batch, N eigenvalues each, ascending, squared singular values. Zeros are
dropped first. Small alpha: heavy tail, well trained. The exponents are defined in `tails`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compress.spectra.tails import TAILS, Tail, fit_tails

UNDEFINED = 0.0


class Metric(NamedTuple):
    """What a metric means to an allocator."""

    sign: int
    """+1: a matrix with a larger value is pruned more; -1: less."""
    meaning: str
    needs: Literal["spectrum", "shape", "weight"] = "spectrum"
    """What it is measured from: eigenvalues alone, these and the matrix's shape, or the weights."""


# The sign is AlphaPruning's, whatever is larger is pruned more, but where more means further from
# noise: there, less. Evidence exists for the shape metrics only (its paper finds scale metrics
# inferior).
METRICS: dict[str, Metric] = {
    "alpha_peak": Metric(1, "tail exponent, tail from the peak of the density or left of it"),
    "alpha_peak_strict": Metric(1, "tail exponent, tail from the peak of the density"),
    "alpha_mid": Metric(1, "tail exponent of the upper half (Hill)"),
    "alpha_ks": Metric(1, "tail exponent of the best fit, WeightWatcher's alpha"),
    "stable_rank": Metric(1, "sum of eigenvalues over the largest"),
    "entropy": Metric(1, "entropy of the eigenvalues over its maximum, 0 to 1"),
    "norm": Metric(1, "sum of eigenvalues: squared Frobenius norm"),
    "log_norm": Metric(1, "log10 of norm"),
    "spectral_norm": Metric(1, "largest eigenvalue: squared spectral norm"),
    "log_spectral_norm": Metric(1, "log10 of spectral_norm"),
    "alpha_weighted": Metric(1, "alpha_ks times log_spectral_norm"),
    "log_alpha_norm": Metric(1, "log10 of the sum of eigenvalues to the power alpha_ks"),
    "farms": Metric(1, "alpha_peak of windows of one aspect ratio", "weight"),
    "rand_distance": Metric(
        -1, "Jensen-Shannon distance to the spectrum of the shuffled matrix", "weight"
    ),
    "mp_softrank": Metric(1, "upper edge of the Marchenko-Pastur bulk over the largest", "shape"),
    "sigma_mp": Metric(1, "scale of the Marchenko-Pastur bulk, eigenvalues of mean 1", "shape"),
    "bulk_max": Metric(1, "upper edge of the Marchenko-Pastur bulk", "shape"),
    "num_spikes": Metric(-1, "eigenvalues beyond the Marchenko-Pastur bulk", "shape"),
}
# Measured unless others are asked for: all that a spectrum alone tells.
DEFAULT_METRICS = tuple(name for name, metric in METRICS.items() if metric.needs == "spectrum")
_ON_ALPHA_KS = {"alpha_weighted", "log_alpha_norm"}


class Spectra(NamedTuple):
    """All that was measured of a batch of spectra."""

    values: dict[str, Tensor]
    """Metric name to [B] float64, always finite."""
    tails: dict[str, Tail]
    """The fits behind the alphas among them."""
    rank: Tensor
    """[B] number of positive eigenvalues."""
    undefined: dict[str, Tensor]
    """Metric name to bool [B]: UNDEFINED stands for a value that doesn't exist."""


def shape_metrics(eigenvalues: Tensor | Sequence[float]) -> dict[str, float]:
    """Measure the shape of one spectrum.

    Args:
        eigenvalues: [N] squared singular values, any order, any scale.

    Returns:
        Every name of DEFAULT_METRICS, and of the tail of alpha_peak `peak_start` (its least
        eigenvalue), `peak_distance` (Kolmogorov) and `peak_size`. Floats, always finite: where a
        value doesn't exist (no two distinct positive eigenvalues, for one) it is 0, which no
        exponent can be.

    Raises:
        ValueError: not [N] with N >= 1, a negative value or one that isn't finite.
    """
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"eigenvalues must be [N] with N >= 1, not {list(values.shape)}")
    measured = measure_batch(values[None])
    peak = measured.tails["alpha_peak"]
    tail = {"start": peak.start, "distance": peak.distance, "size": peak.size}
    return {
        **{name: float(value) for name, value in measured.values.items()},
        **{f"peak_{name}": float(value) for name, value in tail.items()},
    }


def measure_batch(eigenvalues: Tensor, metrics: Collection[str] = DEFAULT_METRICS) -> Spectra:
    """Measure many spectra of one length at once, on their device.

    Args:
        eigenvalues: [B, N] squared singular values, any order.
        metrics: the names of DEFAULT_METRICS to compute.

    Raises:
        ValueError: a negative value or one that isn't finite; an unknown metric.
    """
    unknown = set(metrics) - set(DEFAULT_METRICS)
    if unknown:
        raise ValueError(f"unknown metrics: {', '.join(sorted(unknown))}")
    e_BN = eigenvalues.double().sort(dim=1).values
    if not bool((e_BN.isfinite() & (e_BN >= 0)).all()):
        raise ValueError("eigenvalues must be finite and >= 0")
    wanted = set(metrics) | ({"alpha_ks"} if _ON_ALPHA_KS & set(metrics) else set())
    rank = (e_BN > 0).sum(1)
    tails = fit_tails(e_BN, [name for name in TAILS if name in wanted])
    raw = {name: tail.alpha for name, tail in tails.items()}
    raw |= _scales(e_BN, rank, raw.get("alpha_ks"))
    undefined = {name: ~raw[name].isfinite() for name in DEFAULT_METRICS if name in metrics}
    values = {name: raw[name].where(~gone, UNDEFINED) for name, gone in undefined.items()}
    tails = {n: _defined(tail, undefined[n]) for n, tail in tails.items() if n in undefined}
    return Spectra(values, tails, rank, undefined)


def _defined(tail: Tail, gone: Tensor) -> Tail:
    return Tail(
        tail.alpha.where(~gone, UNDEFINED),
        tail.start,
        tail.distance.where(~gone, 1.0),
        tail.size.where(~gone, 0),
    )


def _scales(e_BN: Tensor, rank: Tensor, alpha: Tensor | None) -> dict[str, Tensor]:
    """Metrics that need no fit, and the two that rest on alpha_ks; NaN or inf where undefined."""
    norm, largest = e_BN.sum(1), e_BN[:, -1]
    share = e_BN / norm[:, None]
    entropy = torch.special.entr(share).sum(1)
    scales = {
        "norm": norm,
        "log_norm": norm.log10(),
        "spectral_norm": largest,
        "log_spectral_norm": largest.log10(),
        "stable_rank": norm / largest,
        "entropy": entropy / rank.double().log(),  # 0 / 0 at rank one
    }
    if alpha is not None:
        scales["alpha_weighted"] = alpha * largest.log10()
        powers = alpha[:, None] * e_BN.log()  # ln of e^alpha; -inf for a zero adds nothing
        scales["log_alpha_norm"] = powers.logsumexp(1) / math.log(10)
    return scales
