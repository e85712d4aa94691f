"""What layers read on the calibration text: Gram matrices, means, and those of two streams at once.

Letters: T tokens, n input features, X [T, n] (rows are tokens, as the walk brings them).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compress.calibration.statistics import CHUNK_ROWS, Gram, real_rows
from compress.calibration.sums import ChunkedSums
from compress.errors import RunError
from compress.lowrank.sequential import Pair
from compress.lowrank.truncate import centred, crossed, shrunk

WIDE_ROWS = 1_000_000  # tokens from which Gram matrices are summed in float64
FEW = 10  # tokens a feature below which Gram matrices are shrunk, unless told
SHRINKAGE = 0.01


class Inputs(NamedTuple):
    """One layer's inputs in sums.

    Attributes:
        gram: [n, n], XᵀX in the layout of tokens as rows, so G of the papers.
        total: float64 [n], the sum of all tokens.
        mean_abs: float64 [n], the mean of |x|.
        rows: T.
    """

    gram: Tensor
    total: Tensor
    mean_abs: Tensor
    rows: int

    @property
    def mean(self) -> Tensor:
        """float64 [n]."""
        return self.total / max(self.rows, 1)

    def matrix(self, *, centre: bool, damp: str | float) -> Tensor:
        """The Gram matrix that factors are made for, float64.

        Args:
            centre: take the mean off, which a bias makes up for.
            damp: shrinkage, a share or auto.
        """
        gram = centred(self.gram, self.total, self.rows) if centre else self.gram.double()
        return shrunk(gram, shrinkage(damp, self.rows, len(gram)))


def shrinkage(damp: str | float, rows: int, width: int) -> float:
    """The shrinkage asked for, or by the number of tokens a feature."""
    if damp != "auto":
        return float(damp)
    return SHRINKAGE if rows < FEW * width else 0.0


class InputSums(Gram):
    """Accumulates `Inputs`.

    Args:
        module: name for the error message.
        dtype: of the Gram matrix.
    """

    def add(self, inputs: Tensor, keep: Tensor | None = None) -> None:
        """Add inputs [..., n], of which `keep` marks real tokens."""
        rows = real_rows(inputs.detach(), keep)
        super().add(rows)
        wide = torch.float32 if rows.device.type == "mps" else torch.float64
        total = self.sums.at("sum", rows.shape[1:], wide, rows.device)
        sizes = self.sums.at("abs", rows.shape[1:], wide, rows.device)
        for chunk in rows.split(CHUNK_ROWS):
            raised = chunk.float()
            total += raised.sum(0)
            sizes += raised.abs().sum(0)

    def inputs(self) -> Inputs:
        """Return what was summed.

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        gram = self.value()
        total, sizes = self._finished("sum"), self._finished("abs")
        return Inputs(gram, total.double(), sizes.double() / self.rows, self.rows)


class PairSums:
    """Sums of a layer's inputs in two streams: X of the dense model, X̃ of the compressed one.

    Args:
        module: name for the error message.
        dtype: of products and sums.
    """

    def __init__(self, module: str, dtype: torch.dtype = torch.float32) -> None:
        self.module, self.dtype = module, dtype
        self.sums = ChunkedSums()
        self.alike = True  # so far both streams brought the same tensors

    @property
    def rows(self) -> int:
        """How many rows have been added."""
        return self.sums.rows

    def add(self, dense: Tensor, own: Tensor) -> None:
        """Add X and X̃, both [T, n], their rows in one order."""
        if self.alike and dense is not own:
            self._split()
        self._product("gram", own, own)
        self._sum("own", own)
        if not self.alike:
            self._product("dense", dense, dense)
            self._product("cross", dense, own)
            self._sum("other", dense)
        self.sums.rows += len(own)

    def pair(self, *, centre: bool) -> Pair:
        """Return the sums, float64.

        Args:
            centre: of inputs less their means.

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        gram, own = self._total("gram"), self._total("own")
        dense, cross, other = gram, gram, own
        if not self.alike:
            dense, cross, other = (self._total(name) for name in ("dense", "cross", "other"))
        if not centre:
            return Pair(dense, cross, gram)
        return Pair(
            centred(dense, other, self.rows),
            crossed(cross, other, own, self.rows),
            centred(gram, own, self.rows),
        )

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean of X and of X̃, float64 [n]."""
        own = self._total("own") / self.rows
        return (own if self.alike else self._total("other") / self.rows), own

    def _split(self) -> None:
        if self.rows:  # streams that were one have forked in the middle of the batches
            raise RunError(f"`{self.module}`: two streams that were alike no longer are")
        self.alike = False

    def _product(self, name: str, left: Tensor, right: Tensor) -> None:
        width = left.shape[-1]
        total = self.sums.at(name, (width, width), self.dtype, left.device)
        for a, b in zip(left.split(CHUNK_ROWS), right.split(CHUNK_ROWS), strict=True):
            total.addmm_(a.to(self.dtype).T, b.to(self.dtype))

    def _sum(self, name: str, rows: Tensor) -> None:
        total = self.sums.at(name, rows.shape[1:], torch.float64, rows.device)
        for chunk in rows.split(CHUNK_ROWS):
            total += chunk.float().sum(0)

    def _total(self, name: str) -> Tensor:
        total = self.sums.total(name)
        if total is None or self.rows == 0:
            raise RunError(f"`{self.module}` saw no calibration token")
        if not bool(torch.isfinite(total).all()):
            raise RunError(
                f"the inputs of `{self.module}` are not finite (NaN, Inf, or squares beyond "
                "float32)",
                "the model overflows in its dtype: try --dtype float32 or bfloat16",
            )
        return total.double()


def gram_dtype(tokens: int) -> torch.dtype:
    """The dtype in which so many tokens' products are summed."""
    return torch.float64 if tokens > WIDE_ROWS else torch.float32
