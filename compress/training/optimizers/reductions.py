"""Largest entry and norm of many gradients, over all processes that hold a part of them.

On the CPU a gradient is read once, in rows: where few rows hold an entry that AdaClip cuts, only
these are read again. Elsewhere, where looking at a result means waiting for the device, the second
reduction reads all. Two collectives a step, whatever the number of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
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
    """On the CPU: gradients in rows of 4096, with each row's largest entry and sum of squares.

    What is left of a gradient, less than a row, is padded with zeros to a row of its own.
    """

    def _largest(self) -> Tensor:
        rows, rests = [_in_rows(g) for g in self._gradients], [_rest(g) for g in self._gradients]
        self._parts, owners, stats = rows, list(range(len(rows))), _reduce_rows(rows, self._engine)
        left = [i for i, rest in enumerate(rests) if rest.numel()]
        if left:
            padded = nn.utils.rnn.pad_sequence([rests[i] for i in left], batch_first=True)
            tops, squares = _row_statistics(padded)
            self._parts, owners = [*rows, *padded.split(1)], [*owners, *left]
            stats += list(zip(tops.split(1), squares.split(1)))
        self._sizes = [part.shape[0] for part in self._parts]
        counts = torch.tensor(self._sizes)
        self._owner = torch.tensor(owners).repeat_interleave(counts)
        self._tops, self._row_squares = (torch.cat(values) for values in zip(*stats))
        # NaN has no place in an order; of an empty shard the largest entry is 0.
        tops = torch.where(torch.isfinite(self._tops), self._tops, float("inf"))
        largest = tops.new_zeros(len(rows))
        return largest.scatter_reduce_(0, self._owner, tops, "amax").double()

    def _squares(self, limit: Tensor, factor: Tensor, over: Tensor, clamp: bool) -> Tensor:
        limits, factors = (values.to(self._tops.dtype) for values in (limit, factor))
        above = over[self._owner] & (self._tops > limits[self._owner])
        squares = self._row_squares.double()
        # Numbers of CPU tensors: nothing is waited for.
        places = above.nonzero().flatten()
        ends = torch.tensor(self._sizes).cumsum(0)
        stops = torch.searchsorted(places, ends).tolist() if places.numel() else []
        first = 0
        for part, size, end, stop in zip(self._parts, self._sizes, ends.tolist(), stops):
            if stop > first:
                some = places[first:stop]
                owner = self._owner[end - 1]
                again = part[some - (end - size)] if stop - first < size else part
                squares[some] = _squares_after(again, limits[owner], factors[owner], clamp)
            first = stop
        return torch.zeros_like(limit).index_add_(0, self._owner, squares)


def _squares_after(rows: Tensor, limit: Tensor, factor: Tensor, clamp: bool) -> Tensor:
    """Each row's sum of squares after entries above `limit` are cut, float64."""
    size = rows.to(limit.dtype).abs()
    cut = size.clamp(max=limit) if clamp else torch.where(size > limit, size * factor, size)
    return cut.square_().sum(1).double()


def _in_rows(g: Tensor) -> Tensor:
    rows = g.numel() // ROW
    if not g.is_contiguous():
        g = g.contiguous()
    return g.view(-1)[: rows * ROW].view(rows, ROW)


def _rest(g: Tensor) -> Tensor:
    flat = g.reshape(-1)
    return flat[flat.numel() // ROW * ROW :]


def _reduce_rows(rows: list[Tensor], engine: kernels.Engine) -> list[tuple[Tensor, Tensor]]:
    """Each tensor's (largest, sum of squares) by row."""
    # One row alone isn't worth, nor safe for, a graph whose number of rows is a variable.
    found = [_empty(r) if r.shape[0] > 1 else _row_statistics(r) for r in rows]
    long = [i for i, r in enumerate(rows) if r.shape[0] > 1]
    if long:
        lists = [[rows[i] for i in long], *([found[i][k] for i in long] for k in (0, 1))]
        engine.run(kernels.row_statistics, lists)
    return found


def _empty(rows: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return torch.empty(rows.shape[0], dtype=dtype), torch.empty(rows.shape[0], dtype=dtype)


def _row_statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    largest, squares = _empty(rows)
    kernels.row_statistics(rows, largest, squares)
    return largest, squares
