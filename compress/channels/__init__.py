"""Vision networks with fewer channels: coupled groups, criteria, budgets, physical removal."""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "Group": "compress.channels.groups",
    "Masks": "compress.channels.masks",
    "find_groups": "compress.channels.groups",
    "keep_for_budget": "compress.channels.budget",
    "measure_costs": "compress.channels.costs",
}
__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `compress.channels` has no attribute `{name}`")
