"""Calibration sets of a model, and statistics over their activations."""

from __future__ import annotations

from compress.calibration.sets import calibration_set
from compress.calibration.statistics import ColumnMoments, ColumnNorms, Gram, Moments, real_rows

__all__ = ["ColumnMoments", "ColumnNorms", "Gram", "Moments", "calibration_set", "real_rows"]
