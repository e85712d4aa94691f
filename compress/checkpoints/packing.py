"""Weights without their zeros: the values that aren't zero, and one bit per weight.

    NAME_values [non-zeros]        in row-major order, in the weight's dtype
    NAME_mask   [..., in / 8]      uint8, bit i of a byte stands for the weight i of its eight

A matrix of density d takes d + 1/16 of its dense bytes at 16 bits a weight, d + 1/32 at 32. Where
the last axis is no multiple of 8 the mask is flat. A negative zero counts as zero and comes back
positive. Where a row begins follows from the mask by counting bits, so no offsets are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

VALUES, MASK = "_values", "_mask"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_GATHER = 0x0102040810204080  # moves the low bits of eight bytes into the highest byte


class _Counted(Protocol):
    @property
    def numel(self) -> int: ...


def can_pack(shape: Sequence[int], dtype: torch.dtype, *, rows: bool = False) -> bool:
    """Whether a weight has a packed form: floating, and a number of elements divisible by 8.

    Args:
        shape: of the weight.
        dtype: of the weight.
        rows: whether its shape must follow from the mask's, as that of a stacked expert does.
    """
    count = shape[-1] if rows and shape else torch.Size(shape).numel()
    return dtype in _DTYPES and len(shape) >= 2 and count > 0 and count % 8 == 0


def packed_bytes(shape: Sequence[int], dtype: torch.dtype, nonzero: int) -> int:
    """Return the bytes that a weight takes packed, file headers aside."""
    return nonzero * dtype.itemsize + torch.Size(shape).numel() // 8


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (values, mask) of a weight; `can_pack` tells which have them."""
    kept = weight.detach() != 0
    words = kept.reshape(-1).view(torch.int64)
    mask = ((words * _GATHER) >> 56).to(torch.uint8)
    last = weight.shape[-1]
    if last % 8 == 0:
        mask = mask.reshape(*weight.shape[:-1], last // 8)
    return weight.detach()[kept], mask


def expand(values: Tensor, mask: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return the weight that (values, mask) stand for.

    Args:
        values: [non-zeros].
        mask: the bits; loaders cast it like a weight, which keeps whole numbers below 256.
        shape: of the weight; None follows from the mask's.

    Raises:
        ValueError: the mask isn't of that shape, or has more or fewer ones than there are values.
    """
    wanted = torch.Size(shape if shape is not None else (*mask.shape[:-1], 8 * mask.shape[-1]))
    if mask.numel() * 8 != wanted.numel():
        raise ValueError(f"the mask has {mask.numel() * 8} bits for a weight {list(wanted)}")
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    kept = ((mask.to(torch.uint8).reshape(-1, 1) >> places) & 1).bool().reshape(wanted)
    ones = int(torch.count_nonzero(kept))
    if values.shape != (ones,):
        raise ValueError(f"the mask has {ones} ones, but the values are {list(values.shape)}")
    return torch.zeros(wanted, dtype=values.dtype, device=values.device).masked_scatter_(
        kept, values
    )


def packed_names(names: Mapping[str, object]) -> Iterator[str]:
    """Yield NAME for each pair NAME_values, NAME_mask among the names on disk."""
    for name in names:
        base = name.removesuffix(VALUES)
        if base != name and base + MASK in names:
            yield base


def whole_counts(tensors: Mapping[str, _Counted]) -> dict[str, int]:
    """Return name on disk -> number of elements, where packed values stand for their whole weight.

    Args:
        tensors: name on disk -> anything with a `numel`; masks are left out.
    """
    counts = {name: tensor.numel for name, tensor in tensors.items()}
    for name in packed_names(tensors):
        counts[name + VALUES] = 8 * counts.pop(name + MASK)
    return counts
