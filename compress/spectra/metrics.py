"""Shape metrics of empirical spectral densities: how heavy the tail of a weight matrix is.

Letters: B spectra in a batch, N eigenvalues each, ascending: e_0 <= … <= e_{N-1}, squared singular
values. A tail that starts at candidate i has n = N - i values (e_i counted), the exponent

    alpha_i = 1 + n / (sum_{j>=i} ln e_j - n ln e_i)                      (Hill)

and the Kolmogorov distance D_i = max_{j>=i} |1 - (e_j / e_i)^(1 - alpha_i) - (j - i) / n|. The
variants of alpha differ in the start of the tail:

    alpha_mid          i = int(N / 2), nothing searched
    alpha_ks           least D of all i < N - 1; WeightWatcher's alpha (for N >= 20)
    alpha_peak         least D of those e_i <= 1.5 x, x the left edge of the fullest of 100 bins of
                       log10 e; what AlphaPruning's published numbers rest on
    alpha_peak_strict  least D of those 0.95 x <= e_i <= 1.5 x, as their paper means it

Zeros are dropped first. AlphaPruning's paper leaves e_i out of n, its code counts it; so do we.
Small alpha: heavy tail, well trained. Sources: Lu et al. 2024 (AlphaPruning, esd_utils.py),
WeightWatcher 0.7.7 (RMT_Util.py); definitions checked against both, code our own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A tail whose values agree to this share has no exponent but that of rounding and of stored digits.
_LEAST_LOG_RATIO = 1e-6
_BINS = 100
_PEAK_RANGE = (0.95, 1.5)
# Entries of the [B, candidates, N] table of distances that are held at a time: 32 MB.
_TABLE = 1 << 22
UNDEFINED = 0.0


class Metric(NamedTuple):
    """What a metric means to an allocator."""

    sign: int
    """+1: a matrix with a larger value is pruned more; -1: less."""
    meaning: str


# The sign of all is AlphaPruning's: whatever is larger is pruned more. There is evidence behind it
# for the shape metrics only (its paper finds scale metrics inferior).
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
}
TAILS = ("alpha_peak", "alpha_peak_strict", "alpha_mid", "alpha_ks")
_ON_ALPHA_KS = {"alpha_weighted", "log_alpha_norm"}


class Tail(NamedTuple):
    """Fitted tails of a batch of spectra."""

    alpha: Tensor
    """[B] exponents; UNDEFINED where no tail exists."""
    start: Tensor
    """[B] the tail's least eigenvalue."""
    distance: Tensor
    """[B] Kolmogorov distance of the fit, 0 to 1; 1 where no tail exists."""
    size: Tensor
    """[B] number of eigenvalues in the tail; 0 where no tail exists."""


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
        Every name of METRICS, and of the tail of alpha_peak `peak_start` (its least eigenvalue),
        `peak_distance` (Kolmogorov) and `peak_size`. Floats, always finite: where a value doesn't
        exist (no two distinct positive eigenvalues, for one) it is 0, which no exponent can be.

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


def measure_batch(eigenvalues: Tensor, metrics: Collection[str] = tuple(METRICS)) -> Spectra:
    """Measure many spectra of one length at once, on their device.

    Args:
        eigenvalues: [B, N] squared singular values, any order.
        metrics: the names of METRICS to compute.

    Raises:
        ValueError: a negative value or one that isn't finite; an unknown metric.

    Cost: the alphas but alpha_mid need N² / 2 distances a spectrum.
    """
    unknown = set(metrics) - set(METRICS)
    if unknown:
        raise ValueError(f"unknown metrics: {', '.join(sorted(unknown))}")
    e_BN = eigenvalues.double().sort(dim=1).values
    if not bool((e_BN.isfinite() & (e_BN >= 0)).all()):
        raise ValueError("eigenvalues must be finite and >= 0")
    wanted = set(metrics) | ({"alpha_ks"} if _ON_ALPHA_KS & set(metrics) else set())
    rank = (e_BN > 0).sum(1)
    tails = _fit_tails(e_BN, rank, [name for name in TAILS if name in wanted])
    raw = {name: tail.alpha for name, tail in tails.items()}
    raw |= _scales(e_BN, rank, raw.get("alpha_ks"))
    undefined = {name: ~raw[name].isfinite() for name in METRICS if name in metrics}
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


