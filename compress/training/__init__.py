"""One trainer for every method: objectives, optimizers and norm placements that combine freely.

Names are resolved when first used, so that importing one optimizer doesn't import the Trainer.
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "SPAM": "compress.training.optimizers.spam",
    "StableSPAM": "compress.training.optimizers.stable_spam",
    "MaskedNextTokenCollator": "compress.training.objectives",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module `compress.training` has no attribute `{name}`")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
