"""Largest entry and norm of many gradients, over all processes that hold a part of them.

On the CPU a gradient is read once, in rows: where few rows hold an entry that AdaClip cuts, only
these are read again. Elsewhere, where looking at a result means waiting for the device, the second
reduction reads all. Two collectives a step, whatever the number of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce
from torch.distributed.tensor import DTensor

from compress.training.optimizers import kernels

ROW = 4096
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
    if gradients[0].device.type != "cpu":
        return Measured(gradients, mesh, engine)
    return MeasuredRows(gradients, mesh, engine)


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
    """On the CPU: gradients in rows of 4096, with each row's largest entry and sum of squares."""

    def _largest(self) -> Tensor:
        self._rows = [_in_rows(g) for g in self._gradients]
        self._stats = _reduce_rows(self._rows, self._engine)
        tops = []
        for g, (largest, _) in zip(self._gradients, self._stats):
            rest = _rest(g).abs().to(largest.dtype)
            # Of an empty shard the largest entry is 0.
            tops.append(torch.cat([largest, rest]).max() if g.numel() else largest.new_zeros(()))
        return torch.stack(tops).double()

    def _squares(self, limit: Tensor, factor: Tensor, over: Tensor, clamp: bool) -> Tensor:
        sums = []
        # Numbers of CPU tensors: nothing is waited for.
        for i, (top, by, hit) in enumerate(zip(limit.tolist(), factor.tolist(), over.tolist())):
            largest, squares = self._stats[i]
            rest = kernels.clipped_square(_rest(self._gradients[i]), top, by, clamp).double()
            if not hit:
                sums.append(rest + squares.sum(dtype=torch.float64))
                continue
            above = largest > top
            again = kernels.clipped_square(self._rows[i][above], top, by, clamp).double()
            sums.append(rest + again + torch.where(above, 0.0, squares).sum(dtype=torch.float64))
        return torch.stack(sums)


def _in_rows(g: Tensor) -> Tensor:
    rows = g.numel() // ROW
    if not g.is_contiguous():
        g = g.contiguous()
    return g.view(-1)[: rows * ROW].view(rows, ROW)


def _rest(g: Tensor) -> Tensor:
    flat = g.reshape(-1)
    return flat[len(flat) // ROW * ROW :]


def _reduce_rows(rows: list[Tensor], engine: kernels.Engine) -> list[tuple[Tensor, Tensor]]:
    """Each tensor's (largest, sum of squares) by row."""
    dtype = torch.promote_types(rows[0].dtype, torch.float32)
    found = [(torch.empty(len(r), dtype=dtype), torch.empty(len(r), dtype=dtype)) for r in rows]
    # One row alone isn't worth, nor safe for, a graph whose number of rows is a variable.
    long = [i for i, r in enumerate(rows) if len(r) > 1]
    if long:
        lists = [[rows[i] for i in long], *([found[i][k] for i in long] for k in (0, 1))]
        engine.run(kernels.row_statistics, lists)
    for r, (largest, squares) in zip(rows, found):
        if len(r) == 1:
            kernels.row_statistics(r, largest, squares)
    return found
