"""`{"kind": "layer_scale"}`: a decoder layer whose branches have a learned factor per feature.

    h = x + s1 * attention(norm1(x));  y = h + s2 * mlp(norm2(h))  (LayerScale, arXiv:2103.17239)

On disk: the layer's own names, and `NAME.attention_scale`, `NAME.mlp_scale`, [hidden] each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, refuse
from compress.checkpoints.edits.blocks import Parts, family_of, place, register

START = 1e-4
"""What the factors are made as; the paper's 0.1 … 1e-6 go down with depth."""


def residual(self: Any, x: Tensor, parts: Parts) -> Tensor:
    """Multiply what each branch adds."""
    h = x + self.attention_scale * parts.attention(parts.norm1(x))
    return h + self.mlp_scale * parts.mlp(parts.norm2(h))


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Give a pre-norm layer's branches a factor, in place.

    Raises:
        RequestError: the layer is not a plain pre-norm one of known code.
    """
    layer: Any = place(old, KIND.name, where)
    family = family_of(layer)
    assert family is not None
    weight = getattr(layer.get_submodule(family.norms[0]), "weight", None)
    if weight is None:
        refuse(KIND.name, old, where, "layers whose norms have weights")
    for name in ("attention_scale", "mlp_scale"):
        if not hasattr(layer, name):
            layer.register_parameter(name, nn.Parameter(torch.full_like(weight, START)))
    return layer


KIND = Kind("layer_scale", make, in_place=True)
register(KIND.name, residual)
