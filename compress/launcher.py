"""What a launcher of several processes (torchrun, accelerate launch) has told this one.

Imports nothing, so every room may use it, also before torch is there.
"""

from __future__ import annotations

import os

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MORE = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")


def launched() -> bool:
    """Whether a launcher started this process, be it the only one."""
    return all(map(os.environ.get, _NAMES))


def world_size() -> int:
    """How many processes a launcher has started; 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def go_alone() -> None:
    """Forget the launcher: what follows is one process's work, and nobody will come to share it."""
    for name in (*_NAMES, *_MORE):
        os.environ.pop(name, None)
