"""The US Drought Monitor's own layouts, told by their columns, and what their percentages mean.

    county: MapDate,FIPS,County,State,None,D0,D1,D2,D3,D4,ValidStart,ValidEnd,StatisticFormatID
    state:  MapDate,StateAbbreviation,None,D0,…          US: MapDate,AreaOfInterest,None,D0,…

StatisticFormatID tells 1 (cumulative: D0 holds D1 … D4) from 2 (categorical: each class by
itself), but the flag isn't trusted: both identities are tested. "OT" is a known other name of
`None`. Areas in square miles, with thousands separators, become percentages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.drought.reading import Row, Sheet, missing, need_number
from compress.errors import RequestError

CLASSES = ("None", "D0", "D1", "D2", "D3", "D4")
TOLERANCE = 0.05  # of each term: the monitor rounds to two decimals
TOP = 100.05
_OTHER = {"None": ("None", "OT", "NoDrought")}
_REGIONS = (("county", "FIPS"), ("state", "StateAbbreviation"), ("us", "AreaOfInterest"))
_EXAMPLE = (
    "a USDM layout has MapDate, FIPS or StateAbbreviation or AreaOfInterest, None, D0 … D4; "
    "others have region, date and dsci, severity or None, D0 … D4"
)


@dataclass(frozen=True)
class Layout:
    """Which columns of a series hold what.

    Attributes:
        name: county, state, us, or table (region, date, numbers).
        region, date: columns.
        severity: how severity is told: percent (six columns), dsci, or class (D0 … D4, None).
        columns: those of it.
        extra: further columns of numbers.
        flag: the column StatisticFormatID.
        ignored: columns without a use.
    """

    name: str
    region: str
    date: str
    severity: str
    columns: tuple[str, ...]
    extra: tuple[str, ...] = ()
    flag: str | None = None
    ignored: tuple[str, ...] = ()


def recognise(sheet: Sheet) -> Layout:
    """Tell a series' layout by its columns.

    Raises:
        RequestError: it is none; what is missing and what was found are named.
    """
    six = [sheet.column(*_OTHER.get(name, (name,))) for name in CLASSES]
    flag = sheet.column("StatisticFormatID")
    kind, region = next(
        ((k, found) for k, name in _REGIONS if (found := sheet.column(name))), ("table", None)
    )
    region = region or sheet.column("region")
    when = sheet.column("MapDate") if kind != "table" else sheet.column("date", "MapDate")
    lacking = [n for n, c in (("a region column", region), ("a date column", when)) if c is None]
    if lacking or region is None or when is None:
        raise missing(sheet, " and ".join(lacking), _EXAMPLE)
    if all(six):
        severity, columns = "percent", tuple(name for name in six if name)
    elif any(six) or kind != "table":
        gone = [name for name, column in zip(CLASSES, six) if column is None]
        raise missing(sheet, f"the columns {', '.join(gone)}", _EXAMPLE)
    elif (found := sheet.column("dsci")) is not None:
        severity, columns = "dsci", (found,)
    elif (found := sheet.column("severity", "drought_class")) is not None:
        severity, columns = "class", (found,)
    else:
        raise missing(sheet, "a column of severity", _EXAMPLE)
    used = {region, when, flag, *columns}
    rest = [name for name in sheet.columns if name not in used]
    extra = tuple(name for name in rest if kind == "table" and _is_numeric(sheet, name))
    ignored = tuple(name for name in rest if name not in extra)
    return Layout(kind, region, when, severity, columns, extra, flag, ignored)


def _is_numeric(sheet: Sheet, column: str) -> bool:
    from compress.drought.reading import parse_number

    return all(parse_number(row.text(column)) is not None for row in sheet.rows)


def dsci(cumulative: np.ndarray) -> np.ndarray:
    """The Drought Severity and Coverage Index, 0 … 500: the sum of the cumulative percentages.

    Args:
        cumulative: [..., 5], percent of the area in D0 or worse … in D4.
    """
    return np.asarray(cumulative, dtype=np.float64).sum(axis=-1)


def cumulated(categorical: np.ndarray) -> np.ndarray:
    """Percent in each class or a worse one, from percent in each class: [..., 5] both."""
    return np.flip(np.cumsum(np.flip(categorical, axis=-1), axis=-1), axis=-1)


def cumulative_of(sheet: Sheet, layout: Layout) -> tuple[np.ndarray, str]:
    """Read the cumulative percentages of all rows.

    Returns:
        [rows, 5] and the form that was found: cumulative, categorical, dsci or class. From DSCI
        alone the percentages aren't known: then only their sum means something.

    Raises:
        RequestError: a cell that is no number, or outside 0 … 100.05 (DSCI 0 … 500); a mixture of
            both forms; values that fit neither identity; a class that isn't D0 … D4 or None.
    """
    if layout.severity == "class":
        return np.stack([_of_class(sheet, row, layout.columns[0]) for row in sheet.rows]), "class"
    values = np.array(
        [[need_number(sheet, row, column) for column in layout.columns] for row in sheet.rows]
    )
    if layout.severity == "dsci":
        _check_range(sheet, layout, values, 500.0)
        return np.concatenate([values, np.zeros((len(values), 4))], axis=1), "dsci"
    _one_flag(sheet, layout)
    values = _percentages(values)
    _check_range(sheet, layout, values, TOP)
    cumulative, categorical = identities(values)
    if cumulative.all():
        return values[:, 1:], "cumulative"
    if categorical.all():
        return cumulated(values[:, 1:]), "categorical"
    neither = ~(cumulative | categorical)
    if neither.any():
        at = int(neither.argmax())
        shown = ", ".join(f"{name} {value:g}" for name, value in zip(CLASSES, values[at]))
        raise RequestError(
            f"{sheet.where(sheet.rows[at])}: {shown} fit neither identity",
            "cumulative: None + D0 = 100 and D0 ≥ … ≥ D4; categorical: all six sum to 100",
        )
    a, b = (~cumulative).argmax(), (~categorical).argmax()
    raise RequestError(
        f"`{sheet.path}` mixes cumulative rows (such as line {sheet.rows[b].line}) with "
        f"categorical ones (such as line {sheet.rows[a].line})",
        "download it again with one statisticsType",
    )


def identities(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows can be cumulative, and which categorical: bool [rows] both.

    Args:
        values: [rows, 6], percent None, D0 … D4.
    """
    falling = (values[:, 1:-1] - values[:, 2:] >= -2 * TOLERANCE).all(axis=1)
    whole = np.abs(values[:, 0] + values[:, 1] - 100) <= 2 * TOLERANCE
    parts = np.abs(values.sum(axis=1) - 100) <= 6 * TOLERANCE
    return falling & whole, parts


