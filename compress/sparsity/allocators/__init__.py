"""How much of each matrix to remove.

maps:               pure functions from measured values to shares
spectral:           alpha, farms: the shape of the weights' spectra
scores:             owl, dlp: the dense model's Wanda scores
shape:              uniform, er, global; trim, which is uniform between matrices
search:             atp, whose slope is searched on held-out calibration text
ground, table:      what they share, and the table of them by name
"""

from __future__ import annotations

from compress.sparsity.allocators.maps import OWL_MULTIPLE, by_metric, by_spread, outlier_share

__all__ = ["OWL_MULTIPLE", "by_metric", "by_spread", "outlier_share"]
