"""`{"kind": "sandwich_norm"}`: a decoder layer with a norm before and after each branch.

    h = x + norm1'(attention(norm1(x)));  y = h + norm2'(mlp(norm2(h)))

(Sandwich-LN, CogView, arXiv:2105.13290; Gemma 2.) With "entry": 1 the layer first normalises its
input, x <- norm0(x): in the first layer that is the normed embedding of Peri-LN (arXiv:2502.02732).
On disk: the layer's own names, and `NAME.attention_out_norm`, `NAME.mlp_out_norm`,
`NAME.entry_norm`, in the shape of its own norms.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind
from compress.checkpoints.edits.blocks import Parts, add_norms, place, register


def residual(self: Any, x: Tensor, parts: Parts) -> Tensor:
    """Normalise each branch's input and output."""
    if self.normalises_entry:
        x = self.entry_norm(x)
    h = x + self.attention_out_norm(parts.attention(parts.norm1(x)))
    return h + self.mlp_out_norm(parts.mlp(parts.norm2(h)))


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Add norms behind a pre-norm layer's branches, in place.

    Raises:
        RequestError: the layer is not a plain pre-norm one of known code.
    """
    layer: Any = place(old, KIND.name, where)
    layer.normalises_entry = "entry" in fields
    entry = ("entry_norm",) if layer.normalises_entry else ()
    add_norms(layer, where, "attention_out_norm", "mlp_out_norm", *entry)
    return layer


KIND = Kind("sandwich_norm", make, optional=("entry",), in_place=True)
register(KIND.name, residual)
