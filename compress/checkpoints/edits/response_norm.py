"""`{"kind": "response_norm", "width": n, "of": m}`: response normalisation of n of m features.

ConvNeXt V2 (Woo et al., arXiv:2301.00808, eq. 2) divides each feature's norm over the image by the
mean of those norms. With features gone the mean would be over fewer; removed features count as
zeros, so that

    y_i = weight_i · x_i · ||x_i|| / (sum_j ||x_j|| / m + eps) + bias_i + x_i

is what the whole layer gives where m - n features are zero. On disk: `NAME.weight`, `NAME.bias`,
each [1, 1, 1, n], as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, placement, refuse
from compress.errors import RequestError

EPS = 1e-6  # as in the stock layer, which has it in its code


class ResponseNorm(nn.Module):
    """The layer of n features whose mean counts m of them; input [B, H, W, n]."""

    def __init__(self, width: int, of: int, **place: Any) -> None:
        super().__init__()
        self.of = of
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, width, **place))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, width, **place))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [B, H, W, n]."""
        norms = torch.linalg.vector_norm(hidden_states, ord=2, dim=(1, 2), keepdim=True)
        mean = norms.sum(dim=-1, keepdim=True) / self.of
        scaled = hidden_states * (norms / (mean + EPS))
        return self.weight * scaled + self.bias + hidden_states


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Build the layer of `width` features.

    Raises:
        RequestError: `old` is no such layer, or isn't that wide.
    """
    width, of = int(fields["width"]), int(fields["of"])
    shapes = {name: tuple(p.shape) for name, p in old.named_parameters(recurse=False)}
    if set(shapes) != {"weight", "bias"} or any(s[:-1] != (1, 1, 1) for s in shapes.values()):
        refuse(KIND.name, old, where, "the global response norm of ConvNeXt V2")
    before = shapes["weight"][-1]
    if width > before or width > of:
        raise RequestError(
            f"edit of `{where}`: width {width} exceeds its {min(before, of)} features",
            f"give a width from 1 to {min(before, of)}",
        )
    return ResponseNorm(width, of, **placement(old))


KIND = Kind("response_norm", make, required=("width", "of"))
