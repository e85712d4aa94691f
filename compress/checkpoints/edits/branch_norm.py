"""`{"kind": "branch_norm"}`: a decoder layer that normalises what each branch adds (OLMo 2).

    h = x + norm1(attention(x));  y = h + norm2(mlp(h))                       (arXiv:2501.00656)

On disk: the layer's own names and shapes; its two norms move behind attention and MLP.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind
from compress.checkpoints.edits.blocks import Parts, place, register


def residual(self: Any, x: Tensor, parts: Parts) -> Tensor:
    """Normalise each branch's output only."""
    h = x + parts.norm1(parts.attention(x))
    return h + parts.norm2(parts.mlp(h))


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Move a pre-norm layer's norms behind its branches, in place.

    Raises:
        RequestError: the layer is not a plain pre-norm one of known code.
    """
    return place(old, KIND.name, where)


KIND = Kind("branch_norm", make, in_place=True)
register(KIND.name, residual)
