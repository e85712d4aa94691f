"""How far a step moves the product of the factors: its spectral norm, in the log.

Both factors move at once, so the product can jump where neither does; large factorised runs spike
there first (Spectron, arXiv:2602.12429).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.lowrank.scratch.factors import low_rank_layers

UPDATE = "update_norm"


def update_norm(up: Tensor, down: Tensor, old_up: Tensor, old_down: Tensor) -> Tensor:
    """Return the spectral norm of up · down - old_up · old_down, without forming it.

    Args:
        up, old_up: [out, rank].
        down, old_down: [rank, in].
    """
    left = torch.linalg.qr(torch.cat([up, old_up], 1).float()).R
    right = torch.linalg.qr(torch.cat([down, -old_down], 0).T.float()).R
    return torch.linalg.matrix_norm(left @ right.T, ord=2)


class UpdateNorms:
    """Tells, in the log of a step, the largest spectral norm by which a product moved in it.

    Args:
        every: steps of a log; in the others nothing is kept or computed.
    """

    name = "update-norms"

    def __init__(self, every: int) -> None:
        self.every = every
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._model: nn.Module | None = None

    def __call__(self, model: nn.Module, step: int) -> None:
        """Remember the factors before a step that will be logged."""
        self._before, self._model = {}, model
        if (step + 1) % self.every == 0:
            self._before = {
                name: (_flat(layer.up).clone(), _flat(layer.down).clone())
                for name, layer in low_rank_layers(model).items()
            }

    @torch.no_grad()
    def report(self) -> dict[str, Any]:
        """The largest norm of the step that is logged; nothing where none was kept."""
        if not self._before or self._model is None:
            return {}
        layers = low_rank_layers(self._model)
        moved = [
            update_norm(_flat(layers[name].up), _flat(layers[name].down), *old)
            for name, old in self._before.items()
        ]
        self._before = {}
        return {UPDATE: float(torch.stack(moved).max())}

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""


def _flat(module: Any) -> Tensor:
    weight: Tensor = module.weight.detach()
    return weight.flatten(1)
