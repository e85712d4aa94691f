"""Three routines of BLAS and LAPACK, called without holding the interpreter's lock.

scipy's Python wrappers hold it while they compute, so that threads with a matrix each wait for one
another. The same routines lie at addresses that scipy publishes for compiled code
(`scipy.linalg.cython_blas`, `cython_lapack`); ctypes gives the lock back while it calls them.

All of it in LAPACK's own order: columns one after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

_LETTER = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}


def gram_upper(matrix: np.ndarray) -> np.ndarray:
    """M Mᵀ for M [short, long] with rows or columns contiguous; the upper triangle alone is set.

    Args:
        matrix: float32 or float64, only read.

    Returns:
        [short, short] of the same type, columns contiguous.
    """
    short, long = matrix.shape
    by_rows = matrix.flags.c_contiguous  # LAPACK then sees the transpose
    out = np.empty((short, short), dtype=matrix.dtype, order="F")
    number = ctypes.c_float if matrix.dtype == np.float32 else ctypes.c_double
    one, nothing = ctypes.byref(number(1.0)), ctypes.byref(number(0.0))
    trans, leading = (b"T", long) if by_rows else (b"N", short)
    _routine(cython_blas, _LETTER[matrix.dtype] + "syrk", 10)(
        b"U", trans, _int(short), _int(long), one, _at(matrix), _int(leading), nothing, _at(out),
        _int(short),
    )  # fmt: skip
    return out


def tridiagonal(upper: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal [n] and what stands beside it [n - 1] of the tridiagonal form; `upper` is used up.

    Args:
        upper: [n, n] symmetric, float32 or float64, columns contiguous, upper triangle.
        block: columns that are reduced together.

    Raises:
        LinAlgError: the routine refused its arguments.
    """
    side, dtype = len(upper), upper.dtype
    diagonal, beside, tau = (np.empty(n, dtype=dtype) for n in (side, side - 1, side - 1))
    work, failed = np.empty(side * block, dtype=dtype), ctypes.c_int(0)
    _routine(cython_lapack, _LETTER[dtype] + "sytrd", 10)(
        b"U", _int(side), _at(upper), _int(side), _at(diagonal), _at(beside), _at(tau), _at(work),
        _int(len(work)), ctypes.byref(failed),
    )  # fmt: skip
    if failed.value:
        raise np.linalg.LinAlgError(f"sytrd refused argument {-failed.value}")
    return diagonal, beside


def tridiagonal_eigenvalues(diagonal: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Eigenvalues, ascending, of a symmetric tridiagonal matrix, in float64.

    Args:
        diagonal: [n].
        beside: [n - 1].

    Raises:
        LinAlgError: they didn't converge.
    """
    values, other = diagonal.astype(np.float64), beside.astype(np.float64)
    failed = ctypes.c_int(0)
    _routine(cython_lapack, "dsterf", 4)(
        _int(len(values)), _at(values), _at(other), ctypes.byref(failed)
    )
    if failed.value:
        raise np.linalg.LinAlgError("eigenvalues did not converge")
    return values


@cache
def _routine(module: Any, name: str, arguments: int) -> Callable[..., None]:
    """The routine at the address that a module of scipy publishes."""
    capsule, api = module.__pyx_capi__[name], ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = (
        ctypes.c_char_p,
        [ctypes.py_object],
    )
    api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = (
        ctypes.c_void_p,
        [ctypes.py_object, ctypes.c_char_p],
    )
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def _at(array: np.ndarray) -> int:
    return array.ctypes.data


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))
