"""From spectra to rows: one per matrix, fused parts merged, values that don't exist replaced."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Matrix
from compress.spectra.decompose import PartSpectrum
from compress.spectra.metrics import METRICS, UNDEFINED, Spectra, measure_batch

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
    notes: tuple[str, ...] = ()
    """How this matrix was measured otherwise than asked, such as a window that was cut."""

    def as_dict(self) -> dict[str, object]:
        """The row as CONTRACT's JSON has it; what was not measured is absent."""
        named = {"module": self.module, "shape": list(self.shape)}
        place = {"block": self.block, "role": self.role, "zeros": self.zeros}
        rest = {
            "tail_size": self.tail_size,
            "tail_distance": self.tail_distance,
            "warning": self.warning,
            "notes": list(self.notes) or None,
        }
        return named | self.metrics | place | {k: v for k, v in rest.items() if v is not None}


@dataclass
class MatrixSpectrum:
    """The spectra of one matrix, part by part."""

    matrix: Matrix
    parts: list[PartSpectrum]
    """Of each logical part; more than one for a fused matrix."""
    zeros: Tensor
    """[] number of weights that are exactly zero."""
    notes: tuple[str, ...] = ()
    """What was done otherwise than asked, such as a window that was cut."""


def rows_of(spectra: Sequence[MatrixSpectrum], metrics: Collection[str]) -> list[SpectrumRow]:
    """Turn eigenvalues into rows; see `measure_spectra` for values that don't exist."""
    parts = [part for spectrum in spectra for part in spectrum.parts]
    measured = iter(_measure_parts(parts, tuple(metrics)))
    drafts = [_merge([next(measured) for _ in s.parts]) for s in spectra]
    zeros = torch.stack([s.zeros.cpu() for s in spectra]).tolist() if spectra else []
    places = [
        (s.matrix, zero / s.matrix.numel, s.notes) for s, zero in zip(spectra, zeros, strict=True)
    ]
    return rows_of_drafts(places, drafts, metrics)


def rows_of_drafts(
    places: Sequence[tuple[Matrix, float, tuple[str, ...]]],
    drafts: Sequence[Draft],
    metrics: Collection[str],
) -> list[SpectrumRow]:
    """Rows from what was measured; the median stands in for a value that doesn't exist.

    Args:
        places: of each matrix itself, its share of zeros, and notes.
        drafts: what was measured of each.
        metrics: the names that each row has.
    """
    stand_in = {}
    for name in metrics:
        known = [value for draft in drafts if (value := draft.values[name]) is not None]
        if known:
            stand_in[name] = statistics.median(known)
    return [_row(*place, d, stand_in) for place, d in zip(places, drafts, strict=True)]


@dataclass
class Draft:
    """What was measured of one matrix or part; None for a value that doesn't exist."""

    values: dict[str, float | None]
    rank: int
    full: int
    tail_size: int | None = None
    tail_distance: float | None = None
    oddity: str | None = None
    """Why values are missing; None is told by rank and size."""


def _measure_parts(parts: list[PartSpectrum], metrics: tuple[str, ...]) -> list[Draft]:
    """Measure spectra, those of equal length together; results in the given order."""
    plain = [name for name in metrics if METRICS[name].needs == "spectrum"]
    by_length: dict[int, list[int]] = {}
    for i, part in enumerate(parts):
        by_length.setdefault(len(part.eigenvalues), []).append(i)
    drafts: dict[int, Draft] = {}
    for length, members in by_length.items():
        for left in range(0, len(members), _BATCH_SPECTRA):
            batch = members[left : left + _BATCH_SPECTRA]
            found = measure_batch(torch.stack([parts[i].eigenvalues for i in batch]), plain)
            drafts |= dict(zip(batch, _drafts_of(found, length), strict=True))
    for i, draft in drafts.items():
        both = draft.values | parts[i].extra
        draft.values = {name: both[name] for name in metrics}
    return [drafts[i] for i in range(len(parts))]


def _drafts_of(found: Spectra, length: int) -> Iterator[Draft]:
    """Take a measured batch apart; one transfer from the device for each of its columns."""
    value = {name: column.tolist() for name, column in found.values.items()}
    gone = {name: column.tolist() for name, column in found.undefined.items()}
    rank = found.rank.tolist()
    peak = found.tails.get("alpha_peak")
    sizes = peak.size.tolist() if peak else [None] * len(rank)
    distances = peak.distance.tolist() if peak else [None] * len(rank)
    for i in range(len(rank)):
        known = {name: None if gone[name][i] else value[name][i] for name in value}
        yield Draft(known, rank[i], length, sizes[i], distances[i])


def _merge(parts: list[Draft]) -> Draft:
    """The mean of a fused matrix's parts; ranks and sizes add up."""
    if len(parts) == 1:
        return parts[0]
    values: dict[str, float | None] = {}
    for name in parts[0].values:
        known = [v for part in parts if (v := part.values[name]) is not None]
        values[name] = statistics.fmean(known) if known else None
    sizes = [part.tail_size for part in parts if part.tail_size is not None]
    distances = [part.tail_distance for part in parts if part.tail_distance is not None]
    return Draft(
        values,
        sum(part.rank for part in parts),
        sum(part.full for part in parts),
        sum(sizes) if sizes else None,
        statistics.fmean(distances) if distances else None,
    )


def _row(
    matrix: Matrix, zeros: float, notes: tuple[str, ...], draft: Draft, stand_in: dict[str, float]
) -> SpectrumRow:
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
        zeros=zeros,
        tail_size=draft.tail_size,
        tail_distance=draft.tail_distance,
        warning=_warning(draft, missing, any(name in stand_in for name in missing)),
        notes=notes,
    )


def _warning(draft: Draft, missing: list[str], replaced: bool) -> str | None:
    if not missing and draft.rank == draft.full:
        return None
    if draft.oddity is not None:
        oddity = draft.oddity
    elif draft.rank == 0:
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
