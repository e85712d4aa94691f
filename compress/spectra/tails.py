"""Power-law tails of spectra: where each begins, its exponent, and how well it fits.

Letters: B spectra in a batch, N eigenvalues each, ascending: e_0 <= … <= e_{N-1}. P candidate
starts, C values of a tail. A tail that starts at i has n = N - i values (e_i counted), the exponent

    alpha_i = 1 + n / (sum_{j>=i} ln e_j - n ln e_i)                      (Hill)

and the Kolmogorov distance D_i = max_{j>=i} |1 - (e_j / e_i)^(1 - alpha_i) - (j - i) / n|. The
variants of alpha differ in the start of the tail:

    alpha_mid          i = int(N / 2), nothing searched
    alpha_ks           least D of all i < N - 1; WeightWatcher's alpha (for N >= 20)
    alpha_peak         least D of those e_i <= 1.5 x, x the left edge of the fullest of 100 bins of
                       log10 e; what AlphaPruning's published numbers rest on
    alpha_peak_strict  least D of those 0.95 x <= e_i <= 1.5 x, as their paper means it

Zeros are dropped first. AlphaPruning's paper leaves e_i out of n, its code counts it; so do we.
Sources: Lu et al. 2024 (AlphaPruning, esd_utils.py), WeightWatcher 0.7.7 (WW_powerlaw.py);
definitions checked against both, code our own.

All D would be N² / 2 powers. But a maximum over some values of a tail is a lower bound of D, and a
start whose bound exceeds the D of another can't be the least. So a few values of every tail are
looked at first, then more of those tails that are still in the race: the same start and the same D
as by the full table, for about a tenth of the powers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TAILS = ("alpha_peak", "alpha_peak_strict", "alpha_mid", "alpha_ks")
# A tail whose values agree to this share has no exponent but that of rounding and of stored digits.
_LEAST_LOG_RATIO = 1e-6
BINS = 100
PEAK_RANGE = (0.95, 1.5)
# Values of each tail that the first round looks at, and by how much each next round looks at more.
_FIRST_LOOK = 24
_NEXT_LOOK = 8
# Pooled spectra (FARMS) have hundreds of thousands of values, and neighbouring starts differ by
# next to nothing: beyond LARGE values, at most STARTS evenly spaced candidates are tried, and each
# at PLACES of its values. Its exponent still rests on all of them.
_LARGE, _STARTS, _PLACES = 1 << 14, 1 << 10, 1 << 12
# Rounding between two ways to the same distance; a start within it stays in the race.
_SLACK = 1e-9
# Entries of a [P, C] table of distances that are held at a time: 8 MB, so that it stays in cache.
_TABLE = 1 << 20


class Tail(NamedTuple):
    """Fitted tails of a batch of spectra."""

    alpha: Tensor
    """[B] exponents; NaN where no tail exists."""
    start: Tensor
    """[B] the tail's least eigenvalue."""
    distance: Tensor
    """[B] Kolmogorov distance of the fit, 0 to 1; infinite where no tail exists."""
    size: Tensor
    """[B] number of eigenvalues in the tail."""


