"""The report as one HTML file: headline, tables that sort, series and skill drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from compress.drought.plots import MOST, chosen_horizon, impacts_of
from compress.drought.result import ahead, headlines, tables
from compress.drought.table import WeekTable
from compress.reports import drawing, page


def side_page(
    report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], table: WeekTable
) -> str:
    """The whole page.

    Args:
        report: what was measured.
        lines: records of the test samples.
        table: for the names of its places.
    """
    warned = [f"<p><b>{escape(line)}</b></p>" for line in report.get("warnings", ())]
    said = headlines(report)[len(warned) :]
    parts = [*warned, page.bullets(said), _data(report["data"])]
    h = chosen_horizon([int(key) for key in report["skill"]])
    for place in table.regions[:MOST]:
        some = [line for line in lines if line["horizon"] == h and line["region"] == place]
        if some:
            parts.append(f"<h2>{escape(place)}, {escape(ahead(h))}</h2>{_series(some, report)}")
    for name, (titles, rows, _) in tables(report).items():
        cells = [[page.cell(text) for text in row] for row in rows]
        parts.append(f"<h2>{escape(name)}</h2>{page.html_table(titles, cells)}")
    parts.append(
        "<p>Intervals of skill: moving-block bootstrap over weeks, circular blocks of 26. Bands: "
        "split conformal on validation residuals. It estimates an index and its uncertainty; it "
        "doesn't foresee a drought.</p>"
    )
    return page.html_page("Drought severity and impact, estimated", parts)


def _series(some: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    names = [line["date"] for line in some]
    drawn = {
        "measured": [line["truth"] for line in some],
        "estimated": [line["estimate"] for line in some],
        "low, 90 %": [line["low"] for line in some],
        "high, 90 %": [line["high"] for line in some],
    }
    text = drawing.lines(
        names, drawn, lambda v: f"{v:.0f}", thick="measured", x_label="map date",
        label=f"severity ({report['target']}), measured and estimated",
    )  # fmt: skip
    if any(key.startswith("estimated ") for key in some[0]):
        nan = float("nan")
        reported = [impacts_of(line, "impact ") for line in some]
        impact = {
            "reported": [nan if v is None else v for v in reported],
            "estimated": [impacts_of(line, "estimated ") or 0.0 for line in some],
        }
        text += "<p>Impact, summed over categories</p>" + drawing.lines(
            names, impact, lambda v: f"{v:.1f}", thick="reported", x_label="map date",
            label="impact, reported and estimated",
        )  # fmt: skip
    return text


def _data(data: Mapping[str, Any]) -> str:
    series = data["series"]
    lines = [
        f"series: {len(series['regions'])} places, {series['layout']} layout, {series['form']}",
        *(f"{n}: {p['from']} to {p['to']}, {p['weeks']} weeks" for n, p in data["split"].items()),
        "purged samples by horizon: " + ", ".join(f"{h}: {n}" for h, n in data["purged"].items()),
    ]
    texts = data.get("texts")
    if texts:
        lines.append(
            f"texts: {texts['used']} of {texts['records']} used, median "
            f"{texts['by_week']['median']:g} a week, {texts['by_week']['share_empty']:.0%} of "
            f"weeks without"
        )
        if "leaked_term_share" in texts:
            lines.append(f"texts that stated the label, masked: {texts['leaked_term_share']:.1%}")
    return page.folded("Data", page.bullets(lines), is_open=True)
