"""`compress inspect`: spectra, anatomy and size of a checkpoint. Changes nothing."""

from __future__ import annotations

import contextlib
import csv as csv_module
import io
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoints.anatomy import Anatomy, Matrix, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import resolve_device
from compress.checkpoints.save import placed
from compress.checkpoints.source import Source, open_source
from compress.errors import RequestError, RunError, near_names
from compress.numerics.ranks import Team, joined
from compress.progress import Progress, silent
from compress.reports.charts import spectrum
from compress.reports.notebook import Displayable
from compress.spectra.cache import SpectraCache
from compress.spectra.decompose import Wanted
from compress.spectra.farms import FarmsSettings
from compress.spectra.measure import measure_spectra, read_spectra
from compress.spectra.metrics import DEFAULT_METRICS, METRICS, measure_batch
from compress.spectra.page import html_page
from compress.spectra.plots import histogram, overview_png, spectrum_png
from compress.spectra.rows import MatrixSpectrum, SpectrumRow, rows_of

DRAWN = "alpha_peak"


@dataclass(frozen=True)
class Spectrum:
    """One spectrum in full, with the tail of alpha_peak."""

    part: str | None
    """Which part of a fused matrix, such as "1 of 3"; None for a whole one."""
    eigenvalues: Tensor
    """[N] float64, ascending."""
    alpha: float
    start: float
    size: int
    """Eigenvalues in the tail; 0 where there is none."""

    @classmethod
    def of(cls, eigenvalues: Tensor, part: str | None = None) -> Spectrum:
        """Fit the tail of alpha_peak."""
        tail = measure_batch(eigenvalues[None], [DRAWN]).tails[DRAWN]
        alpha, start, size = (float(column[0]) for column in (tail.alpha, tail.start, tail.size))
        return cls(part, eigenvalues, alpha, start, int(size))

    def caption(self) -> str:
        """What the chart shows."""
        part = "" if self.part is None else f"part {self.part}: "
        if not self.size:
            return f"{part}no tail"
        return (
            f"{part}{self.size} of {len(self.eigenvalues)} eigenvalues in the tail, "
            f"alpha_peak {self.alpha:.2f}"
        )

    def chart(self, width: int) -> str:
        """The histogram with the fitted tail, at most `width` columns wide."""
        return spectrum(
            self.eigenvalues.tolist(),
            tail_from=self.start if self.size else None,
            exponent=self.alpha if self.size else None,
            width=width,
        )

    def as_dict(self) -> dict[str, Any]:
        """Histogram and tail as JSON."""
        data = histogram(self.eigenvalues, 100, self.alpha, self.start, self.size)
        tail = {"alpha_peak": self.alpha, "start": self.start, "size": self.size}
        named = {} if self.part is None else {"part": self.part}
        bins = {"edges": data.edges.tolist(), "counts": data.counts.tolist()}
        return {**named, **bins, **({"tail": tail} if self.size else {})}


@dataclass(frozen=True)
class Inspection(Displayable):
    """What `inspect` found."""

    model: dict[str, Any]
    """source, architecture, digest, dtype, parameters, bytes, blocks, matrices."""
    anatomy: dict[str, Any]
    """Embeddings, heads, final norms, skipped parameters with reasons, coverage."""
    rows: tuple[SpectrumRow, ...]
    spectra: tuple[Spectrum, ...] = ()
    """With `module`: the spectrum of each of its parts."""
    plot: str | None = None
    """The metric that is drawn by block and by matrix type."""
    engine: str = "compress"
    cache: SpectraCache | None = None
    """Its `hits` of this inspection; None where none was used."""
    farms: FarmsSettings | None = None
    """Windows of the metric farms, where it was measured."""

    def blocks(self) -> list[dict[str, Any]]:
        """Unweighted mean of every metric in each block, in order."""
        out = []
        for block in dict.fromkeys(row.block for row in self.rows):
            mine = [row for row in self.rows if row.block == block]
            means = {n: statistics.fmean(row.metrics[n] for row in mine) for n in mine[0].metrics}
            sizes = [row.shape[0] * row.shape[1] for row in mine]
            zeros = sum(row.zeros * size for row, size in zip(mine, sizes)) / sum(sizes)
            out.append({"block": block, **means, "zeros": zeros})
        return out

    @property
    def drawn(self) -> str:
        """The metric of pictures: the one asked for, else alpha_peak, else the first there is."""
        names = self.rows[0].metrics
        return self.plot or (DRAWN if DRAWN in names else next(iter(names)))

    def as_dict(self) -> dict[str, Any]:
        """CONTRACT's JSON."""
        whole: dict[str, Any] = {"schema": 1, "model": self.model, "engine": self.engine}
        whole["rows"] = [row.as_dict() for row in self.rows]
        if self.cache is not None:
            whole["cache"] = {"hits": self.cache.hits, "misses": self.cache.misses}
        if self.farms is not None:
            whole["farms"] = asdict(self.farms)
        if self.spectra:
            return whole | {"spectra": [spectrum.as_dict() for spectrum in self.spectra]}
        return whole | {"blocks": self.blocks(), "anatomy": self.anatomy}

    def render(self, width: int | None = None) -> str:
        """The same as text: the table of all matrices, or the picture of one."""
        from compress.spectra.screen import render

        return render(self, width)


