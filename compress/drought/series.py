"""Weekly severity of each place: read, checked, on a grid without holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from compress.drought.reading import Row, Sheet, need_date, need_number, read_sheet
from compress.drought.usdm import Layout, cumulative_of, dsci, names_of, recognise
from compress.errors import RequestError

WEEK = 7
MOST_FILLED = 2  # weeks in a row
SIMULATED = "simulated"


@dataclass(frozen=True)
class Region:
    """One place's series, a row a week.

    Attributes:
        name: as the file has it; FIPS codes with their leading zeros.
        days: ordinals of the map dates, int64 [weeks], 7 apart.
        cumulative: percent of the area in D0 or worse … D4, float64 [weeks, 5].
        extra: further numbers, float64 [weeks, columns].
        filled: weeks that were carried forward, bool [weeks].
    """

    name: str
    days: np.ndarray
    cumulative: np.ndarray
    extra: np.ndarray
    filled: np.ndarray

    @property
    def dsci(self) -> np.ndarray:
        """The index 0 … 500, float64 [weeks]."""
        return dsci(self.cumulative)


@dataclass(frozen=True)
class Series:
    """All places of a file.

    Attributes:
        regions: sorted by name.
        layout: as recognised.
        form: cumulative, categorical, dsci or class.
        duplicates: identical rows that were left out.
        filled: weeks carried forward, (region, date).
        notes: plain sentences for the reader.
        simulated: whether the file says that it is made up.
        digest: of the file.
    """

    regions: tuple[Region, ...]
    layout: Layout
    form: str
    duplicates: int
    filled: tuple[tuple[str, date], ...]
    digest: str
    simulated: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def has_classes(self) -> bool:
        """Whether the area in each class is known, not only the index."""
        return self.form != "dsci"

    def region(self, name: str) -> Region:
        """The place called `name`."""
        return next(r for r in self.regions if r.name == name)


def read_series(
    path: str | Path, *, regions: Sequence[str] = (), fill: str | None = None
) -> Series:
    """Read a series of one place or many.

    Args:
        path: a USDM file, or one with region, date and numbers.
        regions: the places to keep; all if none is named.
        fill: "forward" carries up to two missing weeks; None refuses gaps.

    Raises:
        RequestError: see `reading`, `usdm`; also an unknown region, two different rows for a place
            and week, a step that isn't a week, gaps.
    """
    sheet = read_sheet(path, "--series")
    layout = recognise(sheet)
    simulated = next((c for c in layout.extra if c.lower() == SIMULATED), None)
    extra = tuple(c for c in layout.extra if c != simulated)
    cumulative, form = cumulative_of(sheet, layout)
    others = [[need_number(sheet, row, column) for column in extra] for row in sheet.rows]
    places: dict[str, dict[int, int]] = {}
    duplicates = 0
    for number, row in enumerate(sheet.rows):
        name, day = _region_of(sheet, row, layout), need_date(sheet, row, layout.date).toordinal()
        weeks = places.setdefault(name, {})
        before = weeks.setdefault(day, number)
        if before != number:
            same = np.array_equal(cumulative[before], cumulative[number])
            if not same or others[before] != others[number]:
                raise RequestError(
                    f"{sheet.where(row)}: {name} {date.fromordinal(day)} stands on line "
                    f"{sheet.rows[before].line} too, with other numbers",
                    "keep one row a place and week",
                )
            duplicates += 1
    chosen = _chosen(places, regions, sheet)
    every = np.array(others, dtype=np.float64).reshape(len(sheet.rows), len(extra))
    made = [_on_grid(name, places[name], cumulative, every, fill, sheet) for name in chosen]
    filled = tuple((r.name, date.fromordinal(int(day))) for r in made for day in r.days[r.filled])
    notes = []
    if layout.ignored:
        known = ("validstart", "validend", "county", "start_date", "end_date", "date", "state")
        unknown = [name for name in layout.ignored if name.lower() not in known]
        if unknown:
            notes.append(f"columns of the series without a use, ignored: {names_of(unknown)}")
    if duplicates:
        notes.append(f"{duplicates} repeated rows of the series left out")
    if filled:
        listed = ", ".join(f"{name} {day}" for name, day in filled[:6])
        notes.append(f"{len(filled)} weeks carried forward: {listed}{' …' * (len(filled) > 6)}")
    found = Layout(
        layout.name, layout.region, layout.date, layout.severity, layout.columns, extra,
        layout.flag, layout.ignored,
    )  # fmt: skip
    return Series(
        tuple(made), found, form, duplicates, filled, sheet.digest, simulated is not None,
        tuple(notes),
    )  # fmt: skip


def _region_of(sheet: Sheet, row: Row, layout: Layout) -> str:
    name = row.text(layout.region)
    if not name:
        raise RequestError(f"{sheet.where(row)}: `{layout.region}` is empty", "name the place")
    return name.zfill(5) if layout.name == "county" else name


def _chosen(places: dict[str, dict[int, int]], asked: Sequence[str], sheet: Sheet) -> list[str]:
    if not asked:
        return sorted(places)
    for name in asked:
        if name not in places:
            from compress.errors import near_names

            raise RequestError(f"`{sheet.path}` has no region `{name}`", near_names(name, places))
    return sorted(set(asked))


def _on_grid(
    name: str,
    weeks: dict[int, int],
    cumulative: np.ndarray,
    extra: np.ndarray,
    fill: str | None,
    sheet: Sheet,
) -> Region:
    """Sort one place's weeks and see to its gaps."""
    days = np.array(sorted(weeks), dtype=np.int64)
    steps = np.diff(days)
    odd = steps % WEEK != 0
    if odd.any():
        at = int(odd.argmax())
        one, two = (date.fromordinal(int(d)) for d in days[at : at + 2])
        raise RequestError(
            f"`{sheet.path}`: {name} goes from {one} to {two}, {steps[at]} days; weekly rows are "
            "needed",
            "the maps of one weekday, 7 days apart",
        )
    gaps = [(int(days[i]), int(steps[i] // WEEK - 1)) for i in np.flatnonzero(steps > WEEK)]
    wide = [gap for gap in gaps if gap[1] > MOST_FILLED]
    if gaps and (fill != "forward" or wide):
        listed = ", ".join(
            f"{count} after {date.fromordinal(day)}" for day, count in (wide or gaps)[:5]
        )
        more = f" and {len(wide or gaps) - 5} more" if len(wide or gaps) > 5 else ""
        hint = "`--fill forward` carries up to two weeks; the filled weeks are marked in the inputs"
        raise RequestError(
            f"`{sheet.path}`: {name} has gaps, in weeks: {listed}{more}",
            hint
            if not wide
            else f"gaps of more than {MOST_FILLED} weeks aren't filled: "
            "give the part before or after",
        )
    grid = np.arange(days[0], days[-1] + 1, WEEK)
    newest = np.searchsorted(days, grid, side="right") - 1
    rows = np.array([weeks[int(day)] for day in days])[newest]
    return Region(name, grid, cumulative[rows], extra[rows], ~np.isin(grid, days))
