"""Statistics over calibration activations: one definition of padding and precision."""

from __future__ import annotations

from compress.calibration.statistics import ColumnNorms, Gram, real_rows

__all__ = ["ColumnNorms", "Gram", "real_rows"]
