"""`{"kind": "linear", "in": n, "out": m}`: a linear module of another size.

On disk: the same names as before, `NAME.weight [out, in]` ([in, out] for GPT-2's Conv1D) and
`NAME.bias [out]` where there was one. A size left out stays.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.edits.base import Fields, Kind, placement
from compress.checkpoints.edits.lowrank import linear_size


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Build a linear module of the given size, of the old one's class.

    Raises:
        RequestError: `old` is no linear module.
    """
    wide, tall = linear_size(old, "linear", where)
    wide, tall = int(fields.get("in", wide)), int(fields.get("out", tall))
    place = placement(old)
    if isinstance(old, Conv1D):
        with torch.device(place["device"]):
            return Conv1D(tall, wide).to(place["dtype"])
    return nn.Linear(wide, tall, bias=old.bias is not None, **place)


KIND = Kind("linear", make, optional=("in", "out"))