def inspect(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    module: str | None = None,
    exact: bool = False,
    farms: FarmsSettings | str | None = None,
    randomize: bool = False,
    mp_fit: bool = False,
    seed: int = 0,
    engine: str = "compress",
    plot: str | None = None,
    csv: str | Path | None = None,
    png: str | Path | None = None,
    html: str | Path | None = None,
    cache: bool = True,
    device: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """Measure spectra, anatomy and size of a checkpoint.

    Args:
        model: a local directory, a Hub id, or a model in memory; needs no tokenizer.
        tokenizer: of a model in memory, never read.
        module: one matrix, whose spectrum is kept; None is all of every block.
        exact: decompose in float64 by singular values.
        farms: also measure FARMS' exponent, in these windows; "m,Q,ops" or settings.
        randomize: also measure the distance to the shuffled matrix.
        mp_fit: also fit the Marchenko-Pastur bulk.
        seed: of the shuffle.
        engine: "compress", or "weightwatcher" for WeightWatcher's values of the same matrices.
        plot: a metric that is drawn by block and matrix type; in pictures alpha_peak by default.
        csv: a file to write the rows to.
        png: a file to draw to: the spectrum of `module`, else the metric of all.
        html: a file to write all to, tables and pictures, that needs nothing else.
        cache: find and keep spectra by the content of tensors, see `spectra.cache`.
        device: where decompositions run.
        revision, token, trust_remote_code: as in `open_source`.
        progress: hears of every block.

    The processes of a launcher share the matrices between them; all return the same, and the first
    writes the files.

    Raises:
        RequestError: a model that can't be read, an unknown module, metric or engine, windows that
            can't be, a weight that is NaN or Inf, a file that can't be written.
        RunError: a file that couldn't be written after all.
    """
    for name, path in (("csv", csv), ("png", png), ("html", html)):
        _check_writable(name, path)
    windows = FarmsSettings.parse(farms) if isinstance(farms, str) else farms
    if plot is not None and plot not in METRICS:
        raise RequestError(f"`--plot {plot}` isn't a metric", near_names(plot, METRICS))
    names = _names(engine, windows, randomize, mp_fit, plot)
    with contextlib.ExitStack() as stack:
        path = placed(model, tokenizer, stack)
        source = open_source(
            path, revision=revision, token=token, trust_remote_code=trust_remote_code
        )
        empty = skeleton(source)
        anatomy = read_anatomy(empty)
        matrices: Sequence[Matrix] = (
            anatomy.matrices if module is None else [anatomy.matrix(module)]
        )
        store = SpectraCache() if cache and engine == "compress" else None
        kept: tuple[Spectrum, ...] = ()
        with joined(device, remedy="run it again") as team:
            device = team.device(resolve_device(device))
            progress = progress if team.first else silent
            if module is None or engine != "compress":
                rows = measure_spectra(
                    source, anatomy, metrics=names, matrices=matrices, device=device, exact=exact,
                    farms=windows, seed=seed, cache=store, engine=engine, progress=progress,
                    team=team,
                )  # fmt: skip
                _count_together(store, team)
            else:
                wanted = Wanted(names, exact, windows or FarmsSettings(), seed)
                spectra = list(
                    read_spectra(
                        source,
                        anatomy,
                        matrices,
                        wanted,
                        device=device,
                        cache=store,
                        progress=progress,
                    )
                )
                rows, kept = rows_of(spectra, names), tuple(_full(spectra[0]))
        facts = _facts(source, type(empty).__name__, anatomy)
        measured_farms = (windows or FarmsSettings()) if "farms" in names else None
        seen = Inspection(
            facts, _anatomy_facts(anatomy), tuple(rows), kept, plot, engine, store, measured_farms
        )
    if not team.first:
        return seen
    if csv is not None:
        _write(csv, lambda path: path.write_text(rows_csv(rows), encoding="utf-8"))
    if png is not None:
        _write(png, lambda path: _draw(path, seen))
    if html is not None:
        _write(html, lambda path: path.write_text(html_page(seen), encoding="utf-8"))
    return seen


def _count_together(cache: SpectraCache | None, team: Team) -> None:
    """Give every process what the caches of all found and missed."""
    if cache is not None:
        counts = team.gather((cache.hits, cache.misses, cache.outdated, cache.damaged))
        cache.hits, cache.misses, cache.outdated, cache.damaged = map(sum, zip(*counts))


def _names(
    engine: str, farms: FarmsSettings | None, randomize: bool, mp_fit: bool, plot: str | None
) -> tuple[str, ...]:
    """The metrics that a request measures."""
    extra = {"farms"} if farms is not None else set()
    extra |= {"rand_distance"} if randomize else set()
    extra |= {name for name, m in METRICS.items() if mp_fit and m.needs == "shape"}
    extra |= {plot} if plot else set()
    if engine == "weightwatcher":
        from compress.spectra.watcher import PLAIN

        return tuple(n for n in METRICS if n in PLAIN or n in extra)
    return tuple(name for name in METRICS if name in DEFAULT_METRICS or name in extra)


def rows_csv(rows: Sequence[SpectrumRow]) -> str:
    """Rows as CSV with a header; the shape in two columns."""
    stream = io.StringIO()
    measured = rows[0].metrics if rows else {}
    fields = ["module", "block", "role", "out", "in", *measured, "zeros"]
    fields += ["tail_size", "tail_distance", "warning", "notes"]
    writer = csv_module.DictWriter(stream, fields, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = row.as_dict()
        cells.pop("shape")
        cells["notes"] = "; ".join(row.notes)
        writer.writerow({**cells, "out": row.shape[0], "in": row.shape[1]})
    return stream.getvalue()


def _full(spectrum: MatrixSpectrum) -> list[Spectrum]:
    values = [part.eigenvalues.cpu() for part in spectrum.parts]
    if len(values) == 1:
        return [Spectrum.of(values[0])]
    return [Spectrum.of(v, f"{i} of {len(values)}") for i, v in enumerate(values, start=1)]


def _facts(source: Source, architecture: str, anatomy: Anatomy) -> dict[str, Any]:
    return {
        "source": source.name,
        "architecture": architecture,
        "digest": source.digest(),
        "dtype": str(source.dtype).removeprefix("torch."),
        "parameters": source.parameters_on_disk(),
        "bytes": source.bytes_on_disk(),
        "blocks": len(anatomy.blocks),
        "matrices": len(anatomy.matrices),
    }


def _anatomy_facts(anatomy: Anatomy) -> dict[str, Any]:
    return {
        "stacks": [[block.name for block in stack] for stack in anatomy.stacks],
        "embeddings": list(anatomy.embeddings),
        "heads": list(anatomy.heads),
        "final_norms": list(anatomy.final_norms),
        "coverage": anatomy.coverage,
        "skipped": [
            {"parameter": parameter, "reason": reason}
            for block in anatomy.blocks
            for parameter, reason in block.skipped
        ],
    }


def _draw(path: Path, seen: Inspection) -> None:
    if not seen.spectra:
        overview_png(path, f"{seen.model['source']}: {seen.drawn}", seen.rows, seen.drawn)
        return
    # The parts of a fused matrix in one picture would hide each other: their pooled spectrum.
    pooled = torch.cat([spectrum.eigenvalues for spectrum in seen.spectra])
    whole = seen.spectra[0] if len(seen.spectra) == 1 else Spectrum.of(pooled.sort().values)
    title = f"{seen.rows[0].module}   alpha_peak {whole.alpha:.2f}"
    spectrum_png(path, title, whole.eigenvalues, (whole.alpha, whole.start, whole.size))


def _check_writable(option: str, path: str | Path | None) -> None:
    if path is None:
        return
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        raise RequestError(f"`--{option} {path}`: there is no directory `{parent}`")
    if Path(path).is_dir():
        raise RequestError(f"`--{option} {path}` is a directory, a file is needed")


def _write(path: str | Path, make: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        make(partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"`{target}` can't be written: {error.strerror or error}") from error
