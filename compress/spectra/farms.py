"""FARMS: one tail exponent from windows of one aspect ratio, so that a matrix's own has no say.

The exponent of a Gaussian matrix depends on its aspect ratio (alpha_mid 2.12 for a square, 3.45
for 1:4), which biases any comparison between layers of different shapes. Hu et al. 2025 (FARMS,
2506.06280) pool the squared singular values of equal windows instead and fit one tail. Definitions
checked against their code; two things differ: windows here reach the last row and column whatever
the sizes, and a window never exceeds its matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.errors import RequestError
from compress.numerics import gram_eigenvalues
from compress.spectra.metrics import UNDEFINED, measure_batch

# Weights of all windows that are held at a time; in float64, with copies, 2 GB.
_HELD = 1 << 26
_NEEDED = "FARMS windows are m,Q,ops: rows >= 2, columns per row > 0, windows a side >= 1"


@dataclass(frozen=True)
class FarmsSettings:
    """Which windows are taken: `window` × round(window · aspect), on a `grid` × `grid` of places.

    Attributes:
        window: rows, the m of the paper, >= 2; cut to what fits a matrix.
        aspect: columns per row, the paper's Q, > 0.
        grid: places along each side, the paper's ops, >= 1; equal places count once.

    Raises:
        RequestError: a value outside its range.
    """

    window: int = 2000
    aspect: float = 1.0
    grid: int = 10

    def __post_init__(self) -> None:
        if self.window < 2 or not 0 < self.aspect < float("inf") or self.grid < 1:
            raise RequestError(f"FARMS windows can't be `{self}`", _NEEDED)
        if self.window * self.aspect < 1.5:
            raise RequestError(f"FARMS windows `{self}` are one column wide", "raise m or Q")

    @classmethod
    def parse(cls, text: str) -> FarmsSettings:
        """Read "m,Q,ops", such as "2000,1,10"; later ones may be left out."""
        parts = text.split(",")
        try:
            if len(parts) > 3:
                raise ValueError
            aspect = float(parts[1]) if len(parts) > 1 else cls.aspect
            grid = int(parts[2]) if len(parts) > 2 else cls.grid
            return cls(int(parts[0]), aspect, grid)
        except ValueError as error:
            raise RequestError(f"`--farms {text}` isn't m,Q,ops", _NEEDED) from error

    def __str__(self) -> str:
        return f"{self.window},{self.aspect:g},{self.grid}"

    def fitted(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the windows in a matrix [out, in]: cut in proportion where needed."""
        out, inp = shape
        rows = min(self.window, out, max(1, int((inp + 0.5) / self.aspect)))
        return rows, min(max(1, round(rows * self.aspect)), inp)

    def note(self, shape: tuple[int, int]) -> str | None:
        """What is said where the window had to be cut to fit a matrix [out, in]."""
        rows, columns = self.fitted(shape)
        if rows == self.window:
            return None
        return f"FARMS window {self.window} cut to {rows} × {columns}"


def farms_alpha(
    weight: Tensor, settings: FarmsSettings | None = None, kind: Literal["peak", "mid"] = "peak"
) -> float:
    """Fit one exponent to the pooled squared singular values of a matrix's windows.

    Args:
        weight: [out, in], any float dtype; windows are decomposed on its device.
        settings: None is FARMS' published ones, 2000 rows, square, 10 × 10.
        kind: where the tail begins: alpha_peak (FARMS' choice) or alpha_mid.

    Returns:
        The exponent, `UNDEFINED` where the pooled values have none (a zero matrix, for one).

    Raises:
        ValueError: weight isn't a matrix, is empty, or holds a value that isn't finite.
    """
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be [out, in], not {list(weight.shape)}")
    pooled = window_eigenvalues(weight, settings or FarmsSettings(), gram_eigenvalues)
    name = f"alpha_{kind}"
    value = float(measure_batch(pooled[None], [name]).values[name][0])
    return value if value > 1 else UNDEFINED


def window_eigenvalues(
    weight: Tensor, settings: FarmsSettings, decompose: Callable[[Tensor], Tensor]
) -> Tensor:
    """The squared singular values of all windows: [windows · min(rows, columns)], ascending.

    Args:
        weight: [out, in].
        decompose: [count, rows, columns] to [count, min(rows, columns)], such as
            `gram_eigenvalues`.
    """
    rows, columns = settings.fitted((weight.shape[0], weight.shape[1]))
    held = max(1, _HELD // (rows * columns))
    found: list[Tensor] = []
    batch: list[Tensor] = []
    for window in _windows(weight, rows, columns, settings.grid):
        batch.append(window)
        if len(batch) == held:
            found.append(decompose(torch.stack(batch)))
            batch.clear()
    if batch:
        found.append(decompose(torch.stack(batch)))
    return torch.cat([values.reshape(-1) for values in found]).sort().values


def _windows(weight: Tensor, rows: int, columns: int, grid: int) -> Iterator[Tensor]:
    for top in _starts(weight.shape[0], rows, grid):
        for left in _starts(weight.shape[1], columns, grid):
            yield weight[top : top + rows, left : left + columns]


def _starts(length: int, window: int, count: int) -> list[int]:
    """Evenly spaced starts, the first and the last possible ones among them; equal ones once."""
    last = length - window
    if count == 1:
        return [last // 2]
    return sorted({round(last * i / (count - 1)) for i in range(count)})
