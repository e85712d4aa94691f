"""The processes of one run: which of them this is, and where they wait for each other.

Launched by `torchrun` or `accelerate launch`; otherwise there is one.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch

_PATIENCE = timedelta(hours=24)  # while the first process tokenises, the others wait


class Ranks:
    """This process among those of the run.

    Args:
        device: what resolve_device returned; "cpu" makes the processes talk by gloo.

    Attributes:
        index: this process's number, from 0.
        count: how many there are.
    """

    def __init__(self, device: str) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.index = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        if self.count > 1:
            from accelerate import PartialState

            PartialState(cpu=torch.device(device).type == "cpu", timeout=_PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
