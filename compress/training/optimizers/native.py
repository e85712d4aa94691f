"""The passes over memory on a CPU: native.cpp, built at first use, one call for all tensors.

torch.compile reaches the same speed within a kernel, but checks and unpacks each of its arguments
in Python; with the 75 tensors of a small model that costs a third of the step. Building takes two
to three seconds; the library is kept in the cache, by its source, the compiler and the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from compress.checkpoints.caches import cache_directory, put_whole

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
    """The library, or why there is none; the same answer for the whole process."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "no C++ compiler was found"
    try:
        kept = cache_directory() / "native" / f"{_key(compiler.split())}.so"
        with contextlib.suppress(OSError):  # absent, damaged, or where nothing may be loaded from
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory(prefix="compress-") as place:
            built = Path(place) / "native.so"
            _build(compiler.split(), built)
            with contextlib.suppress(OSError):
                put_whole(kept, built.read_bytes())
            return ctypes.CDLL(str(built))
    except subprocess.CalledProcessError as error:
        return error.stderr.strip().partition("\n")[0] or str(error)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _key(compiler: list[str]) -> str:
    """A digest of all that the library depends on: source, compiler and machine."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=60).stdout
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    machine = f"{platform.machine()} {platform.processor()} {abilities}"
    parts = (" ".join((*compiler, *_FLAGS)).encode(), version, machine.encode())
    return hashlib.sha256(b"\0".join((*parts, _SOURCE.read_bytes()))).hexdigest()


def _build(compiler: list[str], target: Path) -> None:
    """Build for this machine, or, where the compiler doesn't know it, for any of its kind.

    Raises:
        CalledProcessError, TimeoutExpired, OSError: it can't be built.
    """
    for machine in (["-march=native"], []):
        command = [*compiler, *_FLAGS, *machine, str(_SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            return
    done.check_returncode()


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
