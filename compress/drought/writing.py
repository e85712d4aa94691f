"""What lies in OUT: the model, what it was fitted with, its encoder, report, picture, estimates."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.durable import copy_companions, write_json, writing
from compress.checkpoints.quiet import without_bars
from compress.checkpoints.source import Source
from compress.drought.features import Inputs, Statistics, week_label
from compress.drought.metrics import samples
from compress.drought.modeling import SideModel
from compress.drought.scoring import SHOWN, Estimates

if TYPE_CHECKING:
    from compress.drought.command import Job

STATISTICS = "statistics.json"
HASHED = (
    "text.npz"  # travels with a compressed copy of the model, which leaves other weights behind
)
ENCODER = "encoder"
PICTURE = "series.png"


def write_result(
    place: Path,
    model: SideModel,
    job: Job,
    statistics: Statistics,
    widths: dict[str, dict[str, float]],
    report: dict[str, Any],
    estimates: Estimates,
    inputs: Inputs,
) -> None:
    """Write everything but the receipt.

    Args:
        place: an empty directory.
        model: the one that is kept.
        job: of the run.
        statistics, widths: what estimates of new series need.
        report: everything that was measured.
        estimates: of validation and test anchors.
        inputs: of the table.
    """
    from compress.drought.page import side_page
    from compress.drought.plots import draw_series
    from compress.reports.receipt import write_atomic

    with writing(place):
        with without_bars():
            model.cpu().save_pretrained(place)
        write_json(
            place / STATISTICS,
            {
                "schema": 1,
                "statistics": statistics.as_dict(),
                "half_widths": widths,
                "masked": job.settings.masks,
            },
        )
        if job.hashed is not None:
            job.hashed.save(place / HASHED)
        if job.source is not None:
            copy_encoder(job.source, place / ENCODER)
        lines = estimate_lines(job, estimates, widths, inputs)
        _write_csv(place / "estimates.csv", lines)
        write_json(place / "report.json", report)
        write_atomic(place / "report.html", side_page(report, lines, job.data.table))
    draw_series(place / PICTURE, report, lines)


def copy_encoder(source: Source, place: Path) -> None:
    """Copy an encoder's checkpoint file by file: stock stays stock, edited stays edited."""
    place.mkdir()
    files = {source.directory / "config.json", *source.files.values(), *source.companions()}
    files |= set(source.directory.glob("*.safetensors.index.json"))
    files |= set(source.directory.glob("*.bin.index.json"))
    copy_companions(sorted(files), place)


def estimate_lines(
    job: Job, estimates: Estimates, widths: dict[str, dict[str, float]], inputs: Inputs
) -> list[dict[str, Any]]:
    """A record per test sample: place, dates, truth, estimate of the kept model, its interval."""
    table = job.data.table
    severity, impact = estimates.severity[estimates.kept], estimates.impact[estimates.kept]
    scale = inputs.scale.cpu().numpy()
    bce = job.settings.impact_loss == "bce"
    lines = []
    for column, h in enumerate(table.horizons):
        some = samples(table, h)
        half = widths[str(h)][f"{SHOWN:g}"] * scale[:, column]
        for row, truth, base in zip(some.rows, some.truth, some.base):
            value = float(severity[row, column])
            line = {
                "region": table.regions[table.region[row]],
                "made": table.day(int(row)),
                "date": week_label(table, int(row), h),
                "horizon": h,
                "truth": float(truth),
                "persistence": float(base),
                "estimate": value,
                "low": value - float(half[row]),
                "high": value + float(half[row]),
            }
            for c, name in enumerate(table.categories):
                later = row + h
                if table.impacts_known[later]:
                    found = float(table.impacts[later, c])
                    line[f"impact {name}"] = float(found > 0) if bce else found
                line[f"estimated {name}"] = float(impact[row, column, c])
            lines.append(line)
    return lines


def _write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(key for line in lines for key in line))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in line.items()})
