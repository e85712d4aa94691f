"""Calibration sets of a model, and statistics over their activations."""

from __future__ import annotations

from compress.calibration.predict import Prediction, Profile, predict, profile
from compress.calibration.sets import calibration_set
from compress.calibration.statistics import ColumnMoments, ColumnNorms, Gram, Moments, real_rows

__all__ = [
    "ColumnMoments",
    "ColumnNorms",
    "Gram",
    "Moments",
    "Prediction",
    "Profile",
    "calibration_set",
    "predict",
    "profile",
    "real_rows",
]
