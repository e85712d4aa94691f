"""The pass over the calibration text that gathers what every chosen layer reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.calibration.shared import InputStatistics
from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.source import Source, require_finite
from compress.checkpoints.walk import BlockWeights, WalkReport, walk
from compress.lowrank.statistics import InputSums
from compress.lowrank.store import StatisticsStore
from compress.progress import Progress, renamed

STREAM = "dense"


class Measuring:
    """The walk's method: sums up inputs, changes nothing, keeps each block's sums on disk.

    Args:
        names: of the layers.
        store: where; blocks that it holds aren't measured again.
        dtype: of Gram matrices.
    """

    def __init__(self, names: Sequence[str], store: StatisticsStore, dtype: torch.dtype) -> None:
        self._names = set(names)
        self._store = store
        self._sums: InputStatistics[Tensor] = InputStatistics(partial(InputSums, dtype=dtype))

    def stages(self, block: Block) -> list[list[str]]:
        """All chosen layers at once, unless they have been measured."""
        chosen = [m.name for m in block.editable if m.name in self._names]
        return [chosen] if chosen and block.name not in self._store else []

    def begin_chunk(self, chunk: int) -> None:
        """Sum what comes next apart from what has come before."""
        self._sums.begin_chunk()

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Account one batch of inputs [rows, in]; padded rows are gone already."""
        if len(inputs[STREAM]):
            self._sums.add(matrix.name, inputs[STREAM])

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Refuse weights that aren't finite."""
        for name in names:
            require_finite(name, weights.read(name, STREAM))

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """Keep the block's sums."""
        if block.name in self._store or not self._sums.values:
            return
        entries: dict[int, str] = {}
        alias = {n: entries.setdefault(id(s), n) for n, s in self._sums.values.items()}
        found = {}
        for name, sums in self._sums.values.items():
            if alias[name] == name:
                assert isinstance(sums, InputSums)
                found[name] = sums.inputs()
        self._store.keep(block.name, found, alias)
        self._sums.clear()


def measure_inputs(
    source: Source,
    batches: Sequence[dict[str, Tensor]],
    names: Sequence[str],
    store: StatisticsStore,
    *,
    gram: torch.dtype,
    progress: Progress,
    **options: Any,
) -> WalkReport:
    """Measure the inputs of layers in one pass of the dense model, a block in memory at a time.

    Args:
        source: the model.
        batches: calibration batches.
        names: the layers.
        store: where each block's statistics go.
        gram: dtype of Gram matrices.
        progress: told of each block.
        options: device and dtype of the walk.

    Raises:
        RunError: inputs or activations aren't finite; names the layer or block.
    """
    return walk(
        source,
        batches,
        Measuring(names, store, gram),
        streams=(STREAM,),
        propagate="dense",
        progress=renamed(progress, "measure"),
        **options,
    )
