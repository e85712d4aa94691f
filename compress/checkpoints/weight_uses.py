"""Every multiplication by a weight, seen where torch carries it out, whoever asks for it.

A linear layer's inputs are usually those of its module. Some code takes the weight and multiplies
by it (mamba's `dt_proj`, torch's own attention, stacked experts): what such a weight reads can only
be seen at the multiplication. Weights are known by their place in memory, so views count too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compress.checkpoints.matrices import Matrix

# Operation -> where its two factors stand among the arguments; linear's second is transposed.
_FACTORS = {
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "linear", "_grouped_mm", "grouped_mm"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), (1, 2)),
}


class Addresses:
    """Finds which of some tensors a view belongs to, by its place in memory.

    Args:
        tensors: name -> tensor in memory; those on meta, and wrappers without memory of their own,
            are left out. Of two names of one tensor the first counts.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        placed: dict[tuple[torch.device, int], tuple[int, str]] = {}
        for name, tensor in tensors.items():
            if not tensor.is_meta and tensor.numel() and tensor.data_ptr():
                end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
                placed.setdefault((tensor.device, tensor.data_ptr()), (end, name))
        self._starts: dict[torch.device, list[int]] = {}
        self._found: dict[torch.device, list[tuple[int, str]]] = {}
        for device, start in sorted(placed, key=lambda key: key[1]):
            self._starts.setdefault(device, []).append(start)
            self._found.setdefault(device, []).append(placed[device, start])

    def find(self, value: object) -> str | None:
        """Return the name of the tensor in whose memory `value` lies, None if in none."""
        if not isinstance(value, Tensor) or value.is_meta or value.device not in self._starts:
            return None
        address = value.data_ptr()
        if not address:
            return None
        at = bisect_right(self._starts[value.device], address) - 1
        if at < 0:
            return None
        end, name = self._found[value.device][at]
        return name if address < end else None


class Product(NamedTuple):
    """A multiplication in which a weight is one factor.

    Attributes:
        weight: the factor that lies in the weight's memory, turned so that it is [..., out, in] if
            the weight is applied to inputs.
        inputs: the other factor, [..., in].
        offsets: int [groups], where each group's rows end, of a grouped multiplication.
    """

    weight: Tensor
    inputs: Tensor
    offsets: Tensor | None


class WeightUses(TorchDispatchMode):
    """Reports the operations that touch chosen weights while the mode is on.

    Args:
        find: gives the name of the weight that a tensor is a view of, or None.
        used: called before the operation with the weight's name, the operation's name (`mm`) and,
            where it is a product of two factors, the product.
    """

    def __init__(
        self,
        find: Callable[[object], str | None],
        used: Callable[[str, str, Product | None], None],
    ) -> None:
        super().__init__()
        self._find = find
        self._used = used

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        operation = func.overloadpacket.__name__
        found = [(self._find(value), value) for value in _tensors(args)]
        for name, value in found:
            if name is not None:
                self._used(name, operation, _product(operation, args, options, value))
        return func(*args, **options)


class WeightCalls(TorchFunctionMode):
    """Hands over the products with chosen weights that Python code asks for, while on.

    Shapes are as the code has them: torch itself may fold a batch's axes into one before it
    multiplies, which is what `WeightUses` then sees.

    Args:
        find: as for `WeightUses`.
        called: given the weight's name, the product, and what carries it out and returns its
            result.
    """

    def __init__(
        self,
        find: Callable[[object], str | None],
        called: Callable[[str, Product, Callable[[], Any]], Any],
    ) -> None:
        super().__init__()
        self._find = find
        self._called = called

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        operation = getattr(func, "__name__", "").strip("_")
        if operation in _FACTORS and len(args) > _FACTORS[operation][1]:
            for value in args:
                name = self._find(value)
                product = _product(operation, args, options, value) if name is not None else None
                if name is not None and product is not None:
                    return self._called(name, product, lambda: func(*args, **options))
        return func(*args, **options)


def _tensors(args: Iterable[Any]) -> Iterable[Any]:
    for value in args:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value


def _product(
    operation: str, args: Sequence[Any], options: Mapping[str, Any], weight: Tensor
) -> Product | None:
    """Return the product that an operation makes with `weight`, None if it makes none."""
    if operation not in _FACTORS:
        return None
    left, right = (args[place] for place in _FACTORS[operation])
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return None
    if operation == "linear":
        return Product(right, left, None) if right is weight else None
    offsets = args[2] if operation.endswith("grouped_mm") and len(args) > 2 else options.get("offs")
    if right is weight and right.ndim > 1:
        return Product(right.mT, left, offsets)
    if left is weight and left.ndim > 1:
        return Product(left, right.mT if right.ndim > 1 else right, offsets)
    return None


class ExpertRows(NamedTuple):
    """What one expert, or a weight that is no expert (None), reads in a product."""

    expert: int | None
    rows: Tensor
    """[..., in]."""


def rows_of(product: Product, parameter: Tensor, matrix: Matrix) -> list[ExpertRows]:
    """Return what a weight reads in a product, each expert apart; empty if it isn't applied so.

    Args:
        product: the multiplication.
        parameter: the whole parameter that `product.weight` is part of, [out, in], [in, out] or
            stacked [experts, …, …].
        matrix: any matrix of it: it tells whether inputs come first.
    """
    turned = parameter.mT if matrix.transposed else parameter
    weight, inputs = product.weight, product.inputs
    if weight.shape[-2:] != turned.shape[-2:] or weight.stride()[-2:] != turned.stride()[-2:]:
        return []
    if parameter.ndim == 2:
        return [ExpertRows(None, inputs)]
    count = int(parameter.shape[0])
    if weight.ndim == 2 or weight.shape[0] == 1:
        shift = (weight.data_ptr() - parameter.data_ptr()) // parameter.element_size()
        return [ExpertRows(shift // parameter.stride(0), inputs)]
    if weight.shape[0] != count or weight.stride(0) != parameter.stride(0):
        return []
    if product.offsets is not None and inputs.ndim == 2:
        ends = product.offsets.tolist()
        starts = [0, *ends[:-1]]
        return [ExpertRows(e, inputs[a:b]) for e, (a, b) in enumerate(zip(starts, ends))]
    if inputs.ndim == 3 and inputs.shape[0] == count:
        # Every expert gets every row; those that weren't sent to it are zero, and say nothing.
        return [ExpertRows(expert, inputs[expert]) for expert in range(count)]
    return []
