"""One table of place-weeks: series, texts and impacts joined, and the windows that look into it.

When things are known, with the map of week t dated t and published two days later:

- a forecast from week t (h >= 1) sees the series up to t, which is published when it is made, and
  texts and impact reports of days before t;
- the nowcast of week t (h = 0) sees the same texts, and series and impacts only up to t - 1: the
  week's own map isn't out yet, and its own reports are what is estimated.

So texts and reports of week t are those from the day of the map before to the day before the map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from compress.drought.impacts import Impacts, weekly
from compress.drought.series import WEEK, Region, Series
from compress.drought.splitting import LEAST, PARTS, TEST, TRAIN, Split, valid_samples
from compress.drought.texts import Texts
from compress.drought.usdm import worst_category
from compress.errors import RequestError

YEAR = 52.18  # weeks
TARGETS = ("dsci", "worst-category")
LEAST_TRAINED = 8  # weeks of a place's own by which it is standardised


@dataclass(frozen=True)
class WeekTable:
    """Place-weeks, W rows: place by place, in order of time.

    Attributes:
        regions: names of the places.
        region: number of each row's place, int64 [W].
        days: ordinal of its map date, int64 [W].
        severity: the target, float64 [W].
        dsci: the index, float64 [W].
        worst: worst class that holds half of the area, int64 [W]; zeros where classes aren't known.
        physical: inputs of the series, float64 [W, F].
        physical_names: of these columns; the last says whether the week was carried forward.
        impacts: float64 [W, C]; C may be 0.
        impacts_known: bool [W].
        categories: names of the C.
        texts: the texts used, in order.
        link_text, link_row: which text belongs to which row, int64 [links], sorted by row.
        part: 0 train, 1 val, 2 test, int64 [W].
        horizons: in weeks.
        context: weeks that a window looks back over, its own included.
        valid: which (row, horizon) are samples, bool [W, H].
        purged: samples left out at borders, by horizon, int64 [H].
        target: name of the severity.
    """

    regions: tuple[str, ...]
    region: np.ndarray
    days: np.ndarray
    severity: np.ndarray
    dsci: np.ndarray
    worst: np.ndarray
    physical: np.ndarray
    physical_names: tuple[str, ...]
    impacts: np.ndarray
    impacts_known: np.ndarray
    categories: tuple[str, ...]
    texts: Texts
    link_text: np.ndarray
    link_row: np.ndarray
    part: np.ndarray
    horizons: tuple[int, ...]
    context: int
    valid: np.ndarray
    purged: np.ndarray
    target: str

    @property
    def text_counts(self) -> np.ndarray:
        """Texts of each row, int64 [W]."""
        return np.bincount(self.link_row, minlength=len(self.days))

    def anchors(self, part: int, horizon: int | None = None) -> np.ndarray:
        """Rows that are anchors in a part, of one horizon or of any; sorted."""
        column = self.valid if horizon is None else self.valid[:, [self.horizons.index(horizon)]]
        return np.flatnonzero(column.any(axis=1) & (self.part == part))

    def shifted(self, values: np.ndarray, by: int) -> np.ndarray:
        """Values `by` weeks later in the same place; NaN where there is no such week."""
        index = np.arange(len(self.days)) + by
        inside = (index >= 0) & (index < len(self.days))
        safe = np.where(inside, index, 0)
        same = inside & (self.region[safe] == self.region)
        return np.where(same, values[safe].astype(np.float64), np.nan)

    def base(self, horizon: int) -> np.ndarray:
        """What persistence says of each anchor: the newest severity known, [W]."""
        return self.severity if horizon > 0 else self.shifted(self.severity, -1)

    def day(self, row: int) -> str:
        """A row's map date."""
        return date.fromordinal(int(self.days[row])).isoformat()


