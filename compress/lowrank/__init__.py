"""Layers as products of two thin ones: after training, and (`scratch`) from the start.

truncate, sequential:         the mathematics of one layer: spectra, factors, their losses
allocation, allocators:       how much rank which layer gets
statistics, measuring:        what the layers read on the calibration text, kept on disk
planning, factoring, writing: the plan, the factors of every layer, the checkpoint
recovery:                     fine-tuning of the factors
scratch:                      low-rank models trained from a random start
"""

from __future__ import annotations

from compress.lowrank.truncate import truncate

__all__ = ["truncate"]
