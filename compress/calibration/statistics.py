"""Statistics of a matrix's inputs over the calibration tokens: column norms and the Gram matrix.

Letters: R rows (real tokens), n input features, X [R, n].

One definition for every method: padded tokens never count (`real_rows`), inputs of any float type
are raised to float32 before they are squared or multiplied, sums are kept in float32 (Gram, or
float64 on request) or float64 (column norms, n numbers only), over fixed chunks of rows in the
order they arrive, and over chunks of samples in their order, whoever saw them (`sums`). Nothing
waits for the device until `value()`, which also finds an overflow or a
NaN and names the module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from compress.calibration.sums import ChunkedSums
from compress.errors import RunError

CHUNK_ROWS = 4096  # bounds the raised copy of a batch; fixed, so that the order of sums is
CACHE_ELEMENTS = 2**19  # 2 MB of float32: squares that stay in a processor's cache cost a tenth
STRIP = (
    256  # columns of a Gram matrix at a time: 0.75 of the whole product's time at 512, half at 2048
)


def real_rows(inputs: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Return the rows of real tokens: [R, n] out of [..., n].

    Args:
        inputs: activations, the last axis being features.
        keep: bool over the leading axes, True = a real token; None keeps all.

    Raises:
        ValueError: the mask's shape isn't that of the leading axes.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    if keep is None:
        return flat
    if keep.numel() != len(flat):
        raise ValueError(f"token mask {tuple(keep.shape)} for inputs {tuple(inputs.shape)}")
    return flat[keep.reshape(-1).to(flat.device, torch.bool)]


class Statistic:
    """What is known of a matrix's inputs.

    Args:
        module: name for the error message.

    Attributes:
        sums: what it is made of.
    """

    def __init__(self, module: str = "") -> None:
        self.module = module
        self.sums = ChunkedSums()

    @property
    def rows(self) -> int:
        """How many rows have been added."""
        return self.sums.rows

    def end_chunk(self, hold: bool = False) -> None:
        """What is added from here on belongs to the next chunk of samples; see `ChunkedSums`."""
        self.sums.end_chunk(hold)

    def _finished(self, name: str) -> torch.Tensor:
        return _finished(self.sums.total(name), self.rows, self.module)


class ColumnNorms(Statistic):
    """The L2 norm of every input feature over all real tokens: sqrt(sum_r X[r, j]^2).

    Costs one read of the inputs. Wanda's score uses it (Sun et al., arXiv:2306.11695).

    Args:
        module: name for the error message.
    """

    def add(self, inputs: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Add inputs [..., n], of which `keep` (bool over the leading axes) marks real tokens."""
        rows = real_rows(inputs.detach(), keep)
        total = self.sums.at("squares", rows.shape[1:], _wide(rows), rows.device)
        in_cache = max(CACHE_ELEMENTS // rows.shape[-1], 1)
        for chunk in rows.split(in_cache if rows.device.type == "cpu" else CHUNK_ROWS):
            total += chunk.float().square().sum(0)
        self.sums.rows += len(rows)

    def value(self) -> torch.Tensor:
        """Return the norms, float32 [n].

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        return self.squares().sqrt().float()

    def squares(self) -> torch.Tensor:
        """Return the squared norms, [n] in the precision that they are summed in; raises alike."""
        return self._finished("squares")


class Moments(NamedTuple):
    """Mean, variance and L2 norm of every input feature over all real tokens, each float32 [n]."""

    mean: torch.Tensor
    variance: torch.Tensor
    norm: torch.Tensor


class ColumnMoments(ColumnNorms):
    """Mean, variance (of the population) and norm of every input feature over all real tokens.

    DSnoT's criterion uses them (Zhang et al., arXiv:2310.08915).

    Args:
        module: name for the error message.
    """

    def add(self, inputs: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Add inputs [..., n], of which `keep` (bool over the leading axes) marks real tokens."""
        rows = real_rows(inputs.detach(), keep)
        super().add(rows)
        total = self.sums.at("sum", rows.shape[1:], _wide(rows), rows.device)
        for chunk in rows.split(CHUNK_ROWS):
            total += chunk.float().sum(0)

    def value(self) -> Moments:  # type: ignore[override]
        """Return the moments.

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        mean = self._finished("sum") / self.rows
        squares = self.squares()
        variance = (squares / self.rows - mean.square()).clamp(min=0)
        return Moments(mean.float(), variance.float(), squares.sqrt().float())


class Gram(Statistic):
    """The Gram matrix of the inputs over all real tokens: X^T X, [n, n].

    Half the Hessian of a layer's squared output error (Frantar & Alistarh, arXiv:2301.00774).

    Args:
        module: name for the error message.
        dtype: of products and sums, float32 or float64.
    """

    def __init__(self, module: str = "", dtype: torch.dtype = torch.float32) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"a Gram matrix is kept in float32 or float64, not {dtype}")
        super().__init__(module)
        self.dtype = dtype

    def add(self, inputs: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Add inputs [..., n], of which `keep` (bool over the leading axes) marks real tokens."""
        rows = real_rows(inputs.detach(), keep)
        width = rows.shape[-1]
        total = self.sums.at("gram", (width, width), self.dtype, rows.device)
        with _full_precision():
            for chunk in rows.split(CHUNK_ROWS):
                raised = chunk.to(self.dtype)
                for start in range(0, raised.shape[-1], STRIP):
                    # The upper triangle by strips of rows: the lower one is its mirror image.
                    strip = raised[:, start : start + STRIP]
                    total[start : start + STRIP, start:].addmm_(strip.T, raised[:, start:])
        self.sums.rows += len(rows)

    def value(self) -> torch.Tensor:
        """Return the Gram matrix, symmetric, [n, n] in the chosen dtype.

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        total = self._finished("gram")
        total.copy_(total.triu() + total.triu(1).T)
        return total


def _wide(rows: torch.Tensor) -> torch.dtype:
    return torch.float32 if rows.device.type == "mps" else torch.float64  # mps has no float64


def _finished(total: torch.Tensor | None, rows: int, module: str) -> torch.Tensor:
    name = module or "a module"
    if total is None or rows == 0:
        raise RunError(f"`{name}` saw no calibration token")
    if not bool(torch.isfinite(total).all()):
        raise RunError(
            f"the inputs of `{name}` are not finite (NaN, Inf, or squares beyond float32)",
            hint="the model overflows in its dtype: try --dtype float32 or bfloat16",
        )
    return total


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep float32 products in float32, whatever a user set for speed (TF32 drops 13 bits)."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
