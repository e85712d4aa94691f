"""New values for all that a block keeps, by gradient, so that its output is the dense block's.

The block sees what the pruned blocks before it give, and shall return what the dense block returns
in the dense model. So attention and feed-forward part make up for each other, and for what was lost
before them; masks stay. Each tenth batch is held out: the best values by them are taken, which may
be those it began with.

Of several processes each runs the batches that it has: one makes a step's gradient, all take the
step. So steps are not faster by more processes, only the looks at held-out batches are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.checkpoints.anatomy import Matrix, matrix_view
from compress.checkpoints.replay import BlockRuns
from compress.numerics.counter import permutation
from compress.numerics.ranks import ALONE, Team
from compress.sparsity.layer import to_stored

DENSE = "dense"
HELD_OUT = 10  # of so many batches one is held out
CHECKS = 10  # looks at the held-out batches, spread over the steps


@dataclass(frozen=True)
class BlockRefit:
    """How a block is refitted.

    Attributes:
        steps: of Adam, a batch each.
        rate: learning rate at first, a share of each matrix's root mean square of kept weights,
            so that one rate serves models of any scale; it falls in a straight line to zero.
        seed: of the order of batches.
    """

    steps: int
    rate: float
    seed: int = 0


class Refitted(NamedTuple):
    """Errors of a block's output on the held-out batches: ||Y' - Y||² / ||Y||²."""

    before: float
    after: float


def split(batches: Sequence[int]) -> tuple[list[int], list[int]]:
    """The batches to learn from and those held out: a tenth of them, at least one.

    Raises:
        ValueError: fewer than two.
    """
    if len(batches) < 2:
        raise ValueError(f"a refit of blocks needs 2 batches, not {len(batches)}")
    held = list(batches[HELD_OUT - 1 :: HELD_OUT]) or [batches[-1]]
    return [b for b in batches if b not in held], held


def refit_block(
    runs: BlockRuns,
    matrices: Sequence[Matrix],
    stream: str,
    how: BlockRefit,
    stored: torch.dtype | None = None,
    team: Team = ALONE,
) -> Refitted:
    """Refit the kept weights of a block's pruned matrices, in place.

    Args:
        runs: of the block; at least two batches; the streams `stream` and DENSE.
        matrices: those pruned: their weights that aren't zero are learned, all else stays.
        stream: of the pruned model.
        how: steps, rate and seed.
        stored: dtype on disk, to which values are rounded before they are judged; None is the
            dtype they come in.
        team: processes of which each has its part of the batches; all end with the same values.

    Returns:
        The errors before and after; the second is never above the first.

    Cost: about four runs of the block a step, and one in ten over the held-out batches.
    Source: after A Free Lunch in LLM Compression, arXiv:2510.14444, which refits attention and
    feed-forward part one after the other; here they learn together.
    """
    learned = _Learned(runs, matrices, stream, stored)
    judge = _Judge(runs, stream, learned, team)
    train, held = split(judge.batches)
    before = best = judge.error(held)
    kept = learned.snapshot()
    adam = torch.optim.Adam(learned.groups(how.rate), betas=(0.9, 0.95))
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / how.steps)
    every = max(how.steps // CHECKS, 1)
    for step, batch in zip(range(1, how.steps + 1), _order(train, how.seed)):
        learned.take(judge.gradients(batch))
        adam.step()
        decay.step()
        learned.install()
        if step % every == 0 or step == how.steps:
            error = judge.error(held)
            if error < best:
                best, kept = error, learned.snapshot()
    learned.write(kept)
    return Refitted(before, best)


class _Learned:
    """The parameters that learn: as the block runs with them, and in full precision."""

    def __init__(
        self,
        runs: BlockRuns,
        matrices: Sequence[Matrix],
        stream: str,
        stored: torch.dtype | None,
    ) -> None:
        self._targets = {m.parameter: runs.weights.parameter(m.parameter, stream) for m in matrices}
        self._free = {
            name: torch.zeros_like(v, dtype=torch.bool) for name, v in self._targets.items()
        }
        for matrix in matrices:
            free = matrix_view(self._free[matrix.parameter], matrix)
            free.copy_(matrix_view(self._targets[matrix.parameter], matrix) != 0)
        self._stored = stored
        self.leaves = {n: nn.Parameter(v.detach().clone()) for n, v in self._targets.items()}
        self.parameters = list(self.leaves.values())
        wide = torch.promote_types(next(iter(self._targets.values())).dtype, torch.float32)
        self.masters = [v.detach().to(wide, copy=True) for v in self._targets.values()]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Each master with its learning rate."""
        return [
            {"params": [master], "lr": rate * _rms(master[free])}
            for master, free in zip(self.masters, self._free.values())
        ]

    def take(self, gradients: Sequence[Tensor | None]) -> None:
        """Give the masters their gradients, none to what must not move."""
        for master, gradient, free in zip(self.masters, gradients, self._free.values()):
            master.grad = None if gradient is None else gradient.to(master.dtype) * free

    @torch.no_grad()
    def install(self) -> None:
        """Round the masters as they are stored, and let the block run with that."""
        for leaf, master, free in zip(self.parameters, self.masters, self._free.values()):
            rounded = to_stored(master, free, self._stored or leaf.dtype)
            leaf.copy_(torch.where(free, rounded.to(leaf.dtype), leaf))

    def snapshot(self) -> list[Tensor]:
        """The values that the block runs with."""
        return [leaf.detach().clone() for leaf in self.parameters]

    @torch.no_grad()
    def write(self, values: Sequence[Tensor]) -> None:
        """Make values the stream's own."""
        for target, value in zip(self._targets.values(), values):
            target.copy_(value)


