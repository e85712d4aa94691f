"""From a checkpoint to one row of shape metrics for each matrix, one block in memory at a time."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Anatomy, Matrix, matrix_view
from compress.checkpoints.loader import BlockLoader, skeleton
from compress.checkpoints.placement import resolve_device
from compress.checkpoints.source import Source
from compress.errors import RequestError, near_names
from compress.numerics import gram_eigenvalues
from compress.progress import Progress, silent
from compress.spectra.metrics import METRICS, UNDEFINED, Spectra, measure_batch
from compress.spectra.parts import logical_parts

# Weights in one batched decomposition on CUDA, in float64 4 GB with its copies; a CPU takes
# matrices one by one anyway.
_BATCH_WEIGHTS = 1 << 27
_BATCH_SPECTRA = 256


@dataclass(frozen=True)
class SpectrumRow:
    """The shape of one matrix."""

    module: str
    shape: tuple[int, int]
    """(out, in)."""
    block: str
    role: str
    metrics: dict[str, float]
    """Name to value, always finite. A fused matrix has the mean of its parts."""
    zeros: float
    """Share of weights that are exactly zero."""
    tail_size: int | None = None
    """Eigenvalues in the tail of alpha_peak; None if that wasn't measured."""
    tail_distance: float | None = None
    """Kolmogorov distance of that tail's fit, 0 to 1."""
    warning: str | None = None
    """What is odd about the matrix, and which values stand in for ones that don't exist."""

    def as_dict(self) -> dict[str, object]:
        """The row as CONTRACT's JSON has it; what was not measured is absent."""
        named = {"module": self.module, "shape": list(self.shape)}
        place = {"block": self.block, "role": self.role, "zeros": self.zeros}
        rest = {
            "tail_size": self.tail_size,
            "tail_distance": self.tail_distance,
            "warning": self.warning,
        }
        return named | self.metrics | place | {k: v for k, v in rest.items() if v is not None}


@dataclass
class MatrixSpectrum:
    """The eigenvalues of one matrix, part by part."""

    matrix: Matrix
    eigenvalues: list[Tensor]
    """Of each logical part [min(out_i, in)], float64, ascending."""
    zeros: Tensor
    """[] number of weights that are exactly zero."""


def measure_spectra(
    source: Source,
    anatomy: Anatomy,
    *,
    metrics: Collection[str] | None = None,
    device: str | torch.device = "cpu",
    exact: bool = False,
    progress: Progress = silent,
) -> list[SpectrumRow]:
    """Measure every matrix of every block; experts each, fused matrices by their parts.

    Args:
        source: the checkpoint; its weights are read a block at a time.
        anatomy: its anatomy.
        metrics: names of METRICS; None is all.
        device: where the decompositions run.
        exact: decompose by singular values, see `gram_eigenvalues`.
        progress: hears of every block.

    Returns:
        A row for each of `anatomy.matrices`, in order. Where a value doesn't exist (a zero matrix,
        one of rank one, equal singular values) the median of the matrices that have one stands in,
        so that it pulls no allocation either way, and the row's warning says so.

    Raises:
        RequestError: an unknown metric; a weight that is NaN or Inf (the matrix is named).
    """
    names = tuple(METRICS if metrics is None else metrics)
    for name in names:
        if name not in METRICS:
            raise RequestError(f"`{name}` isn't a metric", near_names(name, METRICS))
    spectra = read_spectra(
        source, anatomy, anatomy.matrices, device=device, exact=exact, progress=progress
    )
    return rows_of(list(spectra), names)


def read_spectra(
    source: Source,
    anatomy: Anatomy,
    matrices: Sequence[Matrix],
    *,
    device: str | torch.device = "cpu",
    exact: bool = False,
    progress: Progress = silent,
) -> Iterator[MatrixSpectrum]:
    """Yield the eigenvalues of some matrices, block by block in the anatomy's order.

    Arguments and errors as in `measure_spectra`; only blocks with one of `matrices` are read.
    """
    wanted = {matrix.name for matrix in matrices}
    target = resolve_device(device)
    model = skeleton(source)
    blocks = anatomy.blocks
    loader = BlockLoader(source, model, blocks=[block.name for block in blocks], device=target)
    done = 0
    progress("spectra", done, len(wanted))
    for block in blocks:
        chosen = [matrix for matrix in block.matrices if matrix.name in wanted]
        if not chosen:
            continue
        loader.load(block.name)
        tensors = loader.tensors(block.name)
        views = [(matrix, matrix_view(tensors[matrix.parameter], matrix)) for matrix in chosen]
        parts = [logical_parts(matrix, view, source.config) for matrix, view in views]
        flat = [(matrix.name, part) for (matrix, _), of in zip(views, parts) for part in of]
        values = iter(_eigenvalues(flat, exact))
        for (matrix, view), of in zip(views, parts):
            zeros = view.numel() - view.count_nonzero()
            yield MatrixSpectrum(matrix, [next(values) for _ in of], zeros)
        loader.unload(block.name)
        done += len(chosen)
        progress("spectra", done, len(wanted), block.name)


