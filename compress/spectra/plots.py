"""Pictures of spectra as PNG: one matrix with its fitted tail, or a metric by block and type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from compress.reports.heatmap import draw_heatmap
from compress.reports.pictures import new_figure, save_figure
from compress.spectra.grid import by_block_and_role
from compress.spectra.rows import SpectrumRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Histogram(NamedTuple):
    """Eigenvalues counted in equal bins of their logarithm."""

    edges: np.ndarray
    """[bins + 1] eigenvalues, ascending."""
    counts: np.ndarray
    """[bins] int64."""
    expected: np.ndarray
    """[bins] what the fitted power law has in each bin; 0 left of the tail."""


def histogram(eigenvalues: Tensor, bins: int, alpha: float, start: float, size: int) -> Histogram:
    """Count eigenvalues in bins of equal width in log10; zeros are left out.

    Args:
        eigenvalues: [N], >= 0.
        bins: how many.
        alpha, start, size: the fitted tail: exponent, least eigenvalue, number of eigenvalues;
            size 0 means none.

    Returns:
        The histogram, of one bin around 1 where no eigenvalue is positive.
    """
    positive = eigenvalues[eigenvalues > 0].cpu().numpy().astype(np.float64)
    logs = np.log10(positive) if len(positive) else np.zeros(0)
    low, high = (logs.min(), logs.max()) if len(positive) else (0.0, 0.0)
    if high - low < 1e-6:  # equal values: one decade around them
        low, high = low - 0.5, high + 0.5
    counts, log_edges = np.histogram(logs, bins=bins, range=(low, high))
    edges = 10.0**log_edges
    expected = np.zeros(bins)
    if size and alpha > 1:
        left = np.maximum(edges[:-1], start) / start
        right = np.maximum(edges[1:], start) / start
        expected = size * (left ** (1 - alpha) - right ** (1 - alpha))
    return Histogram(edges, counts.astype(np.int64), expected)


def spectrum_png(
    path: Path, title: str, eigenvalues: Tensor, tail: tuple[float, float, int]
) -> None:
    """Write one spectrum with its fitted tail, both axes logarithmic.

    Args:
        path: the PNG to write.
        title: above the picture.
        eigenvalues: [N], >= 0.
        tail: exponent, least eigenvalue, number of eigenvalues.
    """
    alpha, start, size = tail
    bins = int(np.clip(len(eigenvalues) // 4, 10, 100))
    data = histogram(eigenvalues, bins, alpha, start, size)
    figure, (axes,) = _figure(title)
    axes.stairs(data.counts, data.edges, fill=True, alpha=0.5, label="eigenvalues")
    if size:
        # What a bin that begins at x would hold, drawn at the middle of that bin.
        width = data.edges[1] / data.edges[0]
        x = np.geomspace(start, max(data.edges[-1] / width, start), 100)
        y = size * ((x / start) ** (1 - alpha) - (x * width / start) ** (1 - alpha))
        axes.plot(x * width**0.5, y, "--", color="black", label="fitted tail")
        axes.axvline(start, linewidth=0.8, color="black", label=f"tail from {start:.3g}")
    axes.set(xscale="log", xlabel="eigenvalue", ylabel="count")
    if data.counts.any():  # a matrix of zeros has nothing to scale
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
    axes.legend()
    save_figure(figure, path)


def overview_png(path: Path, title: str, rows: Sequence[SpectrumRow], metric: str) -> None:
    """Write one metric of all matrices: a heat map of types by blocks, and a line for each type."""
    from matplotlib.ticker import MaxNLocator

    grid = by_block_and_role(rows, metric)
    figure, (top, bottom) = _figure(title, panels=2, high=4 + 0.28 * len(grid.roles))
    draw_heatmap(top, figure, grid.values, None, metric)
    top.set_yticks(range(len(grid.roles)), grid.roles)
    top.set_xlabel("block")
    styles = ("-", "--", ":", "-.")
    for i, (role, values) in enumerate(zip(grid.roles, grid.values, strict=True)):
        bottom.plot(values, marker=".", linewidth=1, linestyle=styles[i // 10 % 4], label=role)
    bottom.plot(grid.means(), color="black", linewidth=2.5, label="mean of the block")
    bottom.set(xlabel="block", ylabel=metric, xlim=(-0.5, len(grid.blocks) - 0.5))
    bottom.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    for axes in (top, bottom):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, path)


def _figure(title: str, panels: int = 1, high: float = 5.0) -> tuple[Figure, list[Axes]]:
    figure, axes = new_figure(panels, 1, (8, high), dpi=120)
    axes[0, 0].set_title(title)
    return figure, list(axes[:, 0])
