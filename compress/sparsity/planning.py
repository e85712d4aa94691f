"""From a model and settings to a plan: which matrices lose how many weights, to the last one."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Anatomy, Matrix
from compress.checkpoints.plan import Plan
from compress.checkpoints.source import Source
from compress.errors import RequestError
from compress.numerics.allocation import to_counts
from compress.sparsity.allocators.ground import Ground, Measured, block_shares
from compress.sparsity.allocators.maps import by_line, shifted, steepest
from compress.sparsity.allocators.table import ALLOCATORS, OPTIONS, shares_of, shown_values
from compress.sparsity.patterns import (
    mixed_bounds,
    mixed_rows,
    pattern_rows,
    row_pattern,
    zeros_row,
)
from compress.sparsity.pruner import TRIM, Target
from compress.sparsity.settings import AlphaPruneSettings

COMMAND = "alpha-prune"


def choose_matrices(anatomy: Anatomy, skip: Sequence[str]) -> list[Matrix]:
    """The matrices that take part: all of the blocks, less those that a glob names.

    Raises:
        RequestError: there is no linear layer, a glob that matches nothing, or nothing is left.
    """
    names = [m.name for m in anatomy.matrices]
    if not names:
        reasons = sorted({reason for block in anatomy.blocks for _, reason in block.skipped})
        raise RequestError(
            f"the model's {len(anatomy.blocks)} blocks hold no linear layer to prune, only: "
            f"{', '.join(reasons) or 'other parameters'}",
            "docs/families.md lists the model types that can be pruned",
        )
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


def ground_of(
    source: Source,
    anatomy: Anatomy,
    matrices: Sequence[Matrix],
    settings: AlphaPruneSettings,
    **given: Any,
) -> Ground:
    """What the allocation may rest on; `given` are further fields of Ground."""

    def pruned(shares: Tensor) -> dict[str, Target]:
        plan = Plan(COMMAND, "", _rows(matrices, shares, {}, "", settings))
        return targets(plan, anatomy)

    return Ground(source, anatomy, matrices, settings, _bounds(settings), targets=pruned, **given)


def with_settings(ground: Ground, settings: AlphaPruneSettings) -> Ground:
    """The same ground for an allocation by other settings."""
    kept = ("batches", "held_out", "device", "progress", "team")
    given = {name: getattr(ground, name) for name in kept}
    return ground_of(ground.source, ground.anatomy, ground.matrices, settings, **given)


def measure(ground: Ground) -> Measured:
    """Measure what the allocation needs, and nothing where it needs nothing.

    Raises:
        RequestError: the sparsity is outside the bounds, found before anything is measured.
    """
    if ground.settings.nm is not None:
        return Measured()
    _reached(lambda: shifted([0.0], [1], ground.settings.share, bounds=ground.bounds), ground)
    return ALLOCATORS[ground.settings.rule].measure(ground)


def make_plan(ground: Ground, measured: Measured, digest: str) -> Plan:
    """Turn measurements into exact counts of zeros.

    Raises:
        RequestError: the sparsity can't be reached within the bounds (the range is named), or a
            pattern doesn't divide a matrix's width.
    """
    settings, matrices = ground.settings, ground.matrices
    options = plan_options(settings)
    if settings.nm is not None:
        return Plan(COMMAND, digest, pattern_rows(matrices, *settings.nm), options)
    shares = _reached(lambda: shares_of(measured, ground), ground)
    rows = _rows(matrices, shares, shown_values(measured), measured.column, settings)
    if settings.mixed is not None:
        options["reached"] = sum(r["zeros"] for r in rows) / sum(r["size"] for r in rows)
    if settings.trims:
        options["rows"] = TRIM
    if measured.record:
        options["search"] = dict(measured.record)
    return Plan(COMMAND, digest, rows, options)


def plan_options(settings: AlphaPruneSettings) -> dict[str, Any]:
    """The settings that shaped a plan: those of every allocation and those of its own."""
    acting = {"pattern", "min_sparsity", "max_sparsity", *ALLOCATORS[settings.rule].options}
    options = {k: v for k, v in settings.as_dict().items() if k in acting}
    named = {"sparsity": settings.share, "allocation": settings.rule, "granularity": settings.grain}
    return options | named


def _bounds(settings: AlphaPruneSettings) -> tuple[float, float]:
    bounds = settings.min_sparsity, settings.max_sparsity
    return bounds if settings.mixed is None else mixed_bounds(settings.mixed, bounds)


def _reached(make: Callable[[], Tensor], ground: Ground) -> Tensor:
    try:
        return make()
    except ValueError as error:
        raise RequestError(
            f"`--sparsity {ground.settings.share:g}` can't be reached: {error}",
            "change --sparsity, --min-sparsity or --max-sparsity",
        ) from error


def _rows(
    matrices: Sequence[Matrix],
    shares: Tensor,
    values: Mapping[str, float],
    column: str,
    settings: AlphaPruneSettings,
) -> list[dict[str, Any]]:
    """Rows of a plan for shares [n], with the values that they rest on in a column."""
    sizes = torch.tensor([m.numel for m in matrices])
    counts = to_counts(shares, sizes, settings.share)
    rows = []
    for matrix, count in zip(matrices, counts.tolist()):
        row = zeros_row(matrix, count)
        if settings.trims and count:
            row["rows"] = TRIM
        if column and matrix.name in values:
            row[column] = float(f"{values[matrix.name]:.7g}")
        rows.append(row)
    if settings.mixed is None:
        return rows
    return mixed_rows(rows, matrices, settings.mixed, settings.share, _bounds(settings))


def beside(
    plan: Plan, anatomy: Anatomy, rivals: Mapping[str, Plan] | None = None
) -> dict[str, Any]:
    """Each block's share in a plan, and what other allocations give it.

    Those are uniform and atp's straight line over the blocks, with half the steepest slope that
    the bounds allow, since a search costs prunings of its own; or the rivals of the run.

    Returns:
        "own", the plan's allocation, "blocks", "shares" by allocation, and the unsearched "line";
        nothing for a plan of uniform shares without rivals.
    """
    rule = str(plan.options.get("allocation") or "plan")
    matrices = [anatomy.matrix(row["module"]) for row in plan.rows]
    if (rule in ("uniform", "trim") and not rivals) or not matrices:
        return {}
    sizes = [m.numel for m in matrices]
    made = {rule: [row["zeros"] / size for row, size in zip(plan.rows, sizes)]}
    total = sum(row["zeros"] for row in plan.rows) / sum(sizes)
    groups = [m.block for m in matrices]
    blocks = list(dict.fromkeys(groups))
    found: dict[str, Any] = {"own": rule, "blocks": blocks}
    bounds = (plan.options.get("min_sparsity", 0.0), plan.options.get("max_sparsity", 1.0))
    if rivals:
        for name, other in rivals.items():
            made[name] = [row["zeros"] / size for row, size in zip(other.rows, sizes)]
    else:
        made["uniform"] = [total] * len(sizes)
    if bounds[0] <= total <= bounds[1]:
        beta = steepest(total, len(blocks), bounds) / 2
        if not rivals:
            name = "line" if rule == "atp" else "atp"
            made[name] = by_line(groups, sizes, total, beta, bounds=bounds).tolist()
        found["line"] = {"beta": beta, "searched": False}
    found["shares"] = {name: _by_block(shares, matrices, blocks) for name, shares in made.items()}
    return found


def _by_block(
    shares: Sequence[float], matrices: Sequence[Matrix], blocks: Sequence[str]
) -> list[float]:
    means = block_shares(dict(zip((m.name for m in matrices), shares)), matrices)
    first = {m.block: means[m.name] for m in matrices}
    return [round(first[block], 6) for block in blocks]


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
        rows = _row_counts(row, matrix)
        if nm is not None and (matrix.shape[1] % nm[1] or zeros != size // nm[1] * (nm[1] - nm[0])):
            raise RequestError(
                f"the plan's row for `{name}`: {zeros} zeros of {matrix.shape[0]} x "
                f"{matrix.shape[1]} aren't the pattern {row['pattern']}"
            )
        out[name] = Target(zeros, nm, rows)
    return out


def _row_counts(row: Mapping[str, Any], matrix: Matrix) -> tuple[int, ...] | str | None:
    """What a plan's row says of its matrix's rows: a count for each, `trim`, or nothing.

    Raises:
        RequestError: something else, or counts that don't fit.
    """
    rows = row.get("rows")
    if rows is None or (rows == TRIM and not row.get("pattern")):
        return rows
    out, width = matrix.shape
    fits = isinstance(rows, list) and len(rows) == out and not row.get("pattern")
    fits = fits and all(type(n) is int and 0 <= n <= width for n in rows)
    if not fits or sum(rows) != row["zeros"]:
        raise RequestError(
            f"the plan's row for `{matrix.name}` has `rows` that are neither `{TRIM}` nor {out} "
            f"counts of at most {width} that sum to its zeros",
            "leave `rows` out, and the method spreads the zeros",
        )
    return tuple(rows)


def idle_beside(plan: Plan, settings: AlphaPruneSettings) -> str:
    """The options of an allocation that were asked for and that a given plan makes idle."""
    names = ("sparsity", "allocation", "granularity", "min_sparsity", "max_sparsity", *OPTIONS)
    asked = {name: getattr(settings, name) for name in names}
    return ", ".join(
        f"`--{name.replace('_', '-')} {value}`"
        for name, value in asked.items()
        if value != getattr(type(settings), name) and value != plan.options.get(name)
    )


def said_of_rows(plan: Plan) -> str:
    """What a plan says of the rows inside its matrices: "trim", "given", or "even"."""
    said = [row.get("rows") for row in plan.rows]
    if TRIM in said:
        return TRIM
    return "given" if any(said) else "even"


def with_rows(plan: Plan, rows: Mapping[str, Sequence[int]]) -> Plan:
    """The plan with the counts that TRIM found, by matrix, in place of its name."""
    made = [{**r, "rows": list(rows[r["module"]])} if r["module"] in rows else r for r in plan.rows]
    return dataclasses.replace(plan, rows=made)
