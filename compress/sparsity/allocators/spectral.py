"""AlphaPruning and FARMS: shares from the shape of the weights' spectra; no calibration text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from compress.errors import RequestError
from compress.sparsity.allocators.ground import Ground, Measured, block_means
from compress.sparsity.allocators.maps import by_metric
from compress.spectra.cache import SpectraCache
from compress.spectra.farms import FarmsSettings
from compress.spectra.measure import SpectrumRow, measure_spectra
from compress.spectra.metrics import METRICS

PEAK_METRICS = {"alpha_peak", "alpha_peak_strict"}
PEAK_NEEDS = 200  # two eigenvalues a bin; below, the fullest bin is an accident


def measure_alpha(ground: Ground) -> Measured:
    """The metric asked for, of every matrix; a block has the unweighted mean of its own."""
    return _measured(ground, ground.settings.metric, None)


def measure_farms(ground: Ground) -> Measured:
    """FARMS' exponent: windows of one aspect ratio, so that a matrix's own has no say.

    Raises:
        RequestError: a window was asked for that no matrix is large enough for.
    """
    settings = ground.settings
    windows = FarmsSettings(settings.farms_window, settings.farms_aspect, settings.farms_grid)
    sides = [min(m.shape) for m in ground.matrices]
    asked = settings.farms_window != type(settings).farms_window
    if asked and windows.window > max(sides):
        raise RequestError(
            f"`--farms-window {windows.window}` is larger than every matrix: the largest has "
            f"{max(sides)} rows or columns",
            f"take {max(sides)} or less, or leave it out: the default is cut to fit",
        )
    return _measured(ground, "farms", windows)


def share_spectral(values: Sequence[float], ground: Ground) -> Tensor:
    """The linear map of the values to 1 - epsilon … 1 + epsilon."""
    settings = ground.settings
    sign = METRICS[settings.metric].sign if settings.rule == "alpha" else METRICS["farms"].sign
    if settings.metric_sign != "auto":
        sign = int(settings.metric_sign)
    return by_metric(
        values,
        ground.sizes,
        settings.share,
        epsilon=settings.epsilon,
        bounds=ground.bounds,
        sign=sign,
    )


def _measured(ground: Ground, metric: str, windows: FarmsSettings | None) -> Measured:
    wanted = {m.name for m in ground.matrices}
    cache = SpectraCache()
    rows = measure_spectra(
        ground.source,
        ground.anatomy,
        metrics=[metric],
        device=ground.device,
        exact=ground.settings.esd_exact,
        precise=True,  # the last digits decide which matrix gets the last zeros
        farms=windows,
        progress=ground.progress,
        cache=cache,
        team=ground.team,
    )
    rows = [row for row in rows if row.module in wanted]
    values = {row.module: row.metrics[metric] for row in rows}
    made = {"matrix": values, "block": block_means(values, ground.matrices)}
    kept = {grain: made[grain] for grain in ground.grains}
    return Measured(kept, (*_warnings(rows, metric), *cache.remarks()), column=metric)


def _warnings(rows: Sequence[SpectrumRow], metric: str) -> list[str]:
    warnings = [f"{row.module}: {row.warning}" for row in rows if row.warning]
    noted: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:  # such as a window that was cut to fit
            noted.setdefault(note, []).append(row.module)
    for note, names in noted.items():
        more = f" and in {len(names) - 1} other matrices" if len(names) > 1 else ""
        warnings.append(f"{note} in `{names[0]}`{more}")
    small = [row for row in rows if min(row.shape) < PEAK_NEEDS]
    if small and metric in PEAK_METRICS:
        warnings.append(
            f"{metric} rests on the peak of a histogram of 100 bins, and {len(small)} of "
            f"{len(rows)} matrices have fewer than {PEAK_NEEDS} eigenvalues: their values are "
            "mostly noise; `--metric alpha_mid` needs no histogram"
        )
    return warnings
