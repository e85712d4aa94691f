"""Largest entry and norm of many gradients, over all processes that hold a part of them.

On the CPU a gradient is read once, in rows: where few rows hold an entry that AdaClip cuts, only
these are read again. Elsewhere, where looking at a result means waiting for the device, and without
a compiler, the second reduction reads all. Two collectives a step, whatever the number of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce
from torch.distributed.tensor import DTensor

from compress.training.optimizers import kernels, native
from compress.training.optimizers.base import state_dtype

Mesh = tuple[Any, ...]


def mesh_of(parameter: Tensor) -> Mesh:
    """The process groups over which a parameter is sharded; none for an ordinary tensor."""
    if not isinstance(parameter, DTensor):
        return ()
    mesh = parameter.device_mesh
    return tuple(
        mesh.get_group(i) for i, place in enumerate(parameter.placements) if place.is_shard()
    )


def means(tensors: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The mean of each tensor over all processes that hold a part of it, 0-d.

    Args:
        tensors: pairs of a parameter and this process's part of a tensor of its placement.
    """
    found = [part.sum() / max(_whole(p, part), 1) for p, part in tensors]
    by_mesh: dict[Any, list[int]] = {}
    for place, ((p, part), mean) in enumerate(zip(tensors, found)):
        by_mesh.setdefault((mesh_of(p), part.device, mean.dtype), []).append(place)
    for (mesh, *_), places in by_mesh.items():
        if mesh:
            joined = torch.stack([found[place] for place in places])
            for group in mesh:
                all_reduce(joined, ReduceOp.SUM, group=group)
            for place, mean in zip(places, joined.unbind()):
                found[place] = mean
    return found


def _whole(parameter: Tensor, part: Tensor) -> int:
    return parameter.numel() if isinstance(parameter, DTensor) else part.numel()


def measure(gradients: Sequence[Tensor], engine: kernels.Engine, mesh: Mesh) -> Measured:
    """Reduce gradients for the first time."""
    like = gradients[0]
    if engine.is_native(like.new_empty(0, dtype=state_dtype(like)), like):
        return MeasuredRows(gradients, mesh, engine)
    return Measured(gradients, mesh, engine)


class Measured:
    """Gradients and their largest entries; `norm_after` reads them again.

    Attributes:
        largest: float64 [n], max |g| over all processes; infinite where anything isn't finite.
    """

    def __init__(self, gradients: Sequence[Tensor], mesh: Mesh, engine: kernels.Engine) -> None:
        self._gradients, self._mesh, self._engine = gradients, mesh, engine
        self.largest = self._over_processes(self._largest(), ReduceOp.MAX)

    def _largest(self) -> Tensor:
        whole = [g if g.numel() else g.new_zeros(1) for g in self._gradients]
        return torch.stack(torch._foreach_norm(whole, float("inf"))).double()

    def _over_processes(self, values: Tensor, how: Any) -> Tensor:
        values = torch.where(torch.isfinite(values), values, float("inf"))  # NaN has no maximum
        for group in self._mesh:
            all_reduce(values, how, group=group)
        return values

    def norm_after(self, limit: Tensor, factor: Tensor, over: Tensor, *, clamp: bool) -> Tensor:
        """The norms once entries above `limit` are clamped, or times `factor`: float64 [n].

        Args:
            limit, factor: float64 [n].
            over: bool [n], where anything is above the limit.
            clamp: which of the two.
        """
        squares = self._squares(limit, factor, over, clamp)
        return self._over_processes(squares, ReduceOp.SUM).sqrt()

    def _squares(self, limit: Tensor, factor: Tensor, over: Tensor, clamp: bool) -> Tensor:
        dtype = torch.promote_types(self._gradients[0].dtype, torch.float32)
        rows = torch.zeros(len(limit), kernels.SCALARS, dtype=dtype, device=limit.device)
        rows[:, kernels.CLIP], rows[:, kernels.CAP] = limit, factor
        sums = [torch.zeros_like(row) for row in rows]  # each its own memory: graphs want that
        filled = [i for i, g in enumerate(self._gradients) if g.numel()]
        flat = [g.reshape(-1) for g in self._gradients]
        lists: list[list[Tensor]] = [flat, list(rows.unbind()), sums]
        kernel = kernels.square_clamped if clamp else kernels.square_scaled
        if filled:
            self._engine.run(kernel, [[tensors[i] for i in filled] for tensors in lists])
        return torch.stack(sums)[:, 0].double()


class MeasuredRows(Measured):
    """On the CPU: each gradient is read once, in rows, and rows above a limit once more."""

    def _largest(self) -> Tensor:
        dtype = state_dtype(self._gradients[0])
        self._rows = native.RowStatistics([g.contiguous() for g in self._gradients], dtype)
        return self._rows.largest

    def _squares(self, limit: Tensor, factor: Tensor, over: Tensor, clamp: bool) -> Tensor:
        return self._rows.squares_after(limit, factor, clamp=clamp)
