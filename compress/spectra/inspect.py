"""`compress inspect`: spectra, anatomy and size of a checkpoint. Changes nothing."""

from __future__ import annotations

import csv as csv_module
import io
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Anatomy, Matrix, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import Source, open_source
from compress.errors import RequestError, RunError
from compress.progress import Progress, silent
from compress.reports import formats as fmt
from compress.reports.charts import spectrum
from compress.spectra.measure import MatrixSpectrum, SpectrumRow, read_spectra, rows_of
from compress.spectra.metrics import METRICS, UNDEFINED, measure_batch
from compress.spectra.plots import (
    histogram,
    overview_png,
    spectrum_png,
)

DRAWN = "alpha_peak"
_ALPHAS = {
    "alpha_peak": "peak",
    "alpha_peak_strict": "strict",
    "alpha_mid": "mid",
    "alpha_ks": "ks",
}
_LEGEND = (
    "peak, strict, mid, ks: variants of alpha, the exponent of the tail. Smaller: a heavier tail, "
    "better trained, to be pruned less. Compare one variant, on alike shapes only. D, k: distance "
    "of peak's fit and eigenvalues in its tail. A block's line is the mean of its matrices."
)
_FIRST_TO_GO = ("D", "k", "strict", "entropy", "mid")  # where the table is wider than the screen


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
class Inspection:
    """What `inspect` found."""

    model: dict[str, Any]
    """source, architecture, digest, dtype, parameters, bytes, blocks, matrices."""
    anatomy: dict[str, Any]
    """Embeddings, heads, final norms, skipped parameters with reasons, coverage."""
    rows: tuple[SpectrumRow, ...]
    spectra: tuple[Spectrum, ...] = ()
    """With `module`: the spectrum of each of its parts."""

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

    def as_dict(self) -> dict[str, Any]:
        """CONTRACT's JSON."""
        whole = {"schema": 1, "model": self.model, "rows": [row.as_dict() for row in self.rows]}
        if self.spectra:
            return whole | {"spectra": [spectrum.as_dict() for spectrum in self.spectra]}
        return whole | {"blocks": self.blocks(), "anatomy": self.anatomy}

    def render(self, width: int | None = None) -> str:
        """The same as text: the table of all matrices, or the picture of one."""
        columns = fmt.screen_width() if width is None else width
        body = self._one(columns) if self.spectra else self._table(columns)
        notes = [
            fmt.wrap(f"note: {row.module}: {row.warning}", columns, "      ")
            for row in self.rows
            if row.warning
        ]
        return fmt.fit_encoding("\n\n".join([self._head(columns), body, "\n".join(notes)]).rstrip())

    def _head(self, width: int) -> str:
        m = self.model
        facts = (
            f"{m['source']}   {m['architecture']}, {m['blocks']} blocks, "
            f"{fmt.count_text(m['parameters'])} parameters, {m['dtype']}, "
            f"{fmt.bytes_text(m['bytes'])}"
        )
        return fmt.wrap(f"model     {facts}", width, " " * 10)

    def _table(self, width: int) -> str:
        lines: list[tuple[str, str, dict[str, Any]]] = []
        for mean in self.blocks():
            block = mean["block"]
            lines.append((block, "", mean))
            for row in (row for row in self.rows if row.block == block):
                name = f"  {row.module.removeprefix(block + '.')}{' *' if row.warning else ''}"
                lines.append((name, f"{row.shape[0]}×{row.shape[1]}", row.as_dict()))
        columns = {"": [name for name, _, _ in lines], "shape": [shape for _, shape, _ in lines]}
        for title, show in _shown(any(row.zeros for row in self.rows)).items():
            columns[title] = [show(values) for _, _, values in lines]
        for title in _FIRST_TO_GO:
            if _width(columns) > width:
                del columns[title]
        return f"{_laid_out(columns)}\n\n{fmt.wrap(_LEGEND, width, '')}"

    def _one(self, width: int) -> str:
        row, m = self.rows[0], self.rows[0].metrics
        head = (
            f"{row.module.rpartition('.')[2]}, block {row.block.rpartition('.')[2]}   "
            f"{row.shape[0]} × {row.shape[1]}   alpha_peak {m['alpha_peak']:.2f}   "
            f"alpha_ks {m['alpha_ks']:.2f}   stable rank {m['stable_rank']:.1f}"
        )
        lines = [fmt.wrap(head, width, "  ")]
        for one in self.spectra:
            lines += ["", fmt.wrap(one.caption(), width, "  "), one.chart(width)]
        return "\n".join(lines)


