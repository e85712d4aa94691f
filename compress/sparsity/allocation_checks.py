"""What can't be meant of the options that say how much each matrix, and each row, loses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compress.errors import Fault
from compress.sparsity.allocators.table import ALLOCATORS, OPTIONS

if TYPE_CHECKING:
    from compress.sparsity.settings import AlphaPruneSettings

ROW_METHODS = ("magnitude", "wanda", "ria", "dsnot")  # take off a given number from each row
SOLVERS = ("sparsegpt", "admm", "alps")  # choose while they solve, in groups of their own


def allocation_faults(settings: AlphaPruneSettings) -> Iterator[Fault]:
    """All faults of the allocation, of the shares of rows, and of a comparison."""
    if settings.rule in ALLOCATORS:
        yield from _company_faults(settings)
        yield from _number_faults(settings)
        yield from _atp_faults(settings)
        yield from _row_faults(settings)
    if settings.compare_allocations:
        yield from _comparison_faults(settings)


def _company_faults(settings: AlphaPruneSettings) -> Iterator[Fault]:
    """Options that don't act in the allocation."""
    mine = ALLOCATORS[settings.rule]
    acting = {*mine.options, *(ALLOCATORS["atp"].options if settings.compare_allocations else ())}
    for name in OPTIONS:
        if name not in acting and getattr(settings, name) != getattr(type(settings), name):
            yield (
                f"`--{name.replace('_', '-')} {getattr(settings, name)}` can't act with "
                f"`--allocation {settings.rule}`",
                f"it acts with {', '.join(k for k, a in ALLOCATORS.items() if name in a.options)}.",
            )
    if settings.granularity is not None and settings.granularity not in mine.grains:
        yield (
            f"`--granularity {settings.granularity}` can't act with `--allocation {settings.rule}`",
            f"it takes {', '.join(mine.grains)}.",
        )


def _number_faults(settings: AlphaPruneSettings) -> Iterator[Fault]:
    if settings.dlp_spread is not None and not 0 <= settings.dlp_spread < 1:
        yield f"`--dlp-spread {settings.dlp_spread:g}` is outside [0, 1)", ""
    if not 0 <= settings.owl_spread < 1:
        yield f"`--owl-spread {settings.owl_spread:g}` is outside [0, 1)", ""
    if not settings.owl_multiple > 0:
        yield f"`--owl-multiple {settings.owl_multiple:g}` isn't positive", ""
    window, grid, aspect = settings.farms_window, settings.farms_grid, settings.farms_aspect
    if window < 2 or grid < 1 or not 0 < aspect < float("inf"):
        yield (
            f"FARMS windows of {window} rows, {aspect:g} columns a row, {grid} places a side can't "
            "be",
            "2, a positive number and 1 are the least.",
        )


def _atp_faults(settings: AlphaPruneSettings) -> Iterator[Fault]:
    for option, value in (
        ("atp-candidates", settings.atp_candidates),
        ("atp-held-out", settings.atp_held_out),
    ):
        if value is not None and value < 1:
            yield f"`--{option} {value}` is less than 1", ""
    try:
        slope = 0.0 if settings.atp_beta == "auto" else float(settings.atp_beta)
    except ValueError:
        slope = float("nan")
    if not 0 <= slope < float("inf"):
        yield (
            f"`--atp-beta {settings.atp_beta}` is neither auto nor a number >= 0",
            "0.01 lets each block lose 1 % more than the one before.",
        )
    elif settings.atp_beta != "auto" and settings.atp_held_out is not None:
        yield "`--atp-held-out` can't act with a given `--atp-beta`", ""


def _row_faults(settings: AlphaPruneSettings) -> Iterator[Fault]:
    """What can't be meant of shares of rows."""
    asked = "--allocation trim" if settings.rule == "trim" else "--rows trim"
    if settings.trims and settings.method in SOLVERS:
        yield (
            f"`{asked}` can't act with `--method {settings.method}`, which chooses while it "
            "solves, not by rows",
            f"it acts with {', '.join(ROW_METHODS)}.",
        )
    pattern = (settings.pattern or "").lower()
    # With one N:M no allocation can act, and that is said of every allocation.
    if settings.trims and pattern and (settings.rows == "trim" or pattern.startswith("mixed")):
        yield (
            f"`{asked}` can't act with `--pattern {settings.pattern}`, which fixes what every row "
            "loses",
            "leave one of them out.",
        )


def _comparison_faults(settings: AlphaPruneSettings) -> Iterator[Fault]:
    """What a comparison of allocations can't go with."""
    asked = "`--compare-allocations`"
    if not (settings.ppl or settings.tasks):
        yield f"{asked} has nothing to compare by", "add `--ppl DATA` or `--tasks TASK`."
    alone = {
        "--propagate true-sequential": settings.propagate == "true-sequential",
        "--refit block": settings.refit == "block",
        "--channel-permutation": settings.channel_permutation,
    }
    for option, given in alone.items():
        if given:
            yield f"{asked} prunes in lockstep, which `{option}` can't", "leave one of them out."
    if settings.pattern is not None and not settings.pattern.lower().startswith("mixed"):
        yield (
            f"{asked} can't act with `--pattern {settings.pattern}`, which fixes every matrix's "
            "share",
            "leave one of them out.",
        )
