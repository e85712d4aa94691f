"""Whether eigenvalues in single precision settle a metric, or must be found in double.

Each eigenvalue e_i has a bound d_i of its error; b_i = d_i / e_i. To first order, with n = N - i
values in the tail and the mean error of their logarithms m_i <= (b_i / 3) sqrt(N / n) (the bound
allows each six times the root mean square u F of all; here twice that is taken for their mean):

    error of alpha_i  <= (alpha_i - 1)² (b_i + m_i)
    error of D_i      <= (alpha_i - 1) (2 b_i + (b_i + m_i) / e)       (x e^-x <= 1/e)

An exponent is settled where its own error is within TOLERANCE and no other start whose D may be as
small has another exponent. The sets of starts that the peaks allow are settled too: their
histogram's fullest bin is the fullest whatever the errors, and whoever lies at an edge of the range
may be in or out.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from compress.numerics.eigen import single_error
from compress.spectra.tails import BINS, PEAK_RANGE, TAILS, exponents, race

TOLERANCE = 1e-4
# Metrics that hang on the least eigenvalues, by the rank or by the bins that these span.
BOTTOM = frozenset({"alpha_peak", "alpha_peak_strict", "alpha_mid", "entropy"})


class Errors(NamedTuple):
    """Bounds of errors, [B, N] each."""

    log: Tensor
    """b: of the logarithm of an eigenvalue; at most 1/2, where nothing is known."""
    alpha: Tensor
    distance: Tensor


def settled(e_BN: Tensor, metrics: Collection[str]) -> Tensor:
    """Bool [B]: which spectra tell all of `metrics` as well as in double precision, to TOLERANCE.

    Args:
        e_BN: [B, N] float64, ascending, by `gram_eigenvalues(..., single=True)`.
        metrics: names of DEFAULT_METRICS. What isn't an exponent is right to 1e-6 of itself.
    """
    bound_BN = single_error(e_BN)
    known_B = bound_BN.isfinite().all(1)
    if BOTTOM & set(metrics):
        known_B &= (e_BN > 2 * bound_BN).all(1)
    log_BN, alpha_BN = exponents(e_BN)
    errors = _errors(e_BN, bound_BN, alpha_BN)
    wanted = [name for name in TAILS if name in metrics]
    if {"alpha_weighted", "log_alpha_norm"} & set(metrics) and "alpha_ks" not in wanted:
        wanted.append("alpha_ks")
    sets: dict[str, tuple[Tensor, Tensor]] = {}
    for name in wanted:
        if name == "alpha_mid":
            middle = e_BN.shape[1] - (e_BN.shape[1] + 1) // 2
            known_B &= errors.alpha[:, middle] <= TOLERANCE
        elif name == "alpha_ks":
            sets[name] = (alpha_BN.isfinite(), alpha_BN.isfinite())
        else:
            known, sure, maybe = _peak_sets(name, log_BN, alpha_BN, errors.log)
            known_B &= known
            sets[name] = (sure, maybe)
    if sets:
        possible = {name: both[1] for name, both in sets.items()}
        distance_BN = race(log_BN, alpha_BN, possible, errors.distance)
        for sure_BN, maybe_BN in sets.values():
            known_B &= _one_exponent(alpha_BN, distance_BN, errors, sure_BN, maybe_BN)
    return known_B


def _errors(e_BN: Tensor, bound_BN: Tensor, alpha_BN: Tensor) -> Errors:
    n_values = e_BN.shape[1]
    n_N = torch.arange(n_values, 0, -1, device=e_BN.device).double()
    log_BN = (bound_BN / e_BN).clamp(max=0.5)
    mean_BN = log_BN / 3 * (n_values / n_N).sqrt()
    steep_BN = alpha_BN - 1
    return Errors(
        log_BN,
        steep_BN.square() * (log_BN + mean_BN),
        steep_BN * (2 * log_BN + (log_BN + mean_BN) / math.e),
    )


def _one_exponent(
    alpha_BN: Tensor, distance_BN: Tensor, errors: Errors, sure_BN: Tensor, maybe_BN: Tensor
) -> Tensor:
    """Bool [B]: whether all starts that may be the best have one exponent, to TOLERANCE."""
    best_B1 = distance_BN.where(sure_BN, torch.inf).argmin(1, keepdim=True)
    limit_B1 = (distance_BN + errors.distance).gather(1, best_B1)
    rivals_BN = maybe_BN & (distance_BN - errors.distance <= limit_B1)
    away_BN = (alpha_BN - alpha_BN.gather(1, best_B1)).abs() + errors.alpha
    return sure_BN.any(1) & (away_BN.where(rivals_BN, 0.0) <= TOLERANCE).all(1)


def _peak_sets(
    name: str, log_BN: Tensor, alpha_BN: Tensor, b_BN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[B] whether the fullest bin is known; [B, N] the starts surely and possibly allowed."""
    least_B1, span_B1 = log_BN[:, :1], log_BN[:, -1:] - log_BN[:, :1]
    stretch_B1 = b_BN[:, :1] + b_BN[:, -1:]
    place_BN = (log_BN - least_B1) / span_B1 * BINS
    off_BN = (b_BN + b_BN[:, :1] + place_BN / BINS * stretch_B1) / span_B1 * BINS
    first_BN = (place_BN - off_BN).nan_to_num(0.0).clamp(0, BINS - 1).long()
    last_BN = (place_BN + off_BN).nan_to_num(0.0).clamp(0, BINS - 1).long()
    fewest, most = (torch.zeros(len(log_BN), BINS, dtype=torch.int64) for _ in range(2))
    fixed_BN = (first_BN == last_BN).long()
    fewest.scatter_add_(1, first_BN, fixed_BN)
    most.scatter_add_(1, first_BN, torch.ones_like(first_BN))
    most.scatter_add_(1, last_BN, 1 - fixed_BN)
    full_B1 = fewest.argmax(1, keepdim=True)
    # The first of equals is the fullest: those before it must have fewer.
    before = torch.arange(BINS) < full_B1
    other = torch.arange(BINS) != full_B1
    rivals = (most + before.long()).where(other, 0)
    known_B = (rivals.amax(1) <= fewest.gather(1, full_B1)[:, 0]) & (last_BN - first_BN < 2).all(1)
    x_B1 = least_B1 + full_B1 / BINS * span_B1
    off_x_BN = b_BN + b_BN[:, :1] + full_B1 / BINS * stretch_B1
    lower, upper = (math.log(end) for end in PEAK_RANGE)
    inside_BN = x_B1 + upper - log_BN  # positive where allowed
    if name == "alpha_peak_strict":
        inside_BN = torch.minimum(inside_BN, log_BN - x_B1 - lower)
    fits_BN = alpha_BN.isfinite()
    return known_B, fits_BN & (inside_BN > off_x_BN), fits_BN & (inside_BN >= -off_x_BN)