def join(
    series: Series,
    texts: Texts,
    impacts: Impacts | None,
    split: Split,
    *,
    horizons: Sequence[int],
    context: int,
    target: str = "dsci",
    embargo: int = 0,
    transfer_to: Sequence[str] = (),
) -> WeekTable:
    """Join everything by place and week.

    Args:
        series, texts, impacts: as read; texts already masked, within the series and unrepeated.
        split: the borders.
        horizons, context: in weeks.
        target: dsci or worst-category.
        embargo: weeks after each border that are no anchors.
        transfer_to: places that are tested only, while the others are trained on only.

    Raises:
        RequestError: a place with too few weeks, a part without samples, or a test part without a
            week of drought; categories of impact that never occur in the training weeks alone
            don't count as an error and are left out.
    """
    for region in series.regions:
        _long_enough(region, context, max(horizons))
    days = np.concatenate([r.days for r in series.regions])
    part = split.part_of(days)
    starts = np.cumsum([0, *(len(r.days) for r in series.regions)])
    valid, purged = [], np.zeros(len(horizons), dtype=np.int64)
    for i, region in enumerate(series.regions):
        rows = slice(starts[i], starts[i + 1])
        fine, gone = valid_samples(part[rows], ~region.filled, horizons, context, embargo)
        if transfer_to:
            only_test = region.name in transfer_to
            fine &= ((part[rows] == TEST) == only_test)[:, None]
        valid.append(fine)
        purged += gone
    table = assemble(
        series, texts, impacts, part, np.concatenate(valid),
        horizons=horizons, context=context, target=target, purged=purged,
    )  # fmt: skip
    _check_parts(table)
    return table


def assemble(
    series: Series,
    texts: Texts,
    impacts: Impacts | None,
    part: np.ndarray,
    valid: np.ndarray,
    *,
    horizons: Sequence[int],
    context: int,
    target: str,
    purged: np.ndarray | None = None,
    categories: Sequence[str] | None = None,
) -> WeekTable:
    """Build the table once it is settled which rows are samples.

    Args:
        series, texts, impacts, horizons, context, target: as in `join`.
        part: of each row [W].
        valid: which (row, horizon) are samples [W, H].
        purged: by horizon; zeros unless given.
        categories: of impact; those of training weeks unless given.
    """
    regions = list(series.regions)
    days = np.concatenate([r.days for r in regions])
    cumulative = np.concatenate([r.cumulative for r in regions])
    index = cumulative.sum(axis=1)
    worst = worst_category(cumulative) if series.has_classes else np.zeros(len(days), np.int64)
    values, known, names = _impacts_of(impacts, regions, part, categories)
    starts = np.cumsum([0, *(len(r.days) for r in regions)])
    link_text, link_row = _links(texts, regions, starts)
    return WeekTable(
        regions=tuple(r.name for r in regions),
        region=np.repeat(np.arange(len(regions)), np.diff(starts)),
        days=days,
        severity=index if target == "dsci" else worst.astype(np.float64),
        dsci=index,
        worst=worst,
        physical=_physical(series, regions, index, cumulative, days),
        physical_names=_names(series),
        impacts=values,
        impacts_known=known,
        categories=names,
        texts=texts,
        link_text=link_text,
        link_row=link_row,
        part=part,
        horizons=tuple(horizons),
        context=context,
        valid=valid,
        purged=np.zeros(len(horizons), np.int64) if purged is None else purged,
        target=target,
    )


def _long_enough(region: Region, context: int, horizon: int) -> None:
    least = context + horizon + LEAST
    if len(region.days) < least:
        raise RequestError(
            f"{region.name} has {len(region.days)} weeks, too few to split: {least} are needed "
            f"(context {context}, horizon {horizon}, and {LEAST})",
            "a longer series, a shorter --context or nearer --horizons, or leave it out by "
            "--regions",
        )


def _physical(
    series: Series,
    regions: Sequence[Region],
    index: np.ndarray,
    cumulative: np.ndarray,
    days: np.ndarray,
) -> np.ndarray:
    classes = cumulative if series.has_classes else cumulative[:, :0]
    extra = np.concatenate([r.extra for r in regions])
    filled = np.concatenate([r.filled for r in regions]).astype(np.float64)
    return np.column_stack([index, classes, extra, season(days), filled])


def _names(series: Series) -> tuple[str, ...]:
    classes = [f"cum_{k}" for k in range(5)] if series.has_classes else []
    return ("dsci", *classes, *series.layout.extra, "sin", "cos", "filled")


def season(days: np.ndarray) -> np.ndarray:
    """Sine and cosine of the time of year, [..., 2]."""
    angle = 2 * np.pi * np.asarray(days) / WEEK / YEAR
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


