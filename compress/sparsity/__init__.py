"""Which weights to zero: shares for every matrix, masks in it, and the walk that applies them.

masks, ria, dsnot:      which weights of one matrix to keep
sparsegpt, admm, alps:  masks with new values for the weights kept; refit gives any mask such
layer, methods:         what those share, and the table of them by name
allocators:             from metrics to shares of sparsity
planning, pruner:       the plan and the class that the walk calls
"""

from __future__ import annotations

from compress.sparsity.masks import magnitude_mask, nm_mask, wanda_mask

__all__ = ["magnitude_mask", "nm_mask", "wanda_mask"]
