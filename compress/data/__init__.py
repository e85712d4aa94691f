"""Data specs, the corpus registry, prompt formats, and packing of text into calibration windows."""

from __future__ import annotations

from compress.data.batching import CalibrationReport
from compress.data.overlap import Items, relation
from compress.data.packing import calibration_batches, prepare_calibration
from compress.data.registry import Corpus, corpora, load_registry, shipped
from compress.data.specs import (
    DataSpec,
    Mix,
    load_documents,
    load_examples,
    parse_mix,
    parse_mixes,
    parse_spec,
)

__all__ = [
    "CalibrationReport",
    "Corpus",
    "DataSpec",
    "Items",
    "Mix",
    "calibration_batches",
    "corpora",
    "load_documents",
    "load_examples",
    "load_registry",
    "parse_mix",
    "parse_mixes",
    "parse_spec",
    "prepare_calibration",
    "relation",
    "shipped",
]
