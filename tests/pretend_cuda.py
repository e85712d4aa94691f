"""A device that calls itself CUDA and computes on the CPU, to find mistakes where no GPU is there.

Inside `pretend()` tensors of "cuda" are ones of this file's: they hold a CPU tensor, refuse to meet
tensors of the CPU where real ones would, can't become NumPy arrays, and every read by the host is
counted. Values are those of the CPU, so that results must equal the CPU's to the last bit: this
tests where tensors lie and what is waited for, not kernels.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # before anything of torch.cuda is replaced
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
# What real CUDA takes from the CPU: copies; numbers; indices.
_MIXED = {
    aten.copy_,
    aten._to_copy,
    aten.index,
    aten.index_put_,
    aten.index_put,
    aten._index_put_impl_,
}
_READS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten._unique2}
syncs: Counter[str] = Counter()


class OnCuda(Tensor):
    """A tensor of the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> OnCuda:
        made = Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(),
            dtype=real.dtype, device=CUDA,
        )  # fmt: skip
        made.held = real
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"OnCuda({self.held!r})"

    def __deepcopy__(self, memo):
        return type(self)(self.held.clone())


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Named(TorchFunctionMode):
    """Gives "cuda" its number, which PyTorch would ask a driver for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def numbered(x):
            named = isinstance(x, (str, torch.device)) and str(x) == "cuda"
            return CUDA if named else x

        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnCuda):
            return _index(*args)  # the C++ of indexing asks a driver for the device
        if func is Tensor.data_ptr and isinstance(args[0], OnCuda):
            return args[0].held.data_ptr()
        if func is Tensor.tolist and isinstance(args[0], OnCuda):
            syncs["tolist"] += 1
            return args[0].held.tolist()
        if func is Tensor.cuda:
            return args[0].to(CUDA)
        own = tuple(map(numbered, args)), {k: numbered(v) for k, v in (kwargs or {}).items()}
        try:
            return func(*own[0], **own[1])
        except RuntimeError as error:
            if "not linked with support for cuda" not in str(error):
                raise
        # Some of PyTorch's bindings ask a driver too, before they come to the operator.
        syncs[f"{func.__name__} by itself"] += 1
        with torch.utils._python_dispatch._disable_current_modes():
            found = func(*pytree.tree_map(_held, own[0]), **pytree.tree_map(_held, own[1]))
            return pytree.tree_map(lambda x: OnCuda(x) if isinstance(x, Tensor) else x, found)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnCuda) else x


def _index(tensor: OnCuda, where: Any, *value: Any) -> OnCuda | None:
    masks = [x for x in pytree.tree_leaves(where) if isinstance(x, OnCuda)]
    syncs["index by mask"] += sum(mask.dtype == torch.bool for mask in masks)
    where = pytree.tree_map(_held, where)
    with torch.utils._python_dispatch._disable_current_modes():
        if value:
            tensor.held[where] = _held(value[0])
            return None
        return OnCuda(tensor.held[where])


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    packet = func.overloadpacket
    given = pytree.tree_leaves((args, kwargs))
    there = any(isinstance(x, OnCuda) for x in given)
    if packet == aten._fused_sdp_choice:
        return 0  # the plain one: fused kernels have other names on each device
    if packet == aten._pin_memory:
        return args[0]
    device = kwargs.get("device")
    if there:
        here = [x for x in given if isinstance(x, Tensor) and not isinstance(x, OnCuda) and x.ndim]
        if here and packet not in _MIXED:
            raise RuntimeError(
                f"{func}: tensors of cuda:0 and cpu, of shape {tuple(here[0].shape)}"
            )
    out_there = torch.device(device).type == "cuda" if device is not None else there
    if out_there and any(isinstance(x, torch.Generator) for x in given):
        raise RuntimeError(f"{func}: a generator of the CPU for a tensor of cuda:0")
    if there and (packet in _READS or not out_there):
        syncs[str(packet)] += 1
    if packet == aten.copy_ and isinstance(args[1], OnCuda) and not isinstance(args[0], OnCuda):
        syncs["copy_ to cpu"] += 1
        out_there = False
    where = {"device": torch.device("cpu")} if device is not None else {}
    keep = {k: v for k, v in kwargs.items() if k != "pin_memory"}
    found = func(*pytree.tree_map(_held, args), **{**pytree.tree_map(_held, keep), **where})
    if not out_there:
        if packet == aten.copy_:
            return args[0]
        return found
    wrapped = pytree.tree_map(lambda x: OnCuda(x) if isinstance(x, Tensor) else x, found)
    if not there:
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


@contextlib.contextmanager
def pretend() -> Iterator[Counter[str]]:
    """Have a GPU inside; gives the reads of the host, by operator."""
    run = threading.Thread.run

    def with_mode(self: threading.Thread) -> None:
        with _Named(), _Mode():
            run(self)

    nothing = lambda *args, **kwargs: None
    told: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "max_memory_allocated": lambda *a: 0, "memory_allocated": lambda *a: 0,
        "mem_get_info": lambda *a: (8 << 30, 8 << 30), "get_device_name": lambda *a: "pretended",
        "get_device_capability": lambda *a: (8, 0), "is_bf16_supported": lambda *a: True,
        "is_current_stream_capturing": lambda: False, "get_rng_state_all": list,
    }  # fmt: skip
    told |= dict.fromkeys(
        ("_lazy_init", "synchronize", "set_device", "empty_cache", "reset_peak_memory_stats",
         "manual_seed_all", "manual_seed"), nothing,
    )  # fmt: skip
    syncs.clear()
    with contextlib.ExitStack() as stack:
        for name, value in told.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(threading.Thread, "run", with_mode))
        stack.enter_context(_Named())
        stack.enter_context(_Mode())
        yield syncs
