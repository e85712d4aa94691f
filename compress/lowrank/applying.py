"""A plan carried out: the factors of every unit, kept on disk block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.roles import in_sequence
from compress.checkpoints.source import require_finite
from compress.checkpoints.walk import BlockWeights, open_writer, walk
from compress.lowrank.factors import Factors, factor, factor_sequential
from compress.lowrank.modules import Unit
from compress.lowrank.preparing import Job, factor_dtype
from compress.lowrank.settings import LowRankSettings
from compress.lowrank.spectra import Weights, has_bias, stacked
from compress.lowrank.statistics import PairSums, gram_dtype
from compress.lowrank.store import BlockFiles, StatisticsStore
from compress.numerics.ranks import CHUNKS
from compress.progress import renamed

OWN, DENSE_STREAM = "lowrank", "dense"


@dataclass(frozen=True)
class Targets:
    """What becomes of the units: those with a rank.

    Attributes:
        ranks: unit -> rank.
        units: by name.
    """

    ranks: Mapping[str, int]
    units: Mapping[str, Unit]

    @classmethod
    def of(cls, units: Sequence[Unit], ranks: Sequence[int]) -> Targets:
        """Leave out the units that stay."""
        kept = [(u, r) for u, r in zip(units, ranks, strict=True) if r]
        return cls({u.name: r for u, r in kept}, {u.name: u for u, _ in kept})

    def inside(self, block: str) -> list[Unit]:
        """The units of a block."""
        return [unit for unit in self.units.values() if unit.block == block]

    @property
    def blocks(self) -> list[str]:
        """The blocks with units, in order."""
        return list(dict.fromkeys(unit.block for unit in self.units.values()))


def factor_blocks(
    job: Job,
    targets: Targets,
    store: StatisticsStore | None,
    files: BlockFiles,
    gradients: BlockFiles | None = None,
) -> None:
    """Make the factors of all units from statistics of the dense model; no text is run.

    Args:
        job: the run.
        targets: units and ranks.
        store: statistics of inputs; None with plain SVD.
        files: where factors go; blocks that it holds are done.
        gradients: of kfac: Γ of each layer, by block.
    """
    stored = factor_dtype(job.source, job.settings)
    weights = Weights(job.source, targets.blocks, device=job.device)
    waiting = [block for block in targets.blocks if block not in files]
    for block, tensors in weights.each(waiting, job.progress, "factor"):
        known = store.inputs(block) if store is not None else {}
        gammas = gradients.read(block) if gradients is not None else None
        found: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        for unit in targets.inside(block):
            made = factor(
                unit,
                stacked(unit, tensors),
                targets.ranks[unit.name],
                known.get(unit.name),
                job.settings,
                stored,
                bias=has_bias(unit, tensors),
                gradients=gammas,
            )
            found |= made.tensors(unit)
            facts[unit.name] = made.facts
        files.write(block, found, facts)


def factor_in_sequence(job: Job, targets: Targets, files: BlockFiles, place: Path) -> None:
    """Walk the dense and the compressed model side by side, and fit each unit to the first.

    What a killed run has finished in `place` and `files` is kept.

    Args:
        job: the run.
        targets: units and ranks.
        files: where factors go.
        place: a directory for the compressed model's blocks, multiplied out, which later blocks
            are run behind.
    """
    tokens = job.data.tokens if job.data is not None else 0
    method = Sequential(
        targets,
        job.settings,
        files,
        factor_dtype(job.source, job.settings),
        resolve_dtype(job.settings.dtype) or job.source.dtype,
        gram_dtype(tokens),
    )
    running = job.running
    report = walk(
        job.source,
        job.batches,
        method,
        {OWN: open_writer(place, job.source, dtype=running)},
        device=job.device,
        dtype=running if running != job.source.dtype else None,
        streams=(OWN, DENSE_STREAM),
        progress=renamed(job.progress, "factor"),
        resume=True,  # a new workspace has no parts
    )
    job.count(report.passes, report.peak_bytes)


@dataclass
class _Sums:
    """Of one input: tokens fitted and tokens held out."""

    fit: PairSums
    held: PairSums | None = None


@dataclass
class Sequential:
    """The walk's method of the sequential closed form.

    Matrices of a block are fitted in stages (attention inputs, attention output, MLP inputs, MLP
    output), each behind the ones before. The last of the batches' chunks is held out to choose β,
    and joins the fit afterwards.

    Attributes:
        targets: units and ranks.
        settings: shrinkage, β, mean correction.
        files: where factors go.
        stored: their dtype; the compressed stream runs with what is stored.
        whole: dtype of all else in OUT.
        dtype: of the sums.
    """

    targets: Targets
    settings: LowRankSettings
    files: BlockFiles
    stored: torch.dtype
    whole: torch.dtype
    dtype: torch.dtype
    _sums: dict[str, _Sums] = field(default_factory=dict)
    _last: dict[int, tuple[Tensor, Tensor, _Sums]] = field(default_factory=dict)
    _chunk: int = 0
    _found: dict[str, Tensor] = field(default_factory=dict)
    _facts: dict[str, Any] = field(default_factory=dict)

    def stages(self, block: Block) -> list[list[str]]:
        """The layers of the block's units, in the order in which they run."""
        units = {m.name: u for u in self.targets.inside(block.name) for m in u.matrices}
        chosen = [m for m in block.editable if m.name in units]
        return [[m.name for m in stage] for stage in in_sequence(chosen)]

    def begin_chunk(self, chunk: int) -> None:
        """What comes next belongs to another chunk of the batches."""
        self._chunk = chunk
        for sums in self._sums.values():
            sums.fit.sums.end_chunk()

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Account one batch of both streams' inputs."""
        dense, own = inputs[DENSE_STREAM], inputs[OWN]
        if matrix.expert is not None or len(dense) != len(own):
            dense = own  # an expert is sent other tokens in each stream: its own alone count
        if not len(own):
            return
        shared = self._last.get(id(own))
        if shared is not None and shared[0] is own and shared[1] is dense:
            self._sums.setdefault(matrix.name, shared[2])
            return
        sums = self._sums.get(matrix.name)
        if sums is None:
            sums = self._sums[matrix.name] = _Sums(PairSums(matrix.name, self.dtype))
        part = sums.fit
        if self._chunk == CHUNKS - 1:
            if sums.held is None:
                sums.held = PairSums(matrix.name, self.dtype)
            part = sums.held
        part.add(dense, own)
        self._last = {k: v for k, v in self._last.items() if v[2] is not sums}
        self._last[id(own)] = (own, dense, sums)

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Fit the units of one stage, and let the compressed stream run with them."""
        self._last.clear()
        for unit in self.targets.inside(block.name):
            if unit.name in names:
                made = self._fitted(unit, weights)
                self._put(unit, made, weights)
                self._found |= made.tensors(unit)
                self._facts[unit.name] = made.facts
        self._sums.clear()

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """Keep the block's factors, before the walk notes that the block is done."""
        if self._found:
            self.files.write(block.name, self._found, self._facts)
        self._found, self._facts = {}, {}

    def _fitted(self, unit: Unit, weights: BlockWeights) -> Factors:
        parts = [weights.read(m.name, DENSE_STREAM) for m in unit.matrices]
        for matrix, part in zip(unit.matrices, parts, strict=True):
            require_finite(matrix.name, part)
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        rank, bias = self.targets.ranks[unit.name], self._has_bias(unit, weights)
        sums = self._sums.get(unit.name)
        if sums is None:  # no token reached it
            plain = LowRankSettings(method="svd")
            return factor(unit, weight, rank, None, plain, self.stored, bias=bias)
        fit, held = sums.fit, sums.held
        if not fit.rows:  # all its tokens were held out
            assert held is not None
            fit, held = held, None
        return factor_sequential(
            unit, weight, rank, fit, held, self.settings, self.stored, bias=bias
        )

    def _put(self, unit: Unit, made: Factors, weights: BlockWeights) -> None:
        products = made.product.split([m.shape[0] for m in unit.matrices])
        for matrix, product in zip(unit.matrices, products, strict=True):
            weights.view(matrix.name, OWN).copy_(product)
        if made.shift is None:
            return
        shifts = made.shift.split([m.shape[0] for m in unit.matrices])
        for matrix, shift in zip(unit.matrices, shifts, strict=True):
            bias = weights.parameter(f"{matrix.module}.bias", OWN)
            bias.copy_((bias.double() + shift).to(self.whole))

    def _has_bias(self, unit: Unit, weights: BlockWeights) -> bool:
        there = weights.tensors(DENSE_STREAM)
        return all(f"{m.module}.bias" in there for m in unit.matrices)
