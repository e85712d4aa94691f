"""Pictures as PNG files: made without a display, written whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRITTEN = 14  # columns of a heat map from which numbers don't fit its cells


def new_figure(
    rows: int, columns: int, size: tuple[float, float], dpi: int = 110
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes [rows, columns], without a display; sizes in inches."""
    # Without pyplot: no global state; and only here, since it loads slowly.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_heat(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    *,
    ends: tuple[float, float] | None = None,
    label: str = "",
) -> None:
    """Draw a table as colours into axes, its scale close beside it; a number in each cell that fits.

    Args:
        axes: where; their ticks and titles are the caller's.
        values: [rows][columns]; None or NaN stays empty.
        ends: values of the darkest and the lightest colour; None is the least and the greatest.
        label: of the scale.
    """
    import numpy as np

    data = np.array([[np.nan if v is None else v for v in line] for line in values], dtype=float)
    low, high = ends or (None, None)
    image = axes.imshow(data, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    # Within the axes' own place: a legend below it would push a scale of the figure's away.
    axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.025, 1)), label=label)
    if data.shape[1] > _WRITTEN:
        return
    for (row, column), value in np.ndenumerate(data):
        if np.isfinite(value):
            ink = "black" if image.norm(value) > 0.6 else "white"
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink, size=8)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all; equal figures give equal bytes.

    Raises:
        RunError: the file can't be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        figure.savefig(partial, format="png", metadata={"Software": None})
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"`{path}` can't be written: {error.strerror or error}") from error
