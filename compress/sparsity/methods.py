"""The pruning methods by name: what each needs to know of a matrix's inputs, and its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from compress.calibration.statistics import ColumnMoments, ColumnNorms, Gram, Moments
from compress.numerics.select import drop_smallest_per_row
from compress.sparsity.admm import admm
from compress.sparsity.alps import alps
from compress.sparsity.dsnot import dsnot_mask
from compress.sparsity.layer import Pruned, join
from compress.sparsity.masks import magnitude_mask, nm_mask, wanda_mask_counts, wanda_score
from compress.sparsity.refit import refit_cg, refit_exact
from compress.sparsity.ria import ria_mask, ria_score
from compress.sparsity.sparsegpt import sparsegpt
from compress.sparsity.trim import Trimmed, trim_rows

Statistic = type[ColumnNorms] | type[ColumnMoments] | type[Gram]


@dataclass(frozen=True)
class Layer:
    """One matrix and what it shall lose.

    Attributes:
        name: of the matrix.
        weight: [out, in], only read.
        zeros: exact number of weights to remove.
        pattern: (N, M) to keep N of every M consecutive inputs, or None.
        damp: of Hessians.
        block_size: SparseGPT's column block.
        rows: int64 [out], how many of `zeros` each row loses; None leaves it to the method.
    """

    name: str
    weight: Tensor
    zeros: int
    pattern: tuple[int, int] | None
    damp: float
    block_size: int
    rows: Tensor | None = None


class Method(NamedTuple):
    """A pruning method."""

    statistic: Statistic | None
    """What it needs of the inputs; None needs no data."""
    prune: Callable[[Layer, Any], Pruned]
    """The function of the matrix and the finished statistic."""
    by_rows: bool = False
    """Whether it can take off a given number of weights from each row."""


def by_magnitude(layer: Layer, _: None = None) -> Pruned:
    """Prune by magnitude: also the way out where no input was seen."""
    if layer.pattern is not None:
        return Pruned(nm_mask(layer.weight.float().abs(), *layer.pattern, name=layer.name))
    if layer.rows is not None:
        return Pruned(drop_smallest_per_row(layer.weight.abs(), layer.rows))
    return Pruned(magnitude_mask(layer.weight, layer.zeros))


def _wanda(layer: Layer, norms: Tensor) -> Pruned:
    if layer.pattern is not None:
        return Pruned(nm_mask(wanda_score(layer.weight, norms), *layer.pattern, name=layer.name))
    count = layer.zeros if layer.rows is None else layer.rows
    return Pruned(wanda_mask_counts(layer.weight, norms, count))


def _ria(layer: Layer, norms: Tensor) -> Pruned:
    if layer.rows is not None:
        return Pruned(drop_smallest_per_row(ria_score(layer.weight, norms), layer.rows))
    return Pruned(ria_mask(layer.weight, norms, layer.zeros, layer.pattern, name=layer.name))


def _dsnot(layer: Layer, moments: Moments) -> Pruned:
    mask = dsnot_mask(
        layer.weight, moments, layer.zeros, layer.pattern, rows=layer.rows, name=layer.name
    )
    return Pruned(mask)


def _sparsegpt(layer: Layer, gram: Tensor) -> Pruned:
    found = sparsegpt(
        layer.weight, gram, layer.zeros, layer.pattern, layer.block_size, layer.damp,
        name=layer.name,
    )  # fmt: skip
    return Pruned(found.mask, found.weight, found.note)


def _admm(layer: Layer, gram: Tensor) -> Pruned:
    return admm(layer.weight, gram, layer.zeros, layer.pattern, layer.damp, name=layer.name)


def _alps(layer: Layer, gram: Tensor) -> Pruned:
    return alps(layer.weight, gram, layer.zeros, layer.pattern, layer.damp, name=layer.name)


METHODS = {
    "magnitude": Method(None, by_magnitude, by_rows=True),
    "wanda": Method(ColumnNorms, _wanda, by_rows=True),
    "sparsegpt": Method(Gram, _sparsegpt),
    "ria": Method(ColumnNorms, _ria, by_rows=True),
    "admm": Method(Gram, _admm),
    "alps": Method(Gram, _alps),
    "dsnot": Method(ColumnMoments, _dsnot, by_rows=True),
}


def _exact(layer: Layer, pruned: Pruned, gram: Tensor) -> Pruned:
    return refit_exact(layer.weight, pruned.mask, gram, layer.damp, name=layer.name)


def _cg(layer: Layer, pruned: Pruned, gram: Tensor) -> Pruned:
    return refit_cg(
        layer.weight, pruned.mask, gram, layer.damp, start=pruned.weight, name=layer.name
    )


REFITS: dict[str, Callable[[Layer, Pruned, Tensor], Pruned]] = {"exact": _exact, "cg": _cg}


def refit(layer: Layer, pruned: Pruned, gram: Tensor, how: str) -> Pruned:
    """Give the survivors of a mask new values; notes that both steps made are told once."""
    found = REFITS[how](layer, pruned, gram)
    note = found.note if pruned.note in (None, found.note) else join(pruned.note, found.note)
    return found._replace(note=note)


def prune_layer(layer: Layer, method: str, how: str, statistics: dict[Statistic, Any]) -> Pruned:
    """Prune one matrix, and refit it where `how` is a refit of matrices.

    Args:
        layer: the matrix.
        method: a name of METHODS.
        how: a name of REFITS; anything else leaves the values (a block is refitted as a whole).
        statistics: finished statistics of its inputs, None where no token reached it; such a
            matrix is pruned by magnitude, and a note says so.
    """
    if any(found is None for found in statistics.values()):
        return by_magnitude(layer)._replace(
            note="no calibration token reached it; pruned by magnitude"
        )
    found = METHODS[method]
    pruned = found.prune(layer, statistics[found.statistic] if found.statistic else None)
    return refit(layer, pruned, statistics[Gram], how) if how in REFITS else pruned


def trim_layer(
    layer: Layer, method: str, statistics: dict[Statistic, Any]
) -> tuple[Layer, Trimmed | None]:
    """Let TRIM say what each row of a matrix loses, by the method's own scores.

    Returns:
        The layer with its `rows`, and what was found; as it is, and None, where no token came.
    """
    score = None
    if all(found is not None for found in statistics.values()):
        score = channel_score(method, layer.weight, statistics)
    if score is None:
        return layer, None
    found = trim_rows(layer.weight, score, statistics[Gram], layer.zeros)
    return replace(layer, rows=found.counts), found


def statistics_needed(method: str, how: str, trims: bool = False) -> tuple[Statistic, ...]:
    """What must be collected for a method and a refit, and for shares of rows by TRIM."""
    found = METHODS[method].statistic
    needed = () if found is None else (found,)
    return (*needed, Gram) if (how in REFITS or trims) and Gram not in needed else needed


def channel_score(method: str, weight: Tensor, statistics: dict[Statistic, Any]) -> Tensor | None:
    """The score by which a method's channels are permuted, [out, in]; None where no token came.

    |W| for magnitude, RIA's for ria, Wanda's for all others: what the solvers go by changes while
    they solve.
    """
    statistic = METHODS[method].statistic
    if statistic is None:
        return weight.float().abs()
    found = statistics[statistic]
    if found is None:
        return None
    if statistic is Gram:
        norms = found.diagonal().clamp(min=0).sqrt()
    else:
        norms = found.norm if isinstance(found, Moments) else found
    return ria_score(weight, norms) if method == "ria" else wanda_score(weight, norms)