def _rms(values: Tensor) -> float:
    """Root mean square; 0 of no values."""
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0


class _Judge:
    """How far a block's output is from the dense one's, on the batches of all processes.

    Attributes:
        batches: numbers of all that reach the block, in order.
    """

    def __init__(self, runs: BlockRuns, stream: str, learned: _Learned, team: Team) -> None:
        self._runs, self._stream, self._learned, self._team = runs, stream, learned, team
        found = team.gather(runs.batches)
        self._owner = {batch: rank for rank, part in enumerate(found) for batch in part}
        self.batches = list(self._owner)

    def gradients(self, batch: int) -> list[Tensor | None]:
        """Of a batch's relative error by each parameter; None where the batch uses it not."""
        parameters, source = self._learned.parameters, self._owner[batch]
        own: list[Tensor | None] = [None] * len(parameters)
        if source == self._team.rank:
            with torch.enable_grad():
                loss, size = self._difference(batch)
                own = list(torch.autograd.grad(loss / size, parameters, allow_unused=True))
        used = self._team.gather([gradient is not None for gradient in own])[source]
        for place, parameter in enumerate(parameters):
            if used[place]:
                found = own[place]
                gradient = torch.empty_like(parameter) if found is None else found
                own[place] = gradient
                self._team.broadcast(gradient.detach(), source)
        return own

    @torch.no_grad()
    def error(self, batches: Sequence[int]) -> float:
        """The squared difference over all batches, by that of the dense output."""
        own = [b for b in batches if self._owner[b] == self._team.rank]
        pairs = torch.tensor([]) if not own else torch.stack(
            [torch.stack(self._difference(batch)) for batch in own]
        )  # fmt: skip
        # Each process's batches come before those of the next: the order of sums is theirs.
        found = [pair for part in self._team.gather(pairs.double().tolist()) for pair in part]
        return sum(pair[0] for pair in found) / sum(pair[1] for pair in found)

    def _difference(self, batch: int) -> tuple[Tensor, Tensor]:
        """||Y' - Y||² and ||Y||² of a batch's tokens."""
        with torch.no_grad():
            wanted = self._runs.output(batch, DENSE)[0].float()
        found = self._runs.output(batch, self._stream, self._learned.leaves)[0].float()
        off, size = (found - wanted).square(), wanted.square()
        tokens = self._runs.tokens(batch)
        if tokens is not None and tokens.shape == off.shape[:2]:
            off, size = off[tokens], size[tokens]
        return off.sum(), size.sum().clamp(min=1e-30)


def _order(batches: Sequence[int], seed: int) -> Iterator[int]:
    epoch = 0
    while True:
        yield from (batches[i] for i in permutation(seed, epoch, len(batches)).tolist())
        epoch += 1
