"""The same matrices measured by WeightWatcher's `analyze`, for who wants its numbers."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import statistics
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.checkpoints.anatomy import Anatomy, Matrix
from compress.checkpoints.source import Source
from compress.errors import RequestError
from compress.progress import Progress, silent
from compress.spectra.measure import read_blocks
from compress.spectra.metrics import METRICS
from compress.spectra.rows import Draft, SpectrumRow, rows_of_drafts

# Our name to WeightWatcher's column; metrics that aren't here it doesn't have.
COLUMNS = {
    "alpha_ks": "alpha",
    "stable_rank": "stable_rank",
    "entropy": "entropy",
    "norm": "norm",
    "log_norm": "log_norm",
    "spectral_norm": "spectral_norm",
    "log_spectral_norm": "log_spectral_norm",
    "alpha_weighted": "alpha_weighted",
    "log_alpha_norm": "log_alpha_norm",
    "rand_distance": "rand_distance",
    "mp_softrank": "mp_softrank",
    "sigma_mp": "sigma_mp",
    "bulk_max": "bulk_max",
    "num_spikes": "num_spikes",
}
PLAIN = tuple(name for name in COLUMNS if METRICS[name].needs == "spectrum")
_SKIPPED = "skipped by WeightWatcher"


def watched_rows(
    source: Source,
    anatomy: Anatomy,
    matrices: Sequence[Matrix],
    *,
    metrics: Collection[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[SpectrumRow]:
    """Rows as `measure_spectra` returns them, with WeightWatcher's values.

    It is handed one matrix at a time, under names of ours, so each row is that of its module
    whatever it skips (fewer than 10 or more than 15 000 eigenvalues, a side above 50 000), and
    progress is heard of after every matrix. A skipped one gets the median of the others and a
    warning that says so.

    Its alpha is alpha_ks where a matrix has 20 eigenvalues or more; below, it fits another way (a
    bias-corrected exponent, and the start of the tail by another criterion). Its randomize and
    mp_fit each scan 195 scales for every matrix and estimate the density anew for each: 0.3 to 0.7
    CPU seconds a matrix and option however small it is, 30 times the rest at 64 x 64.

    Raises:
        RequestError: WeightWatcher isn't installed, or doesn't have one of the metrics.
    """
    names = tuple(PLAIN if metrics is None else metrics)
    strange = [name for name in names if name not in COLUMNS]
    if strange:
        raise RequestError(
            f"`--engine weightwatcher` has no `{strange[0]}`", f"it has {', '.join(COLUMNS)}"
        )
    watcher = _import_watcher()
    places: list[tuple[Matrix, float, tuple[str, ...]]] = []
    drafts: list[Draft] = []
    slow = _slow_part(names)
    progress("spectra", 0, len(matrices), slow)
    for block in read_blocks(source, anatomy, matrices):
        for matrix, view, parts in block:
            found = _analyze(watcher, [(matrix.name, part) for part in parts], names, seed)
            drafts.append(_merged(found, names))
            zeros = view.numel() - int(view.count_nonzero())
            places.append((matrix, zeros / matrix.numel, ()))
            note = f"{matrix.name}; {slow}" if slow else matrix.name
            progress("spectra", len(drafts), len(matrices), note)
    return rows_of_drafts(places, drafts, names)


def _slow_part(names: Sequence[str]) -> str:
    """What a reader of the progress waits for; empty where WeightWatcher is quick."""
    options = {"weight": "randomize", "shape": "mp_fit"}
    used = [option for need, option in options.items() if need in {METRICS[n].needs for n in names}]
    return f"WeightWatcher's {' and '.join(used)}, about 1 s a matrix" if used else ""


def _import_watcher() -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import weightwatcher
    except ImportError as error:
        raise RequestError(
            "`--engine weightwatcher` needs WeightWatcher, which isn't installed",
            "pip install 'weightwatcher>=0.7.5'",
        ) from error
    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    return weightwatcher


def _analyze(
    watcher: Any, weights: Sequence[tuple[str, Tensor]], names: Sequence[str], seed: int
) -> list[dict[str, float] | None]:
    """WeightWatcher's values of each weight [out, in]; None for one that it skipped."""
    model = nn.Module()
    for i, (name, weight) in enumerate(weights):
        if not bool(weight.isfinite().all()):
            raise RequestError(f"`{name}` holds NaN or Inf", "repair or re-download the model")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
        model.add_module(f"part{i}", linear)
    needs = {METRICS[metric].needs for metric in names}
    state = np.random.get_state()  # its shuffle draws from the global one
    np.random.seed(seed)
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            details = watcher.WeightWatcher(model=model).analyze(
                randomize="rand_distance" in names, mp_fit="shape" in needs
            )
    finally:
        np.random.set_state(state)
    rows = {} if "name" not in details else details.set_index("name").to_dict("index")
    return [rows.get(f"part{i}") for i in range(len(weights))]


def _merged(parts: Sequence[dict[str, float] | None], names: Sequence[str]) -> Draft:
    """The mean of a fused matrix's parts."""
    values: dict[str, float | None] = {}
    for name in names:
        known = [v for part in parts if part is not None and (v := _value(part, name)) is not None]
        values[name] = statistics.fmean(known) if known else None
    oddity = _SKIPPED if None in parts else "no value of WeightWatcher"
    return Draft(values, rank=0, full=0, oddity=oddity)


def _value(part: dict[str, float], name: str) -> float | None:
    """One value of a row; None for one that failed, where WeightWatcher has -1 or nothing."""
    marker = "alpha" if "alpha" in name else COLUMNS[name]
    value = part.get(COLUMNS[name], math.nan)
    failed = part.get(marker, math.nan) == -1 or not math.isfinite(value)
    return None if failed else float(value)
