"""Empirical spectral densities of weight matrices and the metrics of their shape.

metrics: from eigenvalues to numbers, batched; tails: the power-law fits among them
farms, bulk, shuffle: measures of windows, of the Marchenko-Pastur bulk, against a shuffled matrix
settled: where eigenvalues in single precision are enough
decompose: weights to eigenvalues, by precision, threads and cache; cache: its files
measure: from a checkpoint to a row for each matrix, a block at a time
watcher: the same by WeightWatcher
inspect: the command; plots, page: pictures as PNG and as one HTML file
"""

from __future__ import annotations

from compress.spectra.farms import FarmsSettings, farms_alpha
from compress.spectra.metrics import DEFAULT_METRICS, METRICS, shape_metrics

__all__ = ["DEFAULT_METRICS", "METRICS", "FarmsSettings", "farms_alpha", "shape_metrics"]
