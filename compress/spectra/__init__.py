"""Empirical spectral densities of weight matrices and the metrics of their shape.

metrics: from eigenvalues to numbers, batched
measure: from a checkpoint to a row for each matrix, a block at a time
inspect: the command; plots: pictures of one spectrum and of all
"""

from __future__ import annotations

from compress.spectra.metrics import METRICS, shape_metrics

__all__ = ["METRICS", "shape_metrics"]
