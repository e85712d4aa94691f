"""Pure tensor functions that every method shares; no models, no files.

allocation: ratios to shares to exact counts, under bounds and one total
select:     the k smallest scores, ties included; per row; N of M
eigen:      squared singular values under one precision rule
solve:      the damped inverse Cholesky factor of a Hessian
counter:    random numbers that depend on a seed and counters, never on order
"""

from __future__ import annotations

from compress.numerics.allocation import allocate, largest_remainder, project, to_counts
from compress.numerics.counter import generator, permutation
from compress.numerics.eigen import gram_eigenvalues
from compress.numerics.select import (
    drop_smallest,
    drop_smallest_per_row,
    keep_n_of_m,
    spread_over_rows,
)
from compress.numerics.solve import InverseFactor, damped_inverse_cholesky

__all__ = [
    "InverseFactor",
    "allocate",
    "damped_inverse_cholesky",
    "drop_smallest",
    "drop_smallest_per_row",
    "generator",
    "gram_eigenvalues",
    "keep_n_of_m",
    "largest_remainder",
    "permutation",
    "project",
    "spread_over_rows",
    "to_counts",
]