def _one_flag(sheet: Sheet, layout: Layout) -> None:
    if layout.flag is None:
        return
    first: dict[str, Row] = {}
    for row in sheet.rows:
        first.setdefault(row.text(layout.flag), row)
    if len(first) > 1:
        (one, a), (other, b) = list(first.items())[:2]
        raise RequestError(
            f"`{sheet.path}` mixes `{layout.flag}` {one or 'empty'} (line {a.line}) and "
            f"{other or 'empty'} (line {b.line})",
            "keep the lines of one StatisticFormatID",
        )


def _percentages(values: np.ndarray) -> np.ndarray:
    """Areas turned into percentages; percentages as they are.

    Areas have one total (None + D0, or the sum of all six) that is far from 100 in every row.
    """
    for total in (values[:, 0] + values[:, 1], values.sum(axis=1)):
        middle = float(np.median(total))
        if middle > 1000 and np.abs(total / middle - 1).max() < 1e-3:
            return 100 * values / total[:, None]
    return values


def _check_range(sheet: Sheet, layout: Layout, values: np.ndarray, top: float) -> None:
    wrong = (values < 0) | (values > top)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise RequestError(
            f"{sheet.where(sheet.rows[row])}: `{layout.columns[column]}` is "
            f"{values[row, column]:g}, outside 0 … {top:g}",
            "percentages of the area are needed" if top < 500 else "DSCI goes from 0 to 500",
        )


def _of_class(sheet: Sheet, row: Row, column: str) -> np.ndarray:
    text = row.text(column)
    known = {name.lower(): number for number, name in enumerate(CLASSES)}
    if text.lower() not in known:
        raise RequestError(
            f"{sheet.where(row)}: `{column}` is {text!r}, not a drought class",
            "the classes are None, D0, D1, D2, D3 and D4",
        )
    return np.where(np.arange(5) < known[text.lower()], 100.0, 0.0)


def worst_category(cumulative: np.ndarray, share: float = 50.0) -> np.ndarray:
    """The worst class that at least half of the area is in or beyond: 0 (None) … 5 (D4).

    Args:
        cumulative: [..., 5], non-increasing.
        share: percent of the area.
    """
    return (np.asarray(cumulative) >= share).sum(axis=-1)


def names_of(columns: Sequence[str]) -> str:
    """Columns for a message."""
    return ", ".join(f"`{name}`" for name in columns)
