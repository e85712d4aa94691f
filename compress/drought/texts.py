"""Texts: read, freed of the label's terms, of repetitions and of what lies outside, by week.

Only `published_at` decides when a text can be seen; where a record has an interval, its end does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from compress.drought.masking import mask_label_terms
from compress.drought.reading import Row, Sheet, missing, need_date, read_sheet
from compress.drought.series import SIMULATED
from compress.errors import RequestError

_EXAMPLE = (
    'records look like {"region": "CA", "published_at": "2021-07-01", "text": …, '
    '"source": "news"}; an interval is start_date, end_date'
)
_NOTHING = {"", "na", "n/a", "nan", "none", "null"}
_ADDRESS = re.compile(r"https?://\S+|www\.\S+")
_REPOST = re.compile(r"^\s*rt\s+@\w+:?", re.I)


@dataclass(frozen=True)
class Text:
    """One text.

    Attributes:
        region: its place; empty for all places.
        day: ordinal of the day it was published.
        text: its words.
        source: news, social, report; empty if not told.
        categories: of impact, if told.
    """

    region: str
    day: int
    text: str
    source: str = ""
    categories: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hash of its normalised words: equal for reposts and syndicated copies."""
        return text_key(self.text)


@dataclass(frozen=True)
class Texts:
    """All texts of a file, or what is left of them.

    Attributes:
        items: in an order that doesn't depend on the file's.
        records: lines of the file.
        empty: records without words, left out.
        outside: texts for no place or no week of the series, left out; by reason.
        touched: texts from which terms of the label were taken.
        emptied: of these, texts of which nothing was left.
        duplicates: repetitions left out.
        masked: whether terms were looked for at all.
        simulated: whether the file says that it is made up.
        digest: of the file.
        notes: plain sentences for the reader.
    """

    items: tuple[Text, ...] = ()
    records: int = 0
    empty: int = 0
    outside: Mapping[str, int] = field(default_factory=dict)
    touched: int = 0
    emptied: int = 0
    duplicates: int = 0
    masked: bool = False
    simulated: bool = False
    digest: str | None = None
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, Any]:
        """What happened to the records, as JSON types."""
        looked = max(len(self.items) + self.emptied + self.duplicates, 1)
        found: dict[str, Any] = {
            "records": self.records,
            "used": len(self.items),
            "empty": self.empty,
            "outside": dict(self.outside),
            "duplicates": self.duplicates,
        }
        if self.masked:
            found |= {
                "label_terms_touched": self.touched,
                "label_terms_emptied": self.emptied,
                "leaked_term_share": self.touched / looked,
            }
        return found


def text_key(text: str) -> str:
    """SHA-256 of a text's normalised words: case, addresses, marks and "RT @name:" left out."""
    plain = _ADDRESS.sub(" ", _REPOST.sub(" ", text))
    words = re.findall(r"\w+", plain.lower())
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def read_texts(path: str | Path) -> Texts:
    """Read texts.

    Raises:
        RequestError: see `reading`; also a record without words in a file of `text`, or a file
            that has nothing but such records.
    """
    sheet = read_sheet(path, "--texts")
    body = sheet.column("text")
    interval = body is None
    body = body or sheet.column("fact")
    when = sheet.column("published_at", "end_date", "date")
    lacking = [name for name, c in (("text", body), ("published_at", when)) if c is None]
    if body is None or when is None:
        raise missing(sheet, " and ".join(f"`{n}`" for n in lacking), _EXAMPLE)
    items, empty = [], 0
    for row in sheet.rows:
        words = row.text(body)
        if words.lower() in _NOTHING:
            empty += 1
            if not interval:  # the weekly facts write NA where nothing was found; others don't
                raise RequestError(
                    f"{sheet.where(row)}: `{body}` is empty", "leave such records out of the file"
                )
            continue
        items.append(_text_of(sheet, row, words, when))
    if not items:
        raise RequestError(f"`{sheet.path}`: all {len(sheet.rows)} texts are empty")
    known = {"text", "fact", "published_at", "start_date", "end_date", "date", "region"}
    known |= {"source", "categories", "preds", "", SIMULATED, "id", "event_date"}
    unknown = [name for name in sheet.columns if name.strip().lower() not in known]
    notes = []
    if unknown:
        listed = ", ".join(f"`{name}`" for name in unknown)
        notes.append(f"columns of the texts without a use, ignored: {listed}")
    if sheet.column("preds"):
        notes.append("`preds` of the texts was written with hindsight and isn't read")
    ordered = tuple(sorted(items, key=lambda t: (t.day, t.region, t.key, t.text, t.source)))
    return Texts(
        ordered, len(sheet.rows), empty, simulated=sheet.column(SIMULATED) is not None,
        digest=sheet.digest, notes=tuple(notes),
    )  # fmt: skip


def _text_of(sheet: Sheet, row: Row, words: str, when: str) -> Text:
    categories: Any = row.cells.get(sheet.column("categories") or "") or ()
    if isinstance(categories, str):
        categories = [part.strip() for part in categories.split(";") if part.strip()]
    return Text(
        row.text(sheet.column("region")),
        need_date(sheet, row, when).toordinal(),
        words,
        row.text(sheet.column("source")),
        tuple(map(str, categories)),
    )


def mask_texts(texts: Texts) -> Texts:
    """Take the label's terms out of all texts; those of which nothing is left go."""
    items, touched, emptied = [], 0, 0
    for item in texts.items:
        left, changed = mask_label_terms(item.text)
        touched += changed
        if not left:
            emptied += 1
            continue
        items.append(replace(item, text=left))
    return replace(texts, items=tuple(items), touched=touched, emptied=emptied, masked=True)


def drop_repeats(texts: Texts, val_from: int, test_from: int) -> Texts:
    """Leave out repetitions inside the training window, and what an earlier part held already.

    A record that repeats another's day, place and words goes in every part.

    Args:
        texts: in order of their day.
        val_from, test_from: ordinals of the first days of these parts.
    """
    seen: list[set[str]] = [set(), set(), set()]
    own: set[tuple[str, str]] = set()
    records: set[tuple[int, str, str]] = set()
    kept = []
    for item in texts.items:
        part = (item.day >= val_from) + (item.day >= test_from)
        key = item.key
        record = (item.day, item.region, key)
        again = record in records or any(key in earlier for earlier in seen[:part])
        records.add(record)
        if part == 0:
            again = again or (item.region, key) in own
            own.add((item.region, key))
        seen[part].add(key)
        if not again:
            kept.append(item)
    return replace(texts, items=tuple(kept), duplicates=len(texts.items) - len(kept))


def within(texts: Texts, regions: Sequence[str], first: int, last: int) -> Texts:
    """Keep texts for a place of the series, published from day `first` to the day before `last`.

    Raises:
        RequestError: none is left.
    """
    places = {name.lower() for name in regions}
    inside, area, period = [], 0, 0
    for item in texts.items:
        if item.region and item.region.lower() not in places:
            area += 1
        elif not first <= item.day < last:
            period += 1
        else:
            inside.append(item)
    if not inside:
        some = texts.items[0]
        raise RequestError(
            f"no text belongs to a place and week of the series: {area} have other regions, "
            f"{period} other dates (the first is {some.region or 'everywhere'}, "
            f"{date.fromordinal(some.day)})",
            f"the series has {', '.join(list(regions)[:5])} from {date.fromordinal(first)} to "
            f"{date.fromordinal(last)}",
        )
    return replace(texts, items=tuple(inside), outside={"area": area, "period": period})
