"""Statistics of a matrix's inputs over the calibration tokens: column norms and the Gram matrix.

Letters: R rows (real tokens), n input features, X [R, n].

One definition for every method: padded tokens never count (`real_rows`), inputs of any float type
are raised to float32 before they are squared or multiplied, sums are kept in float32 (Gram, or
float64 on request) or float64 (column norms, n numbers only), over fixed chunks of rows in the
order they arrive. Nothing waits for the device until `value()`, which also finds an overflow or a
NaN and names the module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from compress.errors import RunError

CHUNK_ROWS = 4096  # bounds the raised copy of a batch; fixed, so that the order of sums is
CACHE_ELEMENTS = 2**19  # 2 MB of float32: squares that stay in a processor's cache cost a tenth


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


class ColumnNorms:
    """The L2 norm of every input feature over all real tokens: sqrt(sum_r X[r, j]^2).

    Costs one read of the inputs. Wanda's score uses it (Sun et al., arXiv:2306.11695).

    Args:
        module: name for the error message.
    """

    def __init__(self, module: str = "") -> None:
        self.module = module
        self.rows = 0
        self._sum: torch.Tensor | None = None

    def add(self, inputs: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Add inputs [..., n], of which `keep` (bool over the leading axes) marks real tokens."""
        rows = real_rows(inputs.detach(), keep)
        if self._sum is None:
            self._sum = torch.zeros(rows.shape[-1], dtype=_wide(rows), device=rows.device)
        in_cache = max(CACHE_ELEMENTS // rows.shape[-1], 1)
        for chunk in rows.split(in_cache if rows.device.type == "cpu" else CHUNK_ROWS):
            self._sum += chunk.float().square().sum(0)
        self.rows += len(rows)

    def value(self) -> torch.Tensor:
        """Return the norms, float32 [n].

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        return self.squares().sqrt().float()

    def squares(self) -> torch.Tensor:
        """Return the squared norms, [n] in the precision that they are summed in; raises alike."""
        return _finished(self._sum, self.rows, self.module)


class Moments(NamedTuple):
    """Mean, variance and L2 norm of every input feature over all real tokens, each float32 [n]."""

    mean: torch.Tensor
    variance: torch.Tensor
    norm: torch.Tensor


class ColumnMoments:
    """Mean, variance (of the population) and norm of every input feature over all real tokens.

    DSnoT's criterion uses them (Zhang et al., arXiv:2310.08915).

    Args:
        module: name for the error message.
    """

    def __init__(self, module: str = "") -> None:
        self.module = module
        self._norms = ColumnNorms(module)
        self._sum: torch.Tensor | None = None

    def add(self, inputs: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Add inputs [..., n], of which `keep` (bool over the leading axes) marks real tokens."""
        rows = real_rows(inputs.detach(), keep)
        self._norms.add(rows)
        if self._sum is None:
            self._sum = torch.zeros(rows.shape[-1], dtype=_wide(rows), device=rows.device)
        for chunk in rows.split(CHUNK_ROWS):
            self._sum += chunk.float().sum(0)

    def value(self) -> Moments:
        """Return the moments.

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        count = self._norms.rows
        mean = _finished(self._sum, count, self.module) / count
        square = self._norms.squares() / count
        variance = (square - mean.square()).clamp(min=0)
        return Moments(mean.float(), variance.float(), self._norms.value())


class Gram:
    """The Gram matrix of the inputs over all real tokens: X^T X, [n, n].

    Half the Hessian of a layer's squared output error (Frantar & Alistarh, arXiv:2301.00774).

    Args:
        module: name for the error message.
        dtype: of products and sums, float32 or float64.
    """

    def __init__(self, module: str = "", dtype: torch.dtype = torch.float32) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"a Gram matrix is kept in float32 or float64, not {dtype}")
        self.module = module
        self.dtype = dtype
        self.rows = 0
        self._sum: torch.Tensor | None = None

    def add(self, inputs: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Add inputs [..., n], of which `keep` (bool over the leading axes) marks real tokens."""
        rows = real_rows(inputs.detach(), keep)
        if self._sum is None:
            width = rows.shape[-1]
            self._sum = torch.zeros(width, width, dtype=self.dtype, device=rows.device)
        with _full_precision():
            for chunk in rows.split(CHUNK_ROWS):
                raised = chunk.to(self.dtype)
                self._sum.addmm_(raised.T, raised)
        self.rows += len(rows)

    def value(self) -> torch.Tensor:
        """Return the Gram matrix, symmetric, [n, n] in the chosen dtype.

        Raises:
            RunError: no token was seen, or a sum isn't finite.
        """
        return _finished(self._sum, self.rows, self.module)


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
