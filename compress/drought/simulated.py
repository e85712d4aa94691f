"""A made-up data set in which texts announce later change, so that what a model finds is known.

SIMULATED: no place, report or figure in it is real. The index moves by independent steps, so its
own past tells nothing about its future: persistence is the best estimate without texts. Each week
one text tells, by its words, in which of seven ranges the change over the next four weeks lies.
Impacts follow the index and the change of the last four weeks, so texts announce them too.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import RequestError

LAG = 4  # weeks that an announcement looks ahead
STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)
SPREAD = 60.0  # deviation of the index at the end, so that 0 and 500 stay out of reach
WORDS = (
    ("soaking", "rivers swell and fields are muddy"),
    ("rainy", "creeks run high again"),
    ("showery", "some relief for farms"),
    ("calm", "little to tell from the valley"),
    ("dusty", "pastures turn brown"),
    ("thirsty", "trucks bring water to the hills"),
    ("parched", "wells fail and herds are sold"),
)
_FRAMES = (
    "[simulated] {word} days reported near {place}: {tail}",
    "[simulated] {place} diary, a {word} week, {tail}",
    "[simulated] neighbours in {place} call it {word}; {tail}",
)
_NOISE = (
    "[simulated] the council of {place} met about roads",
    "[simulated] school sports results from {place}",
    "[simulated] a new bakery opens in {place}",
)
KINDS = ("Agriculture", "Fire", "Water Supply & Quality")
FILES = ("simulated_series.csv", "simulated_texts.jsonl", "simulated_impacts.csv")


@dataclass(frozen=True)
class Simulated:
    """A made-up data set; every record says `simulated`.

    Attributes:
        series, texts, impacts: records as their files hold them.
    """

    series: tuple[dict[str, Any], ...]
    texts: tuple[dict[str, Any], ...]
    impacts: tuple[dict[str, Any], ...]

    def shuffled(self, seed: int = 0) -> Simulated:
        """The same texts, dealt out to other dates: what they announced is no longer true."""
        rng = np.random.Generator(np.random.Philox(key=[seed, len(self.texts)]))
        order = rng.permutation(len(self.texts))
        dealt = [
            {**text, "text": self.texts[other]["text"]} for text, other in zip(self.texts, order)
        ]
        return replace(self, texts=tuple(dealt))

    def write(self, directory: str | Path) -> tuple[Path, Path, Path]:
        """Write the three files; returns their paths.

        Raises:
            RequestError: the directory can't be made, or a file of that name is there.
        """
        place = Path(directory)
        paths = place / FILES[0], place / FILES[1], place / FILES[2]
        if any(path.exists() for path in paths):
            raise RequestError(f"`{place}` holds a simulated set already", "choose another place")
        try:
            place.mkdir(parents=True, exist_ok=True)
            _write_csv(paths[0], self.series)
            lines = (json.dumps(text, ensure_ascii=False) for text in self.texts)
            paths[1].write_text("\n".join(lines) + "\n", encoding="utf-8")
            _write_csv(paths[2], self.impacts)
        except OSError as error:
            raise RequestError(f"`{place}` can't be written: {error.strerror}") from error
        return paths


def simulate(
    weeks: int = 420,
    regions: Sequence[str] = ("SIM-A", "SIM-B", "SIM-C", "SIM-D", "SIM-E", "SIM-F"),
    seed: int = 0,
    lag: int = LAG,
) -> Simulated:
    """Make a set.

    Args:
        weeks: of each place.
        regions: names of the places; they begin with SIM.
        seed: of every draw.
        lag: weeks that an announcement looks ahead.

    Returns:
        The set; texts have ordinary words among those that announce, and records without news.
    """
    series, texts, impacts = [], [], []
    start = date(2010, 1, 5)  # a Tuesday
    for number, place in enumerate(regions):
        rng = np.random.Generator(np.random.Philox(key=[seed, number]))
        steps = np.array(STEPS)[rng.integers(0, len(STEPS), size=weeks + lag)]
        walk = 250 + np.cumsum(SPREAD / np.sqrt(2 * weeks) * steps)
        ahead = walk[lag:] - walk[:-lag]
        announced = np.searchsorted(_ranges(ahead), ahead)
        index = np.clip(walk[:weeks], 5, 495)
        for week in range(weeks):
            day = start + timedelta(days=7 * week)
            told = int(announced[week])
            series.append(_row(place, day, float(index[week])))
            texts += _texts(rng, place, day, told, f"{number:02d}{week:04d}")
            # reports follow what has happened: their past must not tell what will
            before = int(announced[week - lag]) if week >= lag else len(WORDS) // 2
            impacts += _impacts(rng, place, day, float(index[week]), before)
    return Simulated(tuple(series), tuple(texts), tuple(impacts))


def _ranges(changes: np.ndarray) -> np.ndarray:
    """Borders of seven ranges of a change, in deviations of it."""
    return np.array([-1.4, -0.8, -0.3, 0.3, 0.8, 1.4]) * changes.std()


def _row(place: str, day: date, index: float) -> dict[str, Any]:
    """A row whose classes sum to the index: cumulative shares fall along a logistic curve."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        total = float(_profile(middle).sum())
        low, high = (middle, high) if total < index else (low, middle)
    shares = np.round(_profile(low), 2)
    named = {f"D{k}": f"{shares[k]:.2f}" for k in range(5)}
    none = f"{100 - shares[0]:.2f}"
    return {"region": place, "date": day.isoformat(), "None": none, **named, "simulated": 1}


def _profile(shift: float) -> np.ndarray:
    return 100 / (1 + np.exp(np.clip(1.2 * (np.arange(5) - shift), -500, 500)))


def _texts(
    rng: np.random.Generator, place: str, day: date, announced: int, number: str
) -> list[dict[str, Any]]:
    word, tail = WORDS[announced]
    found = []
    said = _FRAMES[int(rng.integers(len(_FRAMES)))].format(word=word, place=place, tail=tail)
    lines = [said, *(_NOISE[i].format(place=place) for i in np.flatnonzero(rng.random(3) < 0.2))]
    for line in lines:
        published = day - timedelta(days=int(rng.integers(1, 7)))
        found.append(
            {
                "region": place,
                "published_at": published.isoformat(),
                # each is another record: a number keeps them from being taken for reposts
                "text": f"{line} #{number}{int(rng.integers(1_000_000)):06d}",
                "source": "social",
                "simulated": True,
            }
        )
    return found


def _impacts(
    rng: np.random.Generator, place: str, day: date, index: float, announced: int
) -> list[dict[str, Any]]:
    found = []
    for number, kind in enumerate(KINDS):
        rate = np.exp(-1.5 + (index - 250) / 80 + 0.4 * (announced - 3) - 0.3 * number)
        value = int(rng.poisson(min(rate, 50.0)))
        if value:
            reported = (day - timedelta(days=int(rng.integers(1, 7)))).isoformat()
            found.append(
                {
                    "region": place,
                    "date": reported,
                    "category": kind,
                    "value": value,
                    "simulated": 1,
                }
            )
    return found


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
