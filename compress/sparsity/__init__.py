"""Which weights to zero: shares for every matrix, masks in it, and the walk that applies them.

masks, sparsegpt:  pure functions on one matrix
allocators:        from metrics to shares of sparsity
planning, pruner:  the plan and the class that the walk calls
"""

from __future__ import annotations

from compress.sparsity.masks import magnitude_mask, nm_mask, wanda_mask

__all__ = ["magnitude_mask", "nm_mask", "wanda_mask"]
