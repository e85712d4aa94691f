"""The allocators by name: what each rests on, its map to shares, and the options that act in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from compress.sparsity.allocators import scores, search, shape, spectral
from compress.sparsity.allocators.ground import Ground, Measured, Values

_ALL_GRAINS = ("block", "matrix", "mixed")
_SPECTRAL = ("epsilon", "metric_sign", "esd_exact")


class Allocator(NamedTuple):
    """A way to split the zeros over the matrices."""

    measure: Callable[[Ground], Measured]
    """What it rests on, of every matrix."""
    share: Callable[[Sequence[float], Ground], Tensor]
    """From values [n] to shares [n], float64."""
    data: bool = False
    """Whether it needs calibration text."""
    grains: tuple[str, ...] = _ALL_GRAINS
    """What may have a share of its own; the first is the default."""
    options: tuple[str, ...] = ()
    """Settings that act in this allocator and not in all."""


_OF_MATRICES = ("matrix", "block", "mixed")

ALLOCATORS = {
    "alpha": Allocator(
        spectral.measure_alpha, spectral.share_spectral, options=("metric", *_SPECTRAL)
    ),
    "uniform": Allocator(shape.measure_nothing, shape.share_uniform, grains=("block",)),
    "owl": Allocator(
        scores.measure_owl, scores.share_owl, True, options=("owl_multiple", "owl_spread")
    ),
    "dlp": Allocator(
        scores.measure_dlp, scores.share_dlp, True, options=("dlp_mean", "dlp_spread")
    ),
    "atp": Allocator(
        search.measure_atp,
        shape.share_line,
        True,
        grains=("block",),
        options=("atp_beta", "atp_candidates", "atp_held_out"),
    ),
    "farms": Allocator(
        spectral.measure_farms,
        spectral.share_spectral,
        options=("farms_window", "farms_aspect", "farms_grid", *_SPECTRAL),
    ),
    "trim": Allocator(shape.measure_nothing, shape.share_uniform, grains=("block",)),
    "er": Allocator(shape.measure_er, shape.share_er, grains=_OF_MATRICES),
    "global": Allocator(shape.measure_global, shape.share_line, grains=_OF_MATRICES),
}
OPTIONS = tuple(dict.fromkeys(o for found in ALLOCATORS.values() for o in found.options))


def shares_of(measured: Measured, ground: Ground) -> Tensor:
    """Shares [n] from what was measured; of "mixed", the mean of those by block and by matrix.

    Raises:
        ValueError: the sparsity can't be reached within the bounds.
    """
    share = ALLOCATORS[ground.settings.rule].share
    made = [share(_listed(v, ground), ground) for v in measured.values.values()]
    return sum(made[1:], made[0]) / len(made)


def shown_values(measured: Measured) -> Values:
    """The values that stand in the plan's rows: those of matrices where there are two."""
    return measured.values.get("matrix") or measured.values.get("block") or {}


def _listed(values: Values, ground: Ground) -> list[float]:
    return [values[m.name] for m in ground.matrices]
