"""What is read and joined before anything is trained; a dry run stops here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compress.drought.impacts import Impacts, outside, read_impacts
from compress.drought.series import WEEK, Series, read_series
from compress.drought.settings import SideSettings
from compress.drought.splitting import PARTS, Split, make_split
from compress.drought.table import WeekTable, join, window_digests
from compress.drought.texts import Texts, drop_repeats, mask_texts, read_texts, within
from compress.errors import RequestError, near_names

SIMULATED = "SIMULATED DATA: made up to test the program; nothing in this is real"
UNSAFE = (
    "UNSAFE RANDOM SPLIT: neighbouring weeks lie on both sides, so these figures say nothing about "
    "the future"
)
SHUFFLED = "NULL CONTROL: texts were dealt out to other weeks; what they said is no longer true"


@dataclass(frozen=True)
class Data:
    """Everything that was read.

    Attributes:
        series, impacts: as read; impacts None where none were given.
        texts: masked, within the series, unrepeated.
        split: the borders.
        table: all joined.
        warnings: lines that stand first in every report.
        notes: plain sentences for the reader.
    """

    series: Series
    texts: Texts
    impacts: Impacts | None
    split: Split
    table: WeekTable
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """What a dry run prints and a receipt keeps, as JSON types."""
        table = self.table
        texts = table.text_counts
        found: dict[str, Any] = {
            "series": {
                "layout": self.series.layout.name,
                "form": self.series.form,
                "digest": self.series.digest,
                "regions": list(table.regions),
                "inputs": list(table.physical_names),
                "duplicates": self.series.duplicates,
                "filled": [f"{name} {day}" for name, day in self.series.filled],
            },
            "split": self.split.as_dict(),
            "samples": {
                name: {str(h): len(table.anchors(i, h)) for h in table.horizons}
                for i, name in enumerate(PARTS)
            },
            "purged": {str(h): int(n) for h, n in zip(table.horizons, table.purged)},
        }
        if self.texts.digest is not None:
            found["texts"] = {
                "digest": self.texts.digest,
                **self.texts.counts(),
                "by_week": {
                    "median": float(np.median(texts)),
                    "most": int(texts.max()),
                    "share_empty": float((texts == 0).mean()),
                },
            }
        if self.impacts is not None:
            known = table.impacts_known
            found["impacts"] = {
                "digest": self.impacts.digest,
                "records": self.impacts.records,
                "outside": outside(
                    self.impacts, table.regions, int(table.days.min()) - WEEK, int(table.days.max())
                ),
                "weeks_known": int(known.sum()),
                "share_of_weeks": {
                    name: float((table.impacts[known, i] > 0).mean()) if known.any() else 0.0
                    for i, name in enumerate(table.categories)
                },
            }
        return found

    def plan(self) -> dict[str, Any]:
        """A dry run's answer: the same, and hashes of what each part's samples see."""
        import hashlib

        wholes = {name: hashlib.sha256() for name in PARTS}
        for (place, day, kind), digest in sorted(window_digests(self.table).items()):
            part = self._part_of(place, day)
            wholes[PARTS[part]].update(f"{place} {day} {kind} {digest}\n".encode())
        digests = {name: f"sha256:{whole.hexdigest()}" for name, whole in wholes.items()}
        return {
            "schema": 1,
            "command": "train-side",
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            **self.as_dict(),
            "window_digests": digests,
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def _part_of(self, place: str, day: str) -> int:
        from datetime import date

        number = self.table.regions.index(place)
        rows = self.table.region == number
        at = np.flatnonzero(rows & (self.table.days == date.fromisoformat(day).toordinal()))
        return int(self.table.part[at[0]])


def prepare(settings: SideSettings) -> Data:
    """Read, check and join.

    Raises:
        RequestError: see the modules of each kind of data.
    """
    series = read_series(settings.series, regions=settings.regions, fill=settings.fill)
    if settings.target == "worst-category" and not series.has_classes:
        raise RequestError(
            "`--target worst-category` needs the area in each class, and the series has dsci alone",
            "give None, D0 … D4, or estimate dsci",
        )
    names = [region.name for region in series.regions]
    for name in settings.transfer_to:
        if name not in names or len(names) == len(settings.transfer_to):
            raise RequestError(
                f"`--transfer-to {name}` isn't a region beside others", near_names(name, names)
            )
    days = np.unique(np.concatenate([region.days for region in series.regions]))
    least = settings.context + max(settings.horizons)
    if len(days) <= least + 2:
        raise RequestError(
            f"{len(days)} weeks are too few to split: {least + 52} are needed",
            "a longer series, a shorter --context or nearer --horizons",
        )
    split = make_split(
        days, settings.split, unsafe=settings.unsafe_random_split, seed=settings.seed,
        **settings.dates,
    )  # fmt: skip
    texts = Texts()
    if settings.texts is not None:
        texts = _texts(settings, names, days, split)
    impacts = read_impacts(settings.impact) if settings.impact is not None else None
    table = join(
        series, texts, impacts, split, horizons=settings.horizons, context=settings.context,
        target=settings.target, embargo=settings.embargo, transfer_to=settings.transfer_to,
    )  # fmt: skip
    simulated = series.simulated or texts.simulated or bool(impacts and impacts.simulated)
    flags = (
        (UNSAFE, settings.unsafe_random_split),
        (SIMULATED, simulated),
        (SHUFFLED, settings.shuffle_texts),
    )
    notes = [*series.notes, *texts.notes]
    dropped = [] if impacts is None else sorted({*impacts.categories} - {*table.categories})
    if dropped:
        notes.append(f"categories never seen in training weeks, left out: {', '.join(dropped)}")
    if texts.digest and texts.duplicates:
        notes.append(f"{texts.duplicates} repeated texts left out")
    left_out = sum(texts.outside.values())
    if left_out:
        notes.append(f"{left_out} texts outside the series' places or weeks left out")
    return Data(
        series, texts, impacts, split, table, tuple(w for w, on in flags if on), tuple(notes)
    )


def _texts(settings: SideSettings, names: list[str], days: np.ndarray, split: Split) -> Texts:
    assert settings.texts is not None
    texts = within(read_texts(settings.texts), names, int(days[0]) - WEEK, int(days[-1]))
    if settings.masks:
        texts = mask_texts(texts)
    if settings.shuffle_texts:
        texts = shuffled(texts, settings.seed)
    return drop_repeats(texts, split.val_from, split.test_from)


def shuffled(texts: Texts, seed: int) -> Texts:
    """Deal the words out to other days and places; how many there are of each stays."""
    rng = np.random.Generator(np.random.Philox(key=[seed, len(texts.items)]))
    order = rng.permutation(len(texts.items))
    dealt = [replace(item, text=texts.items[other].text) for item, other in zip(texts.items, order)]
    return replace(texts, items=tuple(sorted(dealt, key=lambda t: (t.day, t.region, t.key))))
