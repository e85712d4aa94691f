"""2:4 zeros made to pay on a GPU: weights turned into torch's semi-structured form after loading.

The form holds half of the values and two bits for the place of each; NVIDIA's sparse tensor cores
multiply by it. It helps large batches and prefill, hardly the decoding of single sequences. Files
stay as they are: this is done at load, on request.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

from compress.checkpoints.anatomy import Matrix, read_anatomy
from compress.errors import RequestError

CAPABILITY = (8, 0)
CUTLASS = (32, 64)  # rows and columns must be multiples, for 16-bit weights
CUSPARSELT = (16, 16)


class Converted(NamedTuple):
    """What became of each matrix of the blocks."""

    converted: tuple[str, ...]
    """Names of the modules that now multiply by a semi-structured weight."""
    left: dict[str, str]
    """Matrix -> why it stays dense."""

    def __str__(self) -> str:
        reasons = Counter(self.left.values())
        told = "".join(f"; {count} left: {reason}" for reason, count in reasons.items())
        return f"{len(self.converted)} matrices are semi-structured{told}"


def require_cuda() -> None:
    """Refuse a machine that can't multiply semi-structured weights.

    Raises:
        RequestError: no CUDA device, or one older than compute capability 8.0.
    """
    if not torch.cuda.is_available():
        raise RequestError(
            "`semi_structured=True` needs a CUDA device, and this machine has none",
            "load without it: the weights are the same, their zeros are multiplied",
        )
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        raise RequestError(
            f"`semi_structured=True` needs compute capability 8.0, this device has "
            f"{found[0]}.{found[1]}",
            "load without it: the weights are the same, their zeros are multiplied",
        )


def obstacle(weight: Tensor, multiples: tuple[int, int] = CUSPARSELT) -> str | None:
    """Why a weight can't be semi-structured, None where it can.

    Args:
        weight: [out, in], on any device.
        multiples: of which rows and columns must be.
    """
    if weight.dim() != 2:
        return f"has {weight.dim()} dimensions, not 2"
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"{str(weight.dtype).removeprefix('torch.')}, not float16 or bfloat16"
    if not weight.is_contiguous():
        return "not contiguous"
    if weight.shape[0] % multiples[0] or weight.shape[1] % multiples[1]:
        return f"its sides aren't multiples of {multiples[0]} and {multiples[1]}"
    if bool(((weight != 0).unflatten(1, (-1, 4)).sum(2) > 2).any()):
        return "more than 2 of some 4 consecutive weights aren't zero"
    return None


def to_semi_structured(model: nn.Module) -> Converted:
    """Turn every weight of the blocks that can be into the semi-structured form, in place.

    Args:
        model: on a CUDA device. It can't be trained or saved afterwards.

    Raises:
        RequestError: no such device.
    """
    require_cuda()
    multiples = _multiples()
    converted: list[str] = []
    left: dict[str, str] = {}
    for matrix in _eligible(model, left):
        module = model.get_submodule(matrix.module)
        weight = module._parameters["weight"]
        assert weight is not None
        reason = "not on a CUDA device" if not weight.is_cuda else obstacle(weight, multiples)
        if reason is not None:
            left[matrix.name] = reason
            continue
        sparse = to_sparse_semi_structured(weight.detach())
        module.weight = nn.Parameter(sparse, requires_grad=False)
        converted.append(matrix.name)
    return Converted(tuple(converted), left)


def _eligible(model: nn.Module, left: dict[str, str]) -> list[Matrix]:
    """The matrices that are a linear layer's whole weight; the others go to `left`."""
    found = []
    for matrix in read_anatomy(model).matrices:
        if not isinstance(model.get_submodule(matrix.module), nn.Linear):
            left[matrix.name] = "not the weight of a linear layer of its own"
        elif matrix.rows is not None:
            left[matrix.name] = "part of a larger weight"
        else:
            found.append(matrix)
    return found


def _multiples() -> tuple[int, int]:
    """What rows and columns must be multiples of, by the library that torch will use."""
    if not torch.backends.cusparselt.is_available():
        SparseSemiStructuredTensor._FORCE_CUTLASS = True
    return CUTLASS if SparseSemiStructuredTensor._FORCE_CUTLASS else CUSPARSELT
