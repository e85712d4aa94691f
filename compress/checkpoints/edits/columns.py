"""`{"kind": "columns", "width": n}`: a module whose own parameters end in a dimension of n.

For what modules hold beside their parts: class tokens and positions [1, T, n], layer scales [n],
tables of position biases [distances, n heads]. On disk: the same names as before.
"""

from __future__ import annotations

import torch
from torch import nn

from compress.checkpoints.edits.base import Fields, Kind, refuse
from compress.errors import RequestError


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Narrow the module's own parameters, in place; they are then zeros.

    Raises:
        RequestError: it has none, or one that is narrower.
    """
    own = dict(old.named_parameters(recurse=False))
    width = int(fields["width"])
    if not own:
        refuse(KIND.name, old, where, "modules that have parameters of their own")
    for name, parameter in own.items():
        if parameter.dim() == 0 or parameter.shape[-1] < width:
            raise RequestError(
                f"edit of `{where}`: `{name}` {list(parameter.shape)} is narrower than {width}",
                "give a width that it has",
            )
    for name, parameter in own.items():
        value = torch.zeros(*parameter.shape[:-1], width, dtype=parameter.dtype,
                            device=parameter.device)  # fmt: skip
        setattr(old, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
    return old


KIND = Kind("columns", make, required=("width",), in_place=True)
