"""N:M patterns: what the words mean, and which N each matrix gets where N may differ.

N:M keeps N of every M consecutive inputs of a row (as NVIDIA and ALPS say it; Wanda's code counts
the removed ones). Mixed N:M takes one M for all matrices and an N for each, from its share of
sparsity.

Letters: u_l how many of M matrix l loses, s_l = size_l / M the zeros that one more costs (its
step), F the zeros of all floors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from compress.checkpoints.anatomy import Matrix
from compress.checkpoints.plan import Plan
from compress.errors import RequestError

_WHOLE = 1e-4  # so near a whole number a share is one: counts of weights were rounded
_STATES = 2**20  # totals looked at; where a model has more, the nearest by rounding is taken


class Pattern(NamedTuple):
    """A pattern as it was asked for."""

    kept: int | None
    """N, or None where each matrix has its own."""
    of: int
    """M."""


def parse_pattern(text: str) -> Pattern:
    """Read "N:M", or "mixed:M" ("mixed N:M" says the same).

    Raises:
        RequestError: not of that form, or not 0 < N < M, or a mixed M below 2.
    """
    mixed = re.fullmatch(r"mixed(?::| +n:| +)(\d+)", text.strip().lower())
    if mixed:
        if int(mixed[1]) < 2:
            raise RequestError(f"`--pattern {text}`: M is {mixed[1]}, at least 2 is needed")
        return Pattern(None, int(mixed[1]))
    match = re.fullmatch(r"(\d+):(\d+)", text)
    kept, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < kept < of:
        raise RequestError(
            f"`--pattern {text}` isn't N:M with 0 < N < M, nor mixed:M",
            "2:4 keeps 2 of every 4 consecutive weights; mixed:8 gives each matrix its own N of 8.",
        )
    return Pattern(kept, of)


def row_pattern(text: str) -> tuple[int, int]:
    """Read the pattern of a plan's row, which is always N:M.

    Raises:
        RequestError: not N:M with 0 < N < M.
    """
    kept, of = parse_pattern(text)
    if kept is None:
        raise RequestError(f"`{text}` in a plan's row isn't N:M")
    return kept, of


def check_widths(matrices: Sequence[Matrix], pattern: str, of: int) -> None:
    """Refuse matrices over whose inputs groups of M can't be laid, the first by name.

    Raises:
        RequestError: M doesn't divide a width.
    """
    ragged = [m for m in matrices if m.shape[1] % of]
    if ragged:
        first = ragged[0]
        raise RequestError(
            f"`{first.name}` has {first.shape[1]} inputs, which {of} doesn't divide: `--pattern "
            f"{pattern}` can't be laid over it"
            + (f" (nor over {len(ragged) - 1} more)" if len(ragged) > 1 else ""),
            f"leave it alone with `--skip '{first.name}'`, or take another pattern",
        )


def zeros_row(
    matrix: Matrix, zeros: int, removed: int | None = None, of: int | None = None
) -> dict[str, Any]:
    """A row of the plan.

    Args:
        matrix: of which matrix.
        zeros: weights to remove; with a pattern the number that it implies.
        removed, of: of every M weights so many go; None without a pattern.
    """
    size = matrix.shape[0] * matrix.shape[1]
    row = {
        "module": matrix.name,
        "kind": "zeros",
        "block": matrix.block,
        "size": size,
        "zeros": zeros,
        "sparsity": round(zeros / size, 6),
    }
    if of is not None and removed:  # M:M would be no pattern
        row["pattern"] = f"{of - removed}:{of}"
    return row


def pattern_rows(matrices: Sequence[Matrix], kept: int, of: int) -> list[dict[str, Any]]:
    """The rows of a plan with one N:M for all matrices.

    Raises:
        RequestError: M doesn't divide a width.
    """
    check_widths(matrices, f"{kept}:{of}", of)
    return [
        zeros_row(m, m.shape[0] * m.shape[1] // of * (of - kept), of - kept, of) for m in matrices
    ]


def mixed_bounds(of: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds of a matrix's share drawn in to multiples of 1/M, some weight being kept.

    An allocation within them has rounding to fear, but no more.

    Raises:
        RequestError: no multiple lies between them.
    """
    least = math.ceil(bounds[0] * of - 1e-9)
    most = min(math.floor(bounds[1] * of + 1e-9), of - 1)
    if least > most:
        raise RequestError(
            f"no N:{of} removes between {bounds[0]:g} and {bounds[1]:g} of the weights",
            "widen --min-sparsity and --max-sparsity",
        )
    return least / of, most / of


