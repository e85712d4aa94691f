"""Two optimizers in one, each with its own kind of parameters, as Muon needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Paired(torch.optim.Optimizer):
    """Steps several optimizers as one: one list of groups, one state, one state_dict.

    Args:
        parts: optimizers by name, made of disjoint parameters.
    """

    def __init__(self, parts: dict[str, torch.optim.Optimizer]) -> None:
        self._parts = parts
        groups = [{**g, "part": name} for name, part in parts.items() for g in part.param_groups]
        super().__init__(groups, {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step each part on its groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():
            # Anew each time: loading a state, and schedulers, replace or change these.
            part.param_groups = [g for g in self.param_groups if g["part"] == name]
            part.state = self.state
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts}