def rows_of(spectra: Sequence[MatrixSpectrum], metrics: Collection[str]) -> list[SpectrumRow]:
    """Turn eigenvalues into rows; see `measure_spectra` for values that don't exist."""
    parts = [values for spectrum in spectra for values in spectrum.eigenvalues]
    measured = iter(_measure_parts(parts, tuple(metrics)))
    drafts = [_merge([next(measured) for _ in s.eigenvalues]) for s in spectra]
    stand_in = {}
    for name in metrics:
        known = [value for draft in drafts if (value := draft.values[name]) is not None]
        if known:
            stand_in[name] = statistics.median(known)
    zeros = torch.stack([s.zeros.cpu() for s in spectra]).tolist() if spectra else []
    return [_row(s, d, z, stand_in) for s, d, z in zip(spectra, drafts, zeros, strict=True)]


@dataclass
class _Draft:
    """What was measured of one matrix or part; None for a value that doesn't exist."""

    values: dict[str, float | None]
    rank: int
    full: int
    tail_size: int | None
    tail_distance: float | None


def _eigenvalues(weights: list[tuple[str, Tensor]], exact: bool) -> list[Tensor]:
    """Decompose named matrices, equal shapes together; results in the given order."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, (_, weight) in enumerate(weights):
        by_shape.setdefault(weight.shape, []).append(i)
    values: dict[int, Tensor] = {}
    for shape, members in by_shape.items():
        cuda = weights[members[0]][1].is_cuda
        step = max(1, _BATCH_WEIGHTS // shape.numel()) if cuda else 1
        for left in range(0, len(members), step):
            batch = members[left : left + step]
            try:
                found = gram_eigenvalues(torch.stack([weights[i][1] for i in batch]), exact)
            except ValueError as error:
                bad = [weights[i][0] for i in batch if not bool(weights[i][1].isfinite().all())]
                if not bad:
                    raise
                raise RequestError(
                    f"`{bad[0]}` holds NaN or Inf", "repair or re-download the model"
                ) from error
            values |= dict(zip(batch, found, strict=True))
    return [values[i] for i in range(len(weights))]


def _measure_parts(parts: list[Tensor], metrics: tuple[str, ...]) -> list[_Draft]:
    """Measure spectra, those of equal length together; results in the given order."""
    by_length: dict[int, list[int]] = {}
    for i, values in enumerate(parts):
        by_length.setdefault(len(values), []).append(i)
    drafts: dict[int, _Draft] = {}
    for length, members in by_length.items():
        for left in range(0, len(members), _BATCH_SPECTRA):
            batch = members[left : left + _BATCH_SPECTRA]
            found = measure_batch(torch.stack([parts[i] for i in batch]), metrics)
            drafts |= dict(zip(batch, _drafts_of(found, length), strict=True))
    return [drafts[i] for i in range(len(parts))]


def _drafts_of(found: Spectra, length: int) -> Iterator[_Draft]:
    """Take a measured batch apart; one transfer from the device for each of its columns."""
    value = {name: column.tolist() for name, column in found.values.items()}
    gone = {name: column.tolist() for name, column in found.undefined.items()}
    rank = found.rank.tolist()
    peak = found.tails.get("alpha_peak")
    sizes = peak.size.tolist() if peak else [None] * len(rank)
    distances = peak.distance.tolist() if peak else [None] * len(rank)
    for i in range(len(rank)):
        known = {name: None if gone[name][i] else value[name][i] for name in value}
        yield _Draft(known, rank[i], length, sizes[i], distances[i])


def _merge(parts: list[_Draft]) -> _Draft:
    """The mean of a fused matrix's parts; ranks and sizes add up."""
    if len(parts) == 1:
        return parts[0]
    values: dict[str, float | None] = {}
    for name in parts[0].values:
        known = [v for part in parts if (v := part.values[name]) is not None]
        values[name] = statistics.fmean(known) if known else None
    sizes = [part.tail_size for part in parts if part.tail_size is not None]
    distances = [part.tail_distance for part in parts if part.tail_distance is not None]
    return _Draft(
        values,
        sum(part.rank for part in parts),
        sum(part.full for part in parts),
        sum(sizes) if sizes else None,
        statistics.fmean(distances) if distances else None,
    )


def _row(
    spectrum: MatrixSpectrum, draft: _Draft, zeros: int, stand_in: dict[str, float]
) -> SpectrumRow:
    matrix = spectrum.matrix
    missing = [name for name, value in draft.values.items() if value is None]
    return SpectrumRow(
        module=matrix.name,
        shape=matrix.shape,
        block=matrix.block,
        role=matrix.role,
        metrics={
            name: stand_in.get(name, UNDEFINED) if value is None else value
            for name, value in draft.values.items()
        },
        zeros=zeros / matrix.numel,
        tail_size=draft.tail_size,
        tail_distance=draft.tail_distance,
        warning=_warning(draft, missing, any(name in stand_in for name in missing)),
    )


def _warning(draft: _Draft, missing: list[str], replaced: bool) -> str | None:
    if not missing and draft.rank == draft.full:
        return None
    if draft.rank == 0:
        oddity = "all weights are zero"
    elif draft.rank < draft.full:
        oddity = f"rank {draft.rank} of {draft.full}"
    elif draft.full < 2:
        oddity = "a single singular value"
    else:
        oddity = "singular values all alike"
    if not missing:
        return oddity
    instead = "the median of the other matrices" if replaced else f"{UNDEFINED:g}"
    return f"{oddity}: {', '.join(missing)} undefined, {instead} stands in"
