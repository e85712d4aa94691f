"""`{"kind": "attention", "heads": h, "head_dim": d}`: attention of fewer or thinner heads.

The module keeps its projections, which have edits of their own; only its count of heads and their
length change. `scaling`, a number made from the stock config, stays what it was: the products of
queries and keys lose terms, not their scale. On disk: nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.checkpoints.edits.base import Fields, Kind, refuse

_COUNTS = ("num_attention_heads", "num_heads", "num_key_value_heads")


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Set the numbers, in place.

    Raises:
        RequestError: the module isn't attention with a `head_dim` and a number of heads.
    """
    module: Any = old
    counts = [name for name in _COUNTS if isinstance(getattr(module, name, None), int)]
    if not isinstance(getattr(module, "head_dim", None), int) or not counts:
        refuse(KIND.name, old, where, "attention modules that have `head_dim` and a head count")
    module.head_dim = int(fields["head_dim"])
    for name in counts:
        setattr(module, name, int(fields["heads"]))
    return module


KIND = Kind("attention", make, required=("heads", "head_dim"), in_place=True)
