"""Data specs, the corpus registry, and packing of text into calibration windows."""

from __future__ import annotations

from compress.data.packing import CalibrationReport, calibration_batches, prepare_calibration
from compress.data.registry import load_registry, shipped
from compress.data.specs import DataSpec, load_documents, parse_spec

__all__ = [
    "CalibrationReport",
    "DataSpec",
    "calibration_batches",
    "load_documents",
    "load_registry",
    "parse_spec",
    "prepare_calibration",
    "shipped",
]