def _impacts_of(
    impacts: Impacts | None,
    regions: Sequence[Region],
    part: np.ndarray,
    wanted: Sequence[str] | None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Weekly impacts of all rows; categories that training weeks never saw are left out."""
    if impacts is None:
        names = tuple(wanted or ())
        return np.zeros((len(part), len(names))), np.zeros(len(part), dtype=bool), names
    found = [weekly(impacts, region.name, region.days) for region in regions]
    values = np.concatenate([v for v, _ in found])
    known = np.concatenate([k for _, k in found])
    if wanted is not None:
        at = {name: i for i, name in enumerate(impacts.categories)}
        none = np.zeros(len(part))
        chosen = [values[:, at[name]] if name in at else none for name in wanted]
        return np.stack(chosen, axis=1) if chosen else values[:, :0], known, tuple(wanted)
    seen = (values[(part == TRAIN) & known] > 0).any(axis=0)
    if not seen.any():
        raise RequestError(
            "no impact is reported in the training weeks of any place of the series",
            "check regions and dates of --impact against the series, or leave it out",
        )
    return values[:, seen], known, tuple(n for n, s in zip(impacts.categories, seen) if s)


def _links(
    texts: Texts, regions: Sequence[Region], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    by_place: dict[str, list[int]] = {}
    for number, item in enumerate(texts.items):
        by_place.setdefault(item.region.lower(), []).append(number)
    pairs = []
    for i, region in enumerate(regions):
        own = [*by_place.get("", ()), *by_place.get(region.name.lower(), ())]
        days = np.array([texts.items[number].day for number in own], dtype=np.int64)
        weeks = np.searchsorted(region.days, days, side="right")
        for number, day, week in zip(own, days, weeks.tolist()):
            if week < len(region.days) and day >= region.days[week] - WEEK:
                pairs.append((starts[i] + week, number))
    pairs.sort()
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 1], both[:, 0]


def _check_parts(table: WeekTable) -> None:
    for number, name in enumerate(table.regions):
        count = int(((table.region == number) & (table.part == TRAIN)).sum())
        if count < LEAST_TRAINED:
            raise RequestError(
                f"{name} has {count} weeks before validation begins, {LEAST_TRAINED} are needed to "
                "know its range",
                "leave it out by --regions, or begin validation later",
            )
    for number, name in enumerate(PARTS):
        inside = table.valid[table.part == number]
        for column, h in enumerate(table.horizons):
            if not inside[:, column].any():
                raise RequestError(
                    f"too few weeks to split: {name} has no sample at horizon {h}",
                    "a longer series, other shares by --split, or nearer --horizons",
                )
    if not (table.dsci[table.part == TEST] > 0).any():
        raise RequestError(
            "the test part has no week of drought, so nothing can be estimated there",
            "choose other weeks by --test-from or --split",
        )


def window_digests(table: WeekTable) -> dict[tuple[str, str, str], str]:
    """SHA-256 of all that a sample sees, by (place, map date of the anchor, forecast or nowcast).

    Series, impacts and texts enter as they are, before anything fitted: two tables give equal
    digests exactly where their samples have equal inputs.
    """
    keys = [hashlib.sha256(t.text.encode()).digest() for t in table.texts.items]
    by_row: list[list[bytes]] = [[] for _ in table.days]
    for text, row in zip(table.link_text, table.link_row):
        by_row[row].append(keys[text])
    weekly_texts = [b"".join([len(k).to_bytes(4, "big"), *k]) for k in by_row]
    known = table.impacts * table.impacts_known[:, None]
    numbers = np.ascontiguousarray(np.concatenate([table.physical, known], axis=1))
    nowcast = 0 in table.horizons
    found = {}
    for row in np.flatnonzero(table.valid.any(axis=1)):
        place = (table.regions[table.region[row]], table.day(int(row)))
        words = b"".join(weekly_texts[row - table.context + 1 : row + 1])
        for delay, kind in ((0, "forecast"), (1, "nowcast"))[: 1 + nowcast]:
            seen = numbers[row - table.context + 1 - delay : row + 1 - delay]
            found[(*place, kind)] = hashlib.sha256(seen.tobytes() + words).hexdigest()
    return found