def _fit_tails(e_BN: Tensor, rank: Tensor, names: list[str]) -> dict[str, Tail]:
    if not names:
        return {}
    n_values = e_BN.shape[1]
    index_N = torch.arange(n_values, device=e_BN.device)
    n_N = (n_values - index_N).double()
    positive_BN = e_BN > 0
    log_BN = torch.where(positive_BN, e_BN, 1.0).log()
    log_ratio_BN = log_BN.flip(1).cumsum(1).flip(1) / n_N - log_BN  # mean ln(e_j / e_i) of a tail
    fits_BN = positive_BN & (log_ratio_BN > _LEAST_LOG_RATIO)
    alpha_BN = 1 + 1 / torch.where(fits_BN, log_ratio_BN, torch.nan)
    searched = [name for name in names if name != "alpha_mid"]
    middle_B = (n_values - rank + rank // 2).clamp(max=n_values - 1)
    if searched:
        distance_BN = _distances(log_BN, alpha_BN)
    tails = {}
    for name in names:
        if name == "alpha_mid":
            start_B = middle_B
            distance_B = _distance_at(log_BN, alpha_BN, start_B)
        else:
            chosen_BN = fits_BN & _candidates(name, e_BN, log_BN)
            distance_B, start_B = distance_BN.where(chosen_BN, torch.inf).min(dim=1)
        at = start_B[:, None]
        tails[name] = Tail(
            alpha_BN.gather(1, at)[:, 0].where(distance_B.isfinite(), torch.nan),
            e_BN.gather(1, at)[:, 0],
            distance_B,
            n_values - start_B,
        )
    return tails


def _candidates(name: str, e_BN: Tensor, log_BN: Tensor) -> Tensor:
    """Bool [B, N]: where the tail may start, among the starts that have an exponent."""
    positive_BN = e_BN > 0
    if name == "alpha_ks":
        return positive_BN
    lower, upper = _PEAK_RANGE
    x_B1 = _peak(e_BN, log_BN)
    chosen_BN = positive_BN & (e_BN <= upper * x_B1)
    if name == "alpha_peak":
        return chosen_BN
    # Bins wider than the range may leave it empty: then the peak's own first value is taken.
    above_BN = e_BN >= lower * x_B1
    chosen_BN = chosen_BN & above_BN
    first_BN = above_BN & (above_BN.cumsum(1) == 1)
    return torch.where(chosen_BN.any(1, keepdim=True), chosen_BN, first_BN)


def _peak(e_BN: Tensor, log_BN: Tensor) -> Tensor:
    """[B, 1]: left edge of the fullest of 100 equal bins of log e over the positive values."""
    positive_BN = e_BN > 0
    most_B1 = log_BN[:, -1:]
    least_B1 = log_BN.where(positive_BN, most_B1).amin(1, keepdim=True)
    width_B1 = (most_B1 - least_B1) / _BINS
    place_BN = ((log_BN - least_B1) / width_B1).nan_to_num(0.0).clamp(0, _BINS - 1).long()
    counts = torch.zeros(len(e_BN), _BINS, dtype=torch.int64, device=e_BN.device)
    counts.scatter_add_(1, place_BN, positive_BN.long())
    return (least_B1 + counts.argmax(1, keepdim=True) * width_B1).exp()


def _distances(log_BN: Tensor, alpha_BN: Tensor) -> Tensor:
    """[B, N] D_i for every start of the tail, in chunks of starts; NaN where alpha is."""
    batch, n_values = log_BN.shape
    distance_BN = torch.empty_like(log_BN)
    chunk = max(1, _TABLE // (batch * n_values))
    for left in range(0, n_values, chunk):
        starts = torch.arange(left, min(left + chunk, n_values), device=log_BN.device)
        distance_BN[:, starts] = _distance_table(
            log_BN[:, left:], log_BN[:, starts], alpha_BN[:, starts], starts - left
        )
    return distance_BN


def _distance_at(log_BN: Tensor, alpha_BN: Tensor, start_B: Tensor) -> Tensor:
    """[B] D of one start in each spectrum."""
    at = start_B[:, None]
    return _distance_table(log_BN, log_BN.gather(1, at), alpha_BN.gather(1, at), at)[:, 0]


def _distance_table(log_BN: Tensor, log_BC: Tensor, alpha_BC: Tensor, start: Tensor) -> Tensor:
    """[B, C] D of the tails that start at `start` ([C] or [B, C]), with values log_BC there."""
    n_values = log_BN.shape[1]
    step = torch.arange(n_values, device=log_BN.device) - start[..., None]
    empirical = step / (n_values - start[..., None]).double()
    # 1 - fitted = exp((1 - alpha) ln(e_j / e_i)); left of the tail the exponent would be positive.
    exponent = (log_BN[:, None] - log_BC[..., None]).mul_((1 - alpha_BC)[..., None])
    gap = exponent.exp_().add_(empirical).sub_(1.0).abs_()
    return gap.masked_fill_(step < 0, 0.0).amax(-1)
