"""Reports of impact, by place, week and category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from compress.drought.reading import missing, need_date, need_number, read_sheet
from compress.drought.series import SIMULATED
from compress.errors import RequestError

CATEGORIES = (
    *("Agriculture", "Business & Industry", "Energy", "Fire", "Plants & Wildlife"),
    *("Relief, Response & Restrictions", "Society & Public Health"),
    *("Tourism & Recreation", "Water Supply & Quality"),
)
"""Those of the Drought Impact Reporter; a file may have others."""


@dataclass(frozen=True)
class Impacts:
    """Reported impacts.

    Attributes:
        values: (region, day, category) -> sum of what was reported.
        categories: sorted by name.
        records: lines of the file.
        simulated: whether the file says that it is made up.
        digest: of the file.
    """

    values: dict[tuple[str, int, str], float]
    categories: tuple[str, ...]
    records: int
    simulated: bool
    digest: str | None

    @cached_property
    def by_place(self) -> dict[str, list[tuple[int, str, float]]]:
        """(day, category, value) of each place, in small letters; of all places under ""."""
        found: dict[str, list[tuple[int, str, float]]] = {}
        for (place, day, kind), value in self.values.items():
            found.setdefault(place.lower(), []).append((day, kind, value))
        return found


def read_impacts(path: str | Path) -> Impacts:
    """Read impact reports: region, date, category and, if not 1 each, value.

    A category cell may name several, with semicolons. A row that repeats another in every cell
    counts once: two reports of a week differ in a column (an id will do) or are one with value 2.

    Raises:
        RequestError: see `reading`; also an empty category, a negative value.
    """
    sheet = read_sheet(path, "--impact")
    names = [sheet.column("region"), sheet.column("date"), sheet.column("category")]
    region, when, category = names
    lacking = [n for n, c in zip(("region", "date", "category"), names) if c is None]
    if region is None or when is None or category is None:
        raise missing(
            sheet, " and ".join(f"`{n}`" for n in lacking), "impacts have region, date, category"
        )
    value = sheet.column("value")
    found: Counter[tuple[str, int, str]] = Counter()
    seen: set[str] = set()
    for row in sheet.rows:
        line = repr(sorted(row.cells.items(), key=str))
        if line in seen:
            continue
        seen.add(line)
        day = need_date(sheet, row, when).toordinal()
        number = need_number(sheet, row, value) if value else 1.0
        kinds = [part.strip() for part in row.text(category).split(";") if part.strip()]
        if not kinds or number < 0:
            what = f"`{category}` is empty" if not kinds else f"`{value}` is {number:g}"
            raise RequestError(
                f"{sheet.where(row)}: {what}", "a category and a count of 0 or more are needed"
            )
        for kind in kinds:
            found[row.text(region), day, kind] += number  # type: ignore[assignment]
    categories = tuple(sorted({kind for _, _, kind in found}))
    simulated = sheet.column(SIMULATED) is not None
    return Impacts(dict(found), categories, len(sheet.rows), simulated, sheet.digest)


def weekly(impacts: Impacts, region: str, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the reports of the week before each map date, the date itself excluded.

    Args:
        impacts: the reports.
        region: the place.
        days: ordinals of map dates [weeks], 7 apart.

    Returns:
        values float64 [weeks, categories], and bool [weeks]: weeks from the file's first report
        to its last. Outside them nothing is known, and no report is no zero.
    """
    number = {name: i for i, name in enumerate(impacts.categories)}
    values = np.zeros((len(days), len(number)))
    every = [day for _, day, _ in impacts.values]
    # the week of a day is the first whose map date lies after it
    first, last = (int(np.searchsorted(days, d, side="right")) for d in (min(every), max(every)))
    known = np.zeros(len(days), dtype=bool)
    known[first : last + 1] = True
    for place in {"", region.lower()}:
        for day, kind, value in impacts.by_place.get(place, ()):
            week = int(np.searchsorted(days, day, side="right"))
            if week < len(days) and day >= days[week] - 7:
                values[week, number[kind]] += value
    return values, known


def outside(impacts: Impacts, regions: Sequence[str], first: int, last: int) -> dict[str, int]:
    """How many reports lie in no place, or on no day from `first` to before `last`."""
    places = {"", *(name.lower() for name in regions)}
    area = sum(place.lower() not in places for place, _, _ in impacts.values)
    period = sum(
        place.lower() in places and not first <= day < last for place, day, _ in impacts.values
    )
    return {"area": area, "period": period}
