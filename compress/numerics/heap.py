"""Freed memory goes back to the system, where the C library would keep it."""

from __future__ import annotations

import contextlib
import ctypes


def return_free_memory() -> None:
    """Have the C library give back what was freed.

    glibc keeps freed matrices of up to 32 MB for later. Blocks that each free and take matrices of
    a few sizes leave gaps that none of the next fits: memory then grows with the number of blocks,
    though one alone is held. Takes some milliseconds; does nothing where the C library isn't glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
