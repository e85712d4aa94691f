"""From a checkpoint to one row of shape metrics for each matrix, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Anatomy, Matrix, matrix_view
from compress.checkpoints.loader import BlockLoader, skeleton
from compress.checkpoints.placement import resolve_device
from compress.checkpoints.source import Source
from compress.errors import RequestError, near_names
from compress.numerics.ranks import ALONE, Team, shares
from compress.progress import Progress, silent
from compress.spectra.cache import SpectraCache
from compress.spectra.decompose import Wanted, decompose
from compress.spectra.farms import FarmsSettings
from compress.spectra.metrics import DEFAULT_METRICS, METRICS
from compress.spectra.parts import logical_parts
from compress.spectra.rows import MatrixSpectrum, SpectrumRow, rows_of

ENGINES = ("compress", "weightwatcher")


def measure_spectra(
    source: Source,
    anatomy: Anatomy,
    *,
    metrics: Collection[str] | None = None,
    device: str | torch.device = "cpu",
    exact: bool = False,
    precise: bool = False,
    progress: Progress = silent,
    matrices: Sequence[Matrix] | None = None,
    farms: FarmsSettings | None = None,
    seed: int = 0,
    cache: SpectraCache | None = None,
    engine: str = "compress",
    team: Team = ALONE,
) -> list[SpectrumRow]:
    """Measure every matrix of every block; experts each, fused matrices by their parts.

    Args:
        source: the checkpoint; its weights are read a block at a time.
        anatomy: its anatomy.
        metrics: names of METRICS; None is DEFAULT_METRICS, or those that WeightWatcher has.
        device: where the decompositions run.
        exact: decompose by singular values, see `gram_eigenvalues`.
        precise: eigenvalues in double precision throughout; else exponents may be off by up to
            1e-4 (measured: 2e-6) where single precision settles them, see `settled`.
        progress: hears of every block.
        matrices: which ones, in the anatomy's order; None is all.
        farms: windows of the metric farms; None is FARMS' published ones.
        seed: of the shuffle behind rand_distance.
        cache: where spectra of equal tensors are found and kept; None is nowhere.
        engine: "weightwatcher" has its `analyze` measure the same matrices.
        team: processes that share the matrices between them and all return the rows; with
            "weightwatcher" the first measures all.

    Returns:
        A row for each of the matrices, in order. Where a value doesn't exist (a zero matrix, one
        of rank one, equal singular values) the median of the matrices that have one stands in, so
        that it pulls no allocation either way, and the row's warning says so.

    Raises:
        RequestError: an unknown metric or engine, one that the engine doesn't have, WeightWatcher
            not installed; a weight that is NaN or Inf (the matrix is named).
    """
    chosen = anatomy.matrices if matrices is None else matrices
    if engine not in ENGINES:
        hint = near_names(engine, ENGINES)
        raise RequestError(f"`--engine {engine}` isn't an engine for spectra", hint)
    for name in metrics or ():
        if name not in METRICS:
            raise RequestError(f"`{name}` isn't a metric", near_names(name, METRICS))
    if engine == "weightwatcher":
        from compress.spectra.watcher import watched_rows

        return team.from_first(
            lambda: watched_rows(
                source, anatomy, chosen, metrics=metrics, seed=seed, progress=progress
            )
        )
    names = tuple(DEFAULT_METRICS if metrics is None else metrics)
    wanted = Wanted(names, exact, farms or FarmsSettings(), seed, precise)
    place = torch.device(resolve_device(device))
    own = [chosen[i] for i in _share(chosen, team, place)]
    spectra = read_spectra(
        source, anatomy, own, wanted, device=device, cache=cache, progress=progress
    )
    return rows_of(_gathered(list(spectra), team, place), names)


def _share(matrices: Sequence[Matrix], team: Team, device: torch.device) -> list[int]:
    """Which matrices this rank decomposes: about as much work as every other.

    On CUDA equal shapes of a block are decomposed in one batch, whose bits may depend on what is
    in it: there blocks stay whole.
    """
    costs: dict[str, float] = {}
    unit = [m.block if device.type == "cuda" else m.name for m in matrices]
    for matrix, name in zip(matrices, unit, strict=True):
        costs[name] = costs.get(name, 0.0) + float(matrix.numel * min(matrix.shape))
    names = list(costs)
    own = {names[i] for i in shares(list(costs.values()), team.size)[team.rank]}
    return [i for i, name in enumerate(unit) if name in own]


def _gathered(own: list[MatrixSpectrum], team: Team, device: torch.device) -> list[MatrixSpectrum]:
    """The spectra of all ranks, in the order of matrices, on this rank's device."""
    if team.size == 1:
        return own
    found = [s for part in team.gather([_moved(s, "cpu") for s in own]) for s in part]
    return [_moved(spectrum, device) for spectrum in found]


def _moved(spectrum: MatrixSpectrum, device: str | torch.device) -> MatrixSpectrum:
    parts = [replace(p, eigenvalues=p.eigenvalues.to(device)) for p in spectrum.parts]
    return replace(spectrum, parts=parts, zeros=spectrum.zeros.to(device))


def read_spectra(
    source: Source,
    anatomy: Anatomy,
    matrices: Sequence[Matrix],
    wanted: Wanted,
    *,
    device: str | torch.device = "cpu",
    cache: SpectraCache | None = None,
    progress: Progress = silent,
) -> Iterator[MatrixSpectrum]:
    """Yield the spectra of some matrices, block by block in the anatomy's order.

    Arguments and errors as in `measure_spectra`; only blocks with one of `matrices` are read.
    """
    for block in read_blocks(source, anatomy, matrices, device=device, progress=progress):
        flat = [(matrix.name, part) for matrix, _, parts in block for part in parts]
        measured = iter(decompose(flat, wanted, cache))
        for matrix, view, parts in block:
            spectra = [next(measured) for _ in parts]
            if cache is not None:
                cache.count(all(part.cached for part in spectra))
            cut = {wanted.farms.note(part.shape) for part in spectra}
            notes = sorted(note for note in cut if note and "farms" in wanted.metrics)
            zeros = view.numel() - view.count_nonzero()
            yield MatrixSpectrum(matrix, spectra, zeros, tuple(notes))


def read_blocks(
    source: Source,
    anatomy: Anatomy,
    matrices: Sequence[Matrix],
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Iterator[list[tuple[Matrix, Tensor, list[Tensor]]]]:
    """Yield, a block at a time, its wanted matrices: each with its weight and its logical parts.

    Arguments as in `measure_spectra`. Weights are gone when the next block is asked for.
    """
    wanted = {matrix.name for matrix in matrices}
    model = skeleton(source)
    blocks = anatomy.blocks
    names = [block.name for block in blocks]
    loader = BlockLoader(source, model, blocks=names, device=resolve_device(device))
    done = 0
    progress("spectra", done, len(wanted))
    for block in blocks:
        chosen = [matrix for matrix in block.matrices if matrix.name in wanted]
        if not chosen:
            continue
        loader.load(block.name)
        tensors = loader.tensors(block.name)
        views = [(matrix, matrix_view(tensors[matrix.parameter], matrix)) for matrix in chosen]
        yield [(m, view, logical_parts(m, view, source.config)) for m, view in views]
        del tensors, views
        loader.unload(block.name)
        done += len(chosen)
        progress("spectra", done, len(wanted), block.name)
