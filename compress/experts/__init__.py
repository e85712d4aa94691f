"""Condensing sparse mixture-of-experts layers into small dense ones.

merge:       several gated MLPs as one, exactly
statistics:  one pass over the experts: Gram matrices of their outputs, routing, scores
selection:   which experts to keep: greedy by least squares or by divergence, or by a score
refit:       the down projection of the condensed layer, by ridge regression
layers:      where experts sit in a model, and what one layer of them is made of
stock:       which families' own configs can spell a condensed layer
measuring, searching, writing: the walk, the search for layers, the checkpoint
"""

from __future__ import annotations

from compress.experts.merge import merge_experts

__all__ = ["merge_experts"]