def inspect(
    model: str | Path,
    *,
    module: str | None = None,
    exact: bool = False,
    csv: str | Path | None = None,
    png: str | Path | None = None,
    device: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """Measure spectra, anatomy and size of a checkpoint.

    Args:
        model: a local directory or a Hub id; needs no tokenizer.
        module: one matrix, whose spectrum is kept; None is all of every block.
        exact: decompose in float64 by singular values.
        csv: a file to write the rows to.
        png: a file to draw to: the spectrum of `module`, else alpha_peak of all by block.
        device: where decompositions run.
        revision, token, trust_remote_code: as in `open_source`.
        progress: hears of every block.

    Raises:
        RequestError: a model that can't be read, an unknown module, a weight that is NaN or Inf, a
            file that can't be written.
        RunError: a file that couldn't be written after all.
    """
    for name, path in (("csv", csv), ("png", png)):
        _check_writable(name, path)
    source = open_source(model, revision=revision, token=token, trust_remote_code=trust_remote_code)
    empty = skeleton(source)
    anatomy = read_anatomy(empty)
    matrices: Sequence[Matrix] = anatomy.matrices if module is None else [anatomy.matrix(module)]
    spectra = list(
        read_spectra(source, anatomy, matrices, device=device, exact=exact, progress=progress)
    )
    rows = tuple(rows_of(spectra, tuple(METRICS)))
    kept = () if module is None else tuple(_full(spectra[0]))
    facts = _facts(source, type(empty).__name__, anatomy)
    seen = Inspection(facts, _anatomy_facts(anatomy), rows, kept)
    if csv is not None:
        _write(csv, lambda path: path.write_text(rows_csv(rows), encoding="utf-8"))
    if png is not None:
        _write(png, lambda path: _draw(path, seen))
    return seen


def rows_csv(rows: Sequence[SpectrumRow]) -> str:
    """Rows as CSV with a header; the shape in two columns."""
    stream = io.StringIO()
    fields = ["module", "block", "role", "out", "in", *METRICS, "zeros"]
    fields += ["tail_size", "tail_distance", "warning"]
    writer = csv_module.DictWriter(stream, fields, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = row.as_dict()
        cells.pop("shape")
        writer.writerow({**cells, "out": row.shape[0], "in": row.shape[1]})
    return stream.getvalue()


def _full(spectrum: MatrixSpectrum) -> list[Spectrum]:
    values = [part.cpu() for part in spectrum.eigenvalues]
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
        overview_png(path, f"{seen.model['source']}: {DRAWN}", seen.rows, DRAWN)
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


def _shown(zeros: bool) -> dict[str, Callable[[dict[str, Any]], str]]:
    """Column title to what it says of a row's or a block's values; in the order of the table."""

    def number(name: str, decimals: int) -> Callable[[dict[str, Any]], str]:
        def show(values: dict[str, Any]) -> str:
            value = values.get(name, "")
            return "–" if value == UNDEFINED else f"{value:.{decimals}f}" if value != "" else ""

        return show

    columns = {title: number(name, 2) for name, title in _ALPHAS.items()}
    columns |= {"D": number("tail_distance", 2), "k": number("tail_size", 0)}
    columns |= {"st.rank": number("stable_rank", 1), "entropy": number("entropy", 3)}
    if zeros:
        columns["zeros"] = lambda values: f"{100 * values['zeros']:.1f} %"
    return columns


def _width(columns: dict[str, list[str]]) -> int:
    return sum(max(map(len, [title, *cells])) + 2 for title, cells in columns.items()) - 2


def _laid_out(columns: dict[str, list[str]]) -> str:
    """Columns as narrow as their cells, two blanks between, so that ten of them fit a screen."""
    padded = []
    for title, cells in columns.items():
        wide = max(map(len, [title, *cells]))
        align = str.rjust if title else str.ljust
        padded.append([align(cell, wide) for cell in [title, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))
