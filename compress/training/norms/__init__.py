"""Where a decoder's norms stand: Mix-LN, LayerNorm Scaling and their relatives.

Mix-LN: Li et al., arXiv:2412.13795. LayerNorm Scaling (LNS): Sun et al., arXiv:2502.05795.
"""

from __future__ import annotations

from compress.training.norms.folding import fold_scaled_norms
from compress.training.norms.placing import Placement, place_norms, placement_of
from compress.training.norms.table import NORMS, Norm

__all__ = ["NORMS", "Norm", "Placement", "fold_scaled_norms", "place_norms", "placement_of"]
