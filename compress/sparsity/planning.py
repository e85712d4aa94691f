"""From a model and settings to a plan: which matrices lose how many weights, to the last one."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compress.checkpoints.anatomy import Anatomy, Matrix
from compress.checkpoints.plan import Plan
from compress.checkpoints.source import Source
from compress.errors import RequestError
from compress.numerics.allocation import to_counts
from compress.progress import Progress
from compress.sparsity.allocators import by_metric, by_outliers
from compress.sparsity.patterns import (
    mixed_bounds,
    mixed_rows,
    pattern_rows,
    row_pattern,
    zeros_row,
)
from compress.sparsity.pruner import Target
from compress.sparsity.settings import AlphaPruneSettings
from compress.spectra.measure import measure_spectra
from compress.spectra.metrics import METRICS

COMMAND = "alpha-prune"
PEAK_METRICS = {"alpha_peak", "alpha_peak_strict"}
PEAK_NEEDS = 200  # two eigenvalues a bin; below, the fullest bin is an accident


@dataclass(frozen=True)
class Measured:
    """What an allocation rests on.

    Attributes:
        values: matrix name to its metric (alpha) or its block's share of outliers (owl); empty
            for uniform.
        warnings: what was odd about a matrix, for the receipt.
    """

    values: Mapping[str, float]
    warnings: tuple[str, ...] = ()


def choose_matrices(anatomy: Anatomy, skip: Sequence[str]) -> list[Matrix]:
    """The matrices that take part: all of the blocks, less those that a glob names.

    Raises:
        RequestError: a glob that matches nothing, or nothing is left.
    """
    names = [m.name for m in anatomy.matrices]
    for glob in skip:
        if not fnmatch.filter(names, glob):
            raise RequestError(
                f"`--skip {glob}` matches no matrix of this model",
                f"names look like `{names[0]}`; `compress inspect MODEL` lists them",
            )
    chosen = [m for m in anatomy.matrices if not any(fnmatch.fnmatch(m.name, g) for g in skip)]
    if not chosen:
        raise RequestError("`--skip` leaves no matrix to prune")
    return chosen


def measure(
    source: Source,
    anatomy: Anatomy,
    matrices: Sequence[Matrix],
    settings: AlphaPruneSettings,
    outliers: Callable[[set[str]], Mapping[str, float]],
    device: str,
    progress: Progress,
) -> Measured:
    """Measure what the allocation needs, and nothing where it needs nothing.

    Args:
        outliers: makes OWL's share of outliers by block name, given the matrices that count; a
            walk over the calibration set that is only made when asked for.
    """
    if settings.rule == "owl":
        shares = outliers({m.name for m in matrices})
        return Measured({m.name: shares[m.block] for m in matrices if m.block in shares})
    if settings.rule == "uniform":
        return Measured({})
    wanted = {m.name for m in matrices}
    rows = measure_spectra(
        source,
        anatomy,
        metrics=[settings.metric],
        device=device,
        exact=settings.esd_exact,
        progress=progress,
    )
    rows = [row for row in rows if row.module in wanted]
    values = {row.module: row.metrics[settings.metric] for row in rows}
    if settings.granularity == "block":
        values = block_means(values, matrices)
    warnings = [f"{row.module}: {row.warning}" for row in rows if row.warning]
    small = [row for row in rows if min(row.shape) < PEAK_NEEDS]
    if small and settings.metric in PEAK_METRICS:
        warnings.append(
            f"{settings.metric} rests on the peak of a histogram of 100 bins, and {len(small)} of "
            f"{len(rows)} matrices have fewer than {PEAK_NEEDS} eigenvalues: their values are "
            "mostly noise; `--metric alpha_mid` needs no histogram"
        )
    return Measured(values, tuple(warnings))


def block_means(values: Mapping[str, float], matrices: Sequence[Matrix]) -> dict[str, float]:
    """Give every matrix the unweighted mean of its block."""
    blocks: dict[str, list[float]] = {}
    for matrix in matrices:
        blocks.setdefault(matrix.block, []).append(values[matrix.name])
    means = {name: sum(v) / len(v) for name, v in blocks.items()}
    return {m.name: means[m.block] for m in matrices}


def make_plan(
    matrices: Sequence[Matrix], measured: Measured, settings: AlphaPruneSettings, digest: str
) -> Plan:
    """Turn measurements into exact counts of zeros.

    Raises:
        RequestError: the sparsity can't be reached within the bounds (the range is named), or a
            pattern doesn't divide a matrix's width.
    """
    if settings.nm is not None:
        rows = pattern_rows(matrices, *settings.nm)
    else:
        rows = _share_rows(matrices, measured, settings)
    options = {k: v for k, v in settings.as_dict().items() if k in _PLAN_OPTIONS}
    options |= {"sparsity": settings.share, "allocation": settings.rule}
    if settings.mixed is not None:
        rows = mixed_rows(rows, matrices, settings.mixed, settings.share, _bounds(settings))
        options["reached"] = sum(r["zeros"] for r in rows) / sum(r["size"] for r in rows)
    return Plan(COMMAND, digest, rows, options)


_PLAN_OPTIONS = {
    "allocation", "metric", "epsilon", "granularity", "pattern", "min_sparsity", "max_sparsity",
    "owl_multiple", "owl_spread",
}  # fmt: skip


def _bounds(settings: AlphaPruneSettings) -> tuple[float, float]:
    bounds = settings.min_sparsity, settings.max_sparsity
    return bounds if settings.mixed is None else mixed_bounds(settings.mixed, bounds)


def _share_rows(
    matrices: Sequence[Matrix], measured: Measured, settings: AlphaPruneSettings
) -> list[dict[str, Any]]:
    sizes = [m.shape[0] * m.shape[1] for m in matrices]
    bounds = _bounds(settings)
    values = [measured.values.get(m.name, 0.0) for m in matrices]
    try:
        if settings.rule == "owl":
            shares = by_outliers(
                values, sizes, settings.share, spread=settings.owl_spread, bounds=bounds
            )
        else:
            # Uniform is the same map without a spread: equal ratios, the same bounds and rounding.
            sign = METRICS[settings.metric].sign if settings.rule == "alpha" else 1
            shares = by_metric(
                values, sizes, settings.share, epsilon=settings.epsilon, bounds=bounds, sign=sign
            )
        counts = to_counts(shares, torch.tensor(sizes), settings.share)
    except ValueError as error:
        raise RequestError(
            f"`--sparsity {settings.share:g}` can't be reached: {error}",
            "change --sparsity, --min-sparsity, --max-sparsity or --epsilon",
        ) from error
    rows = []
    for matrix, count in zip(matrices, counts.tolist()):
        row = zeros_row(matrix, count)
        if matrix.name in measured.values:
            row["outliers" if settings.rule == "owl" else settings.metric] = round(
                measured.values[matrix.name], 6
            )
        rows.append(row)
    return rows


def targets(plan: Plan, anatomy: Anatomy) -> dict[str, Target]:
    """Check the rows of a plan against the matrices, and turn them into the pruner's targets.

    Raises:
        RequestError: a row of another kind, or a count that its matrix can't have.
    """
    out = {}
    for row in plan.rows:
        name, kind, zeros = row["module"], row["kind"], row.get("zeros")
        matrix = anatomy.matrix(name)
        size = matrix.shape[0] * matrix.shape[1]
        if kind != "zeros":
            raise RequestError(f"the plan's row for `{name}` has kind `{kind}`, not `zeros`")
        if not isinstance(zeros, int) or not 0 <= zeros <= size:
            raise RequestError(
                f"the plan's row for `{name}` asks for {zeros!r} zeros of {size} weights"
            )
        nm = row_pattern(row["pattern"]) if row.get("pattern") else None
        if nm is not None and (matrix.shape[1] % nm[1] or zeros != size // nm[1] * (nm[1] - nm[0])):
            raise RequestError(
                f"the plan's row for `{name}`: {zeros} zeros of {matrix.shape[0]} x "
                f"{matrix.shape[1]} aren't the pattern {row['pattern']}"
            )
        out[name] = Target(zeros, nm)
    return out
