"""A metric of all matrices as a grid of matrix types by blocks, for pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from compress.spectra.rows import SpectrumRow


class Grid(NamedTuple):
    """One metric by matrix type and block."""

    roles: list[str]
    blocks: list[str]
    values: list[list[float]]
    """[role][block]: the mean of such matrices (a block has many experts); NaN where none is."""
    by_block: dict[str, float]
    """The unweighted mean of a block's matrices, as an allocation by blocks takes it."""

    def means(self) -> list[float]:
        """Of each block, in order."""
        return [self.by_block[block] for block in self.blocks]


def by_block_and_role(rows: Sequence[SpectrumRow], metric: str) -> Grid:
    """Arrange one metric; roles and blocks in the order of their first matrix."""
    roles = list(dict.fromkeys(row.role for row in rows))
    blocks = list(dict.fromkeys(row.block for row in rows))
    cells: dict[tuple[str, str], list[float]] = {}
    whole: dict[str, list[float]] = {}
    for row in rows:
        cells.setdefault((row.role, row.block), []).append(row.metrics[metric])
        whole.setdefault(row.block, []).append(row.metrics[metric])
    values = [
        [statistics.fmean(cells[role, b]) if (role, b) in cells else math.nan for b in blocks]
        for role in roles
    ]
    return Grid(roles, blocks, values, {b: statistics.fmean(v) for b, v in whole.items()})


def short_block(name: str) -> str:
    """A block's number, as far as its name ends in one."""
    return name.rpartition(".")[2]