def mixed_rows(
    rows: Sequence[dict[str, Any]],
    matrices: Sequence[Matrix],
    of: int,
    sparsity: float,
    bounds: tuple[float, float],
) -> list[dict[str, Any]]:
    """Turn rows of exact counts into rows of N:M with an N for each; see `mixed_removed`.

    Args:
        rows: of `matrices`, in their order, with the counts that an allocation gave.
        of: M.
        sparsity: the request.
        bounds: least and greatest share of a matrix.

    Raises:
        RequestError: M doesn't divide a width, or the bounds can't be met.
    """
    check_widths(matrices, f"mixed:{of}", of)
    sizes = [int(row["size"]) for row in rows]
    shares = [row["zeros"] / row["size"] for row in rows]
    removed = mixed_removed(shares, sizes, of, sparsity, bounds)
    return [
        {**row, **zeros_row(matrix, size // of * gone, gone, of)}
        for row, matrix, size, gone in zip(rows, matrices, sizes, removed)
    ]


def mixed_removed(
    shares: Sequence[float],
    sizes: Sequence[int],
    of: int,
    sparsity: float,
    bounds: tuple[float, float] = (0.0, 0.99),
) -> list[int]:
    """How many of every M weights each matrix loses.

    M * share rounded down or up, within the bounds and below M. Of all such choices that whose
    zeros come nearest to the request; of those with one total, that which rounds the largest
    remainders up, each weighted by its matrix's step. Equal matrices are rounded up in their order.

    Args:
        shares: sparsity of each matrix, their parameter-weighted mean being the request.
        sizes: parameters, each a multiple of M.
        of: M.
        sparsity: the request.
        bounds: least and greatest share of a matrix.

    Returns:
        u_l for each matrix, 0 <= u_l < M. The total is within one step of the request.

    Raises:
        RequestError: the bounds let no matrix, or not all together, come within one step; the
            range that can be reached is named.
    """
    least, most = (round(bound * of) for bound in mixed_bounds(of, bounds))
    exact = np.asarray(shares, dtype=np.float64) * of
    floors = np.clip(np.floor(exact + _WHOLE), least, most).astype(np.int64)
    ceilings = np.clip(np.ceil(exact - _WHOLE), least, most).astype(np.int64)
    steps = np.asarray(sizes, dtype=np.int64) // of
    wanted = sparsity * float(np.sum(sizes))
    gain = (exact - floors).clip(0, 1) * steps
    raised = _raise(steps, ceilings > floors, gain, wanted - float(floors @ steps))
    removed = np.where(raised, ceilings, floors)
    if abs(float(removed @ steps) - wanted) > float(steps.max()):
        low, high = (float(u @ steps) / float(np.sum(sizes)) for u in (floors, ceilings))
        raise RequestError(
            f"`--pattern mixed:{of}` can't reach `--sparsity {sparsity:g}` within the bounds "
            f"{bounds[0]:g} to {bounds[1]:g}: it reaches {low:g} to {high:g}",
            "widen --min-sparsity and --max-sparsity, or take a larger M",
        )
    return [int(u) for u in removed]


def mixed_note(plan: Plan) -> str | None:
    """What a plan of mixed N:M asked for and what it reached; None for any other plan."""
    if "reached" not in plan.options:
        return None
    return (
        f"{plan.options['pattern']}: sparsity {plan.options['sparsity']:g} asked, "
        f"{plan.options['reached']:.6g} reached"
    )


def _raise(steps: np.ndarray, able: np.ndarray, gain: np.ndarray, missing: float) -> np.ndarray:
    """Bool [n]: which matrices take their ceiling, so that the steps' sum is nearest `missing`.

    Matrices of one step are alike but for their remainders, so of each such class the largest go
    first and only their number is open: a sum over classes, all totals kept, each with the largest
    gain.
    """
    classes = [np.flatnonzero(able & (steps == step)) for step in sorted(set(steps[able].tolist()))]
    classes = [index[np.argsort(-gain[index], kind="stable")] for index in classes]
    totals, best = np.zeros(1, dtype=np.int64), np.zeros(1)
    back: list[tuple[np.ndarray, np.ndarray]] = []  # for each total: the one before, and how many
    for index in classes:
        if len(totals) * (len(index) + 1) > _STATES:
            return _by_rounding(steps, able, gain, missing)
        step = int(steps[index[0]])
        number = np.arange(len(index) + 1)
        sums = (totals[:, None] + number * step).ravel()
        worth = (best[:, None] + np.concatenate([[0.0], gain[index].cumsum()])).ravel()
        order = np.lexsort((-worth, sums))
        first = np.r_[True, np.diff(sums[order]) > 0]
        chosen = order[first]
        totals, best = sums[chosen], worth[chosen]
        back.append((chosen // len(number), chosen % len(number)))
    off = np.abs(totals - missing)
    state = int(np.flatnonzero(off <= off.min() + 1e-6)[-1])  # of two as near, that with more zeros
    raised = np.zeros(len(steps), dtype=bool)
    for index, (before, number) in zip(reversed(classes), reversed(back)):
        raised[index[: int(number[state])]] = True
        state = int(before[state])
    return raised


def _by_rounding(
    steps: np.ndarray, able: np.ndarray, gain: np.ndarray, missing: float
) -> np.ndarray:
    """Largest remainders first while that brings the total nearer: within half a step."""
    raised = np.zeros(len(steps), dtype=bool)
    remainder = gain / steps
    for index in np.argsort(-remainder, kind="stable"):
        if able[index] and steps[index] < 2 * missing:
            raised[index] = True
            missing -= int(steps[index])
    return raised
