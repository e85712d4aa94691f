"""The passes over memory on a CPU: native.cpp, built at first use, one call for all tensors.

torch.compile reaches the same speed within a kernel, but checks and unpacks each of its arguments
in Python; with the 75 tensors of a small model that costs a third of the step. Building takes
about two seconds, once in a process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("native.cpp")
# No fast-math: each operation is rounded as IEEE 754 has it.
_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_PAIRS = (  # of state and gradient
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.bfloat16),
)
ROW = 4096
"""Entries of a gradient that are reduced together."""


class NoCompiler(RuntimeError):
    """Why native.cpp can't be built or loaded."""


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The built library, or why there is none; the same answer for the whole process."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "no C++ compiler was found"
    fault = ""
    with tempfile.TemporaryDirectory(prefix="compress-") as place:
        built = Path(place) / "native.so"
        for machine in (["-march=native"], []):  # not every compiler knows the machine
            command = [*compiler.split(), *_FLAGS, *machine, str(_SOURCE), "-o", str(built)]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
                return ctypes.CDLL(str(built))
            except subprocess.CalledProcessError as error:
                fault = error.stderr.strip().partition("\n")[0] or str(error)
            except (OSError, subprocess.TimeoutExpired) as error:
                fault = str(error)
    return fault


def library() -> ctypes.CDLL:
    """The built library.

    Raises:
        NoCompiler: it can't be built or loaded here.
    """
    found = _load()
    if isinstance(found, str):
        raise NoCompiler(found)
    return found


def fits(state: Tensor, gradient: Tensor) -> bool:
    """Whether there are kernels for these dtypes, on this device."""
    alike = state.device.type == gradient.device.type == "cpu"
    return alike and (state.dtype, gradient.dtype) in _PAIRS


def run(name: str, lists: Sequence[Sequence[Tensor]], state: int, gradient: int) -> None:
    """Call a kernel on the first tensor of each list, the second, and so on.

    Args:
        name: of the kernel.
        lists: equally long, of contiguous tensors on the CPU.
        state, gradient: which lists are those; they give the sizes and the dtypes.
    """
    like = lists[state][0]
    function = getattr(library(), f"{name}_{_ending(like, lists[gradient][0])}")
    sizes = [tensor.shape[0] for tensor in lists[state]]
    width = like.shape[1] if like.ndim > 1 else 1
    function(*_call(lists, sizes, width), _threads())


class RowStatistics:
    """Each row's largest |entry| and sum of squares, of some gradients.

    Args:
        gradients: contiguous, of one dtype that `fits`, on the CPU.
        dtype: of the state.

    Attributes:
        largest: of each gradient, float64 [n]; NaN or infinite where anything isn't finite.
    """

    def __init__(self, gradients: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._gradients, self._dtype = gradients, dtype
        self._sizes = [g.numel() for g in gradients]
        rows = sum((size + ROW - 1) // ROW for size in self._sizes)
        self._tops, self._squares = torch.empty(2, rows, dtype=dtype).unbind()
        self.largest = torch.empty(len(gradients), dtype=torch.float64)
        self._function("measure")(
            *_call([gradients], self._sizes, ROW),
            *map(_address, (self._tops, self._squares, self.largest)),
            _threads(),
        )

    def squares_after(self, limit: Tensor, factor: Tensor, *, clamp: bool) -> Tensor:
        """The sums of squares once entries above a limit are cut: float64 [n].

        Args:
            limit, factor: float64 [n]; entries above the limit are clamped to it, or times factor.
            clamp: which of the two.
        """
        found = torch.empty_like(self.largest)
        limit, factor = limit.contiguous(), factor.contiguous()
        self._function("measure_after")(
            *_call([self._gradients], self._sizes, ROW),
            *map(_address, (self._tops, self._squares, limit, factor)),
            ctypes.c_int(clamp),
            _address(found),
        )
        return found

    def _function(self, name: str) -> ctypes._NamedFuncPointer:
        like = torch.empty(0, dtype=self._dtype)
        return getattr(library(), f"{name}_{_ending(like, self._gradients[0])}")


def _ending(state: Tensor, gradient: Tensor) -> str:
    return f"{_NAMES[state.dtype]}_{_NAMES[gradient.dtype]}"


def _call(lists: Sequence[Sequence[Tensor]], sizes: list[int], width: int) -> tuple:
    count = len(sizes)
    addresses = [tensor.data_ptr() for tensors in lists for tensor in tensors]
    return (
        ctypes.c_int64(count),
        (ctypes.c_int64 * len(addresses))(*addresses),
        (ctypes.c_int64 * count)(*sizes),
        ctypes.c_int64(width),
    )


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _threads() -> ctypes.c_int64:
    return ctypes.c_int64(torch.get_num_threads())
