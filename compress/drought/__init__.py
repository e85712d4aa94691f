"""SIDE, a socially informed drought estimator: severity and impact from text and measurements.

A small multi-task workload for the rest of the package: it is trained, its text encoder
compressed, and both are measured. Names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "SideConfig": "compress.drought.configuration",
    "SideModel": "compress.drought.modeling",
    "dsci": "compress.drought.usdm",
    "simulate": "compress.drought.simulated",
    "window_digests": "compress.drought.table",
    "train_side": "compress.drought.command",
    "predict_side": "compress.drought.predicting",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module `compress.drought` has no attribute `{name}`")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
