"""Pictures as PNG files: made without a display, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


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
