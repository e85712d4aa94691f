"""`{"kind": "post_norm"}`: a pre-norm decoder layer that normalises after each residual sum.

    h = norm1(x + attention(x));  y = norm2(h + mlp(h))        (Vaswani et al., arXiv:1706.03762)

On disk: the layer's own names and shapes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind
from compress.checkpoints.edits.blocks import Parts, place, register


def residual(self: Any, x: Tensor, parts: Parts) -> Tensor:
    """Normalise after each sum."""
    h = parts.norm1(x + parts.attention(x))
    return parts.norm2(h + parts.mlp(h))


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Turn a pre-norm layer into a post-norm one, in place.

    Raises:
        RequestError: the layer is not a plain pre-norm one of known code.
    """
    return place(old, KIND.name, where)


KIND = Kind("post_norm", make, in_place=True)
register(KIND.name, residual)
