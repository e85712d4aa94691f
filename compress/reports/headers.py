"""The lines that open a run: what is compressed, with which data, how."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from compress.reports import formats as fmt


def header_line(label: str, *parts: str, width: int | None = None) -> str:
    """One line of a run's header: "model     ./llama-1b   llama, 16 blocks", folded to the screen.

    Args:
        label: "model", "data", "plan": stands in the first ten columns.
        parts: what follows, three blanks between.
    """
    text = "   ".join(part for part in parts if part)
    columns = fmt.screen_width() if width is None else width
    return fmt.fit_encoding(fmt.wrap(f"{label:<10}{text}", columns, " " * 10))


def model_line(name: str, family: str, blocks: int, parameters: int, dtype: str) -> str:
    """What is being compressed: "model     ./llama-1b   llama, 16 blocks, 1.24 B parameters, …"."""
    count = fmt.count_text(parameters)
    what = f"{family}, {blocks} block{'s' * (blocks != 1)}, {count} parameters, {dtype}"
    return header_line("model", name, what)


def plan_line(
    method: str, allocation: str, rows: Sequence[Mapping[str, Any]], hint: str = ""
) -> str:
    """What will be done: "plan      wanda, alpha_peak by block, 0.45 to 0.71     (hint)"."""
    shares = [row["zeros"] / row["size"] for row in rows if row.get("size")]
    span = f", {min(shares):.2f} to {max(shares):.2f}" if shares else ""
    if shares and max(shares) - min(shares) < 0.005:
        span = f", {statistics.fmean(shares):.2f} everywhere"
    return header_line("plan", f"{method}, {allocation}{span}", f"({hint})" if hint else "")