def fit_tails(e_BN: Tensor, names: list[str]) -> dict[str, Tail]:
    """Fit the tails that some variants of alpha mean.

    Args:
        e_BN: [B, N] float64 >= 0, ascending in each row.
        names: of TAILS.
    """
    if not names:
        return {}
    n_values = e_BN.shape[1]
    rank = (e_BN > 0).sum(1)
    log_BN, alpha_BN = exponents(e_BN)
    fits_BN = alpha_BN.isfinite()
    chosen = {n: fits_BN & _candidates(n, e_BN, log_BN) for n in names if n != "alpha_mid"}
    if n_values > _LARGE:
        chosen = {name: _thinned(set_BN) for name, set_BN in chosen.items()}
    found = _search(log_BN, alpha_BN, chosen) if chosen else {}
    if "alpha_mid" in names:
        middle_B = (n_values - rank + rank // 2).clamp(max=n_values - 1)
        found["alpha_mid"] = _exact(log_BN, alpha_BN, middle_B), middle_B
    tails = {}
    for name in names:
        distance_B, start_B = found[name]
        at = start_B[:, None]
        tails[name] = Tail(
            alpha_BN.gather(1, at)[:, 0].where(distance_B.isfinite(), torch.nan),
            e_BN.gather(1, at)[:, 0],
            distance_B,
            n_values - start_B,
        )
    return tails


def exponents(e_BN: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N] ln e, 0 for a zero; [B, N] the exponent of the tail from each value, or NaN."""
    positive_BN = e_BN > 0
    n_N = torch.arange(e_BN.shape[1], 0, -1, device=e_BN.device).double()
    log_BN = torch.where(positive_BN, e_BN, 1.0).log()
    log_ratio_BN = log_BN.flip(1).cumsum(1).flip(1) / n_N - log_BN  # mean ln(e_j / e_i) of a tail
    fits_BN = positive_BN & (log_ratio_BN > _LEAST_LOG_RATIO)
    return log_BN, 1 + 1 / torch.where(fits_BN, log_ratio_BN, torch.nan)


def _candidates(name: str, e_BN: Tensor, log_BN: Tensor) -> Tensor:
    """Bool [B, N]: where the tail may start, among the starts that have an exponent."""
    positive_BN = e_BN > 0
    if name == "alpha_ks":
        return positive_BN
    lower, upper = PEAK_RANGE
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
    width_B1 = (most_B1 - least_B1) / BINS
    place_BN = ((log_BN - least_B1) / width_B1).nan_to_num(0.0).clamp(0, BINS - 1).long()
    counts = torch.zeros(len(e_BN), BINS, dtype=torch.int64, device=e_BN.device)
    counts.scatter_add_(1, place_BN, positive_BN.long())
    return (least_B1 + counts.argmax(1, keepdim=True) * width_B1).exp()


def _thinned(chosen_BN: Tensor) -> Tensor:
    """At most `_STARTS` of the candidates of each row, the first among them."""
    order_BN = chosen_BN.cumsum(1) - 1
    stride_B1 = (chosen_BN.sum(1, keepdim=True) + _STARTS - 1) // _STARTS
    return chosen_BN & (order_BN % stride_B1.clamp(min=1) == 0)


def _search(
    log_BN: Tensor, alpha_BN: Tensor, chosen: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each set of candidate starts, [B] the least D and [B] its start, the first of equals.

    D is infinite where a set has none.
    """
    slack_BN = torch.full_like(log_BN, _SLACK / 2)
    bound_BN = race(log_BN, alpha_BN, chosen, slack_BN)
    least = {name: bound_BN.where(set_BN, torch.inf).min(1) for name, set_BN in chosen.items()}
    return {name: (found.values, found.indices) for name, found in least.items()}


def race(log_BN: Tensor, alpha_BN: Tensor, chosen: dict[str, Tensor], slack_BN: Tensor) -> Tensor:
    """[B, N] D of every start that may be the least of a set; of others a lower bound, or infinity.

    A start drops out once its bound less its slack exceeds the D of another plus that one's slack.
    """
    most = _places(log_BN)
    bound_BN = torch.full_like(log_BN, torch.inf)
    racing_BN = torch.stack(list(chosen.values())).any(0)
    values = min(_FIRST_LOOK, most)
    while True:
        row, start = racing_BN.nonzero(as_tuple=True)
        bound_BN[row, start] = _distances(log_BN, alpha_BN, row, start, values)
        if values == most or not len(row):
            break
        racing_BN = torch.zeros_like(racing_BN)
        for set_BN in chosen.values():
            best_B = bound_BN.where(set_BN, torch.inf).argmin(1)
            limit_B = _exact(log_BN, alpha_BN, best_B)  # NaN where the set is empty: none races
            limit_B = limit_B + slack_BN.gather(1, best_B[:, None])[:, 0]
            racing_BN |= set_BN & (bound_BN - slack_BN <= limit_B[:, None])
        values = min(values * _NEXT_LOOK, most)
    return bound_BN


def _places(log_BN: Tensor) -> int:
    """At how many of a tail's values its D is taken: all, up to a size that only pools have."""
    return log_BN.shape[1] if log_BN.shape[1] <= _LARGE else _PLACES


def _exact(log_BN: Tensor, alpha_BN: Tensor, start_B: Tensor) -> Tensor:
    """[B] D of one start in each spectrum; NaN where it has no exponent."""
    row_B = torch.arange(len(start_B), device=start_B.device)
    return _distances(log_BN, alpha_BN, row_B, start_B, _places(log_BN))


def _distances(
    log_BN: Tensor, alpha_BN: Tensor, row_P: Tensor, start_P: Tensor, values: int
) -> Tensor:
    """[P] D of the tails that start at `start_P` in the spectra `row_P`.

    Taken over `values` evenly spaced places of each tail, its ends among them: D itself where the
    tail has no more values than that, else a lower bound.
    """
    n_values = log_BN.shape[1]
    flat = log_BN.reshape(-1)
    place_C = torch.arange(values, device=log_BN.device)
    out = torch.empty(len(row_P), dtype=log_BN.dtype, device=log_BN.device)
    for left in range(0, len(row_P), max(1, _TABLE // values)):
        at = slice(left, left + max(1, _TABLE // values))
        row, start = row_P[at, None], start_P[at, None]
        size = n_values - start
        if values < n_values:
            step = (size - 1) * place_C // (values - 1)
        else:
            step = torch.minimum(place_C, size - 1)
        origin = row * n_values + start
        # 1 - fitted = exp((1 - alpha) ln(e_j / e_i))
        exponent = (flat[origin + step] - flat[origin]).mul_(1 - alpha_BN[row, start])
        gap = exponent.exp_().add_(step / size).sub_(1.0).abs_()
        out[at] = gap.amax(1)
    return out
