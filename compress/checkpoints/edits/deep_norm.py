"""`{"kind": "deep_norm", "layers": L}`: a post-norm decoder layer that weighs its input up.

    h = norm1(a x + attention(x));  y = norm2(a h + mlp(h));  a = (2 L)^(1/4)

with L the layers of the decoder when the model was made. (Wang et al., "DeepNet", arXiv:2203.00555,
table 2, decoder-only.) On disk: the layer's own names and shapes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind
from compress.checkpoints.edits.blocks import Parts, place, register


def residual(self: Any, x: Tensor, parts: Parts) -> Tensor:
    """Normalise after each sum with a weighted input."""
    h = parts.norm1(self.residual_weight * x + parts.attention(x))
    return parts.norm2(self.residual_weight * h + parts.mlp(h))


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Turn a pre-norm layer into one of DeepNorm, in place.

    Raises:
        RequestError: the layer is not a plain pre-norm one of known code.
    """
    layer: Any = place(old, KIND.name, where)
    layer.residual_weight = (2.0 * fields["layers"]) ** 0.25
    return layer


KIND = Kind("deep_norm", make, required=("layers",), in_place=True)
register(KIND.name, residual)
