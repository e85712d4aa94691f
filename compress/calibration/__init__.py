"""Statistics over calibration activations: one definition of padding and precision."""

from __future__ import annotations

from compress.calibration.statistics import ColumnMoments, ColumnNorms, Gram, Moments, real_rows

__all__ = ["ColumnMoments", "ColumnNorms", "Gram", "Moments", "real_rows"]
