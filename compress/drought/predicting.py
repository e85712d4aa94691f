"""`train-side --predict`: what a trained model says of the newest week of a series."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.checkpoints.placement import resolve_device
from compress.checkpoints.quiet import without_bars
from compress.drought.configuration import MODEL_TYPE, SideConfig
from compress.drought.embedding import TFIDF, HashedText, embed, open_encoder
from compress.drought.features import Statistics, make_inputs, week_label
from compress.drought.fitting import estimate
from compress.drought.impacts import read_impacts
from compress.drought.modeling import SideModel
from compress.drought.series import WEEK, Series, read_series
from compress.drought.splitting import TEST
from compress.drought.table import WeekTable, assemble
from compress.drought.texts import Texts, mask_texts, read_texts, within
from compress.drought.writing import ENCODER, HASHED, STATISTICS
from compress.errors import RequestError
from compress.progress import Progress, silent
from compress.reports.notebook import Displayable


@dataclass(frozen=True)
class Forecasts(Displayable):
    """Estimates of a series.

    Attributes:
        rows: a record per place and horizon.
        warnings: lines that stand first.
        notes: plain sentences for the reader.
    """

    rows: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "schema": 1,
            "command": "train-side",
            "forecasts": list(self.rows),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def render(self) -> str:
        """A table for people."""
        from compress.reports import formats as fmt

        levels = list(self.rows[0]["intervals"])
        shown = "0.9" if "0.9" in levels else levels[-1]
        titles = ["place", "made", "date", "h", "persistence", "estimate", f"{float(shown):.0%}"]
        rows = [
            [
                row["region"], row["made"], row["date"], str(row["horizon"]),
                f"{row['persistence']:.1f}", f"{row['estimate']:.1f}",
                "{:.1f} … {:.1f}".format(*row["intervals"][shown]),
            ]
            for row in self.rows
        ]  # fmt: skip
        parts = ["\n".join(self.warnings), fmt.table(titles, rows, "lllrrrr")]
        impacts = [row for row in self.rows if row.get("impact")]
        if impacts:
            names = list(impacts[0]["impact"])
            cells = [
                [row["region"], str(row["horizon"]), *(f"{row['impact'][n]:.2f}" for n in names)]
                for row in impacts
            ]
            kind = (
                "chance of an impact" if impacts[0]["impact_is"] == "chance" else "reports a week"
            )
            table = fmt.table(["place", "h", *names], cells, "lr" + "r" * len(names))
            parts.append(f"{kind}\n{table}")
        parts += [fmt.wrap(f"note: {note}", fmt.screen_width(), "      ") for note in self.notes]
        return fmt.fit_encoding("\n\n".join(part for part in parts if part))


def predict_side(
    model: str | Path,
    *,
    series: str | Path,
    texts: str | Path | None = None,
    impact: str | Path | None = None,
    regions: tuple[str, ...] = (),
    fill: str | None = None,
    encoder: str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Forecasts:
    """Estimate from the newest week of each place of a series.

    The nowcast is that of the newest week too, as if its map weren't known.

    Args:
        model: a directory that train-side wrote.
        series, texts, impact, regions, fill: as in training.
        encoder: another directory of the text encoder than `encoder` in the model's.
        device: where it runs.
        progress: told while texts are read.

    Raises:
        RequestError: the directory isn't such a model; a series without the inputs it was trained
            on, too short for its context, or (a place not trained on) for statistics of its own.
    """
    place = Path(model)
    config, stored = _open(place)
    read = read_series(series, regions=regions, fill=fill)
    with_classes = any(name.startswith("cum_") for name in config.physical)
    extra = [n for n in config.physical if n not in ("dsci", "sin", "cos", "filled")]
    extra = [n for n in extra if not n.startswith("cum_")]
    if (with_classes and not read.has_classes) or list(read.layout.extra) != extra:
        have = [*(["classes"] if read.has_classes else []), *read.layout.extra]
        need = [*(["classes"] if with_classes else []), *extra]
        raise RequestError(
            f"the model was trained on {', '.join(need) or 'dsci alone'}, `{series}` has "
            f"{', '.join(have) or 'dsci alone'}",
            "give a series with the columns of the training series",
        )
    kept = _read_texts(texts, config, read, stored)
    table = _table(read, kept, impact, config)
    vectors = _vectors(place, config, kept, encoder, device, progress)
    statistics, notes = _statistics(stored, config, table)
    inputs = make_inputs(table, vectors, statistics, config.impact_loss, tuple(config.regions))
    where = resolve_device(device)
    with without_bars():
        loaded = SideModel.from_pretrained(place).eval().to(where)
    rows = np.flatnonzero(table.valid.any(axis=1))
    severity, chances = estimate(
        loaded, inputs.to(where), rows, len(table.days), config.impact_loss
    )
    found = []
    for row in rows:
        for column, h in enumerate(table.horizons):
            half = stored["half_widths"][str(h)]
            scale = float(inputs.scale[row, column])
            value = float(severity[row, column])
            line: dict[str, Any] = {
                "region": table.regions[table.region[row]],
                "made": table.day(int(row)),
                "date": week_label(table, int(row), h),
                "horizon": h,
                "persistence": float(table.base(h)[row]),
                "estimate": value,
                "intervals": {k: [value - w * scale, value + w * scale] for k, w in half.items()},
            }
            if config.categories and "impact" in config.tasks:
                line["impact"] = {
                    name: float(chances[row, column, c]) for c, name in enumerate(config.categories)
                }
                line["impact_is"] = "chance" if config.impact_loss == "bce" else "count"
            found.append(line)
    warned = ("trained on SIMULATED DATA: these figures mean nothing",) * config.simulated
    if config.use_text and texts is None:
        notes.append(
            "the model was trained with texts and gets none here: its errors may be larger"
        )
    return Forecasts(tuple(found), warned, (*read.notes, *notes))


def _open(place: Path) -> tuple[SideConfig, dict[str, Any]]:
    try:
        raw = json.loads((place / "config.json").read_text(encoding="utf-8"))
        stored = json.loads((place / STATISTICS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"`--predict {place}`: no config.json and {STATISTICS} that can be read there",
            "name a directory that `compress train-side -o` wrote",
        ) from error
    if raw.get("model_type") != MODEL_TYPE:
        raise RequestError(
            f"`--predict {place}` is a {raw.get('model_type')} model, not one of train-side",
            "name a directory that `compress train-side -o` wrote",
        )
    return SideConfig.from_pretrained(place), stored


def _read_texts(
    path: str | Path | None, config: SideConfig, series: Series, stored: Mapping[str, Any]
) -> Texts:
    if path is None:
        return Texts()
    names = [region.name for region in series.regions]
    first = min(int(region.days[0]) for region in series.regions) - WEEK
    last = max(int(region.days[-1]) for region in series.regions)
    found = within(read_texts(path), names, first, last)
    return mask_texts(found) if stored.get("masked", True) else found


def _table(
    series: Series, texts: Texts, impact: str | Path | None, config: SideConfig
) -> WeekTable:
    """A table whose only samples are the newest weeks, at every horizon."""
    sizes = [len(region.days) for region in series.regions]
    for region in series.regions:
        if len(region.days) <= config.context:
            raise RequestError(
                f"{region.name} has {len(region.days)} weeks, {config.context + 1} are needed",
                "give a longer series",
            )
    valid = np.zeros((sum(sizes), len(config.horizons)), dtype=bool)
    valid[np.cumsum(sizes) - 1] = True
    return assemble(
        series,
        texts,
        read_impacts(impact) if impact is not None else None,
        np.full(sum(sizes), TEST),
        valid,
        horizons=config.horizons,
        context=config.context,
        target=config.target,
        categories=config.categories,
    )


def _vectors(
    place: Path,
    config: SideConfig,
    texts: Texts,
    encoder: str | Path | None,
    device: str,
    progress: Progress,
) -> np.ndarray:
    words = [item.text for item in texts.items]
    if not words:
        return np.zeros((0, config.text_width), np.float32)
    if config.encoder != TFIDF:
        own = place / ENCODER if encoder is None else Path(encoder)
        if not own.is_dir():
            raise RequestError(
                f"`{own}` isn't there: a compressed copy of the model comes without its encoder",
                "add `--encoder DIR`, the `encoder` of the directory that train-side wrote",
            )
        vectors = embed(open_encoder(own), words, resolve_device(device), progress)
        if vectors.shape[1] != config.text_width:
            raise RequestError(
                f"`--encoder {own}` gives vectors of {vectors.shape[1]}, the model was trained on "
                f"{config.text_width}",
                "give the encoder that it was trained with, compressed or not",
            )
        return vectors
    if not (place / HASHED).is_file():
        raise RequestError(f"the model in `{place}` was trained without texts", "leave --texts out")
    return HashedText.load(place / HASHED)(words)


def _statistics(
    stored: Mapping[str, Any], config: SideConfig, table: WeekTable
) -> tuple[Statistics, list[str]]:
    """The stored statistics, and those of places that weren't trained on from their own weeks."""
    kept = Statistics.from_dict(stored["statistics"])
    physical, scale = dict(kept.physical), dict(kept.scale)
    notes = []
    for number, name in enumerate(table.regions):
        if name in physical:
            continue
        rows = table.region == number
        if rows.sum() < config.context + 52:
            raise RequestError(
                f"{name} wasn't trained on and has {int(rows.sum())} weeks, "
                f"{config.context + 52} are needed to know its range",
                "give a longer series, or leave it out by --regions",
            )
        values = table.physical[rows]
        spread = values.std(axis=0)
        cycles = np.isin(table.physical_names, ("sin", "cos", "filled"))
        physical[name] = (
            np.where(cycles, 0.0, values.mean(axis=0)).tolist(),
            np.where(cycles | (spread < 1e-6), 1.0, spread).tolist(),
        )
        own = table.severity[rows]
        changes = [own[max(h, 1) :] - own[: -max(h, 1)] for h in table.horizons]
        found = [float(np.sqrt((c**2).mean())) for c in changes]
        scale[name] = [f if f > 1e-6 else 1.0 for f in found]
        notes.append(f"{name} wasn't trained on: standardised by its own weeks")
    return Statistics(**{**vars(kept), "physical": physical, "scale": scale}), notes
