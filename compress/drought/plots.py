"""The series as a picture: truth, estimate and band by place, impact below, skill beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from compress.drought.result import ahead
from compress.drought.scoring import SHOWN
from compress.reports.pictures import new_figure, save_figure

MOST = 6  # places drawn


def chosen_horizon(horizons: Sequence[int]) -> int:
    """The horizon that is drawn: four weeks, or the nearest to it."""
    return min(horizons, key=lambda h: (abs(h - 4), h))


def impacts_of(line: Mapping[str, Any], start: str) -> float | None:
    """Sum over the categories of a record's columns that begin with `start`."""
    values = [v for k, v in line.items() if k.startswith(start)]
    return sum(values) if values else None


def draw_series(path: Path, report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw the test weeks of the first places at one horizon, and skill by horizon.

    Args:
        path: of the PNG.
        report: what was measured.
        lines: records of `estimate_lines`.
    """
    h = chosen_horizon([int(key) for key in report["skill"]])
    own = [line for line in lines if line["horizon"] == h]
    places = sorted({line["region"] for line in own})[:MOST]
    impacts = any(key.startswith("estimated ") for key in own[0])
    rows = len(places) * (1 + impacts) + 1
    figure, axes = new_figure(rows, 1, (9, 2.4 * rows))
    at = 0
    for place in places:
        some = [line for line in own if line["region"] == place]
        days = [date.fromisoformat(line["date"]) for line in some]
        plot = axes[at, 0]
        low, high = ([line[k] for line in some] for k in ("low", "high"))
        plot.fill_between(days, low, high, alpha=0.25, color="#0072b2", label=f"{SHOWN:.0%} band")
        plot.plot(days, [line["truth"] for line in some], "k-", linewidth=1.5, label="measured")
        plot.plot(days, [line["estimate"] for line in some], "--", color="#0072b2", linewidth=1.2,
                  label=f"estimated {h} weeks before" if h else "nowcast")  # fmt: skip
        plot.set_title(f"{place}: severity ({report['target']})", loc="left", fontsize=10)
        plot.legend(fontsize=8, loc="best", framealpha=0.6)
        at += 1
        if impacts:
            plot = axes[at, 0]
            truth = [(d, v) for d, line in zip(days, some)
                     if (v := impacts_of(line, "impact ")) is not None]  # fmt: skip
            plot.plot(*zip(*truth), "k-", linewidth=1.2, label="reported") if truth else None
            said = [impacts_of(line, "estimated ") for line in some]
            plot.plot(days, said, "--", color="#d55e00", label="estimated")
            plot.set_title(f"{place}: impact, sum over categories", loc="left", fontsize=10)
            plot.legend(fontsize=8, loc="best", framealpha=0.6)
            at += 1
    _draw_skill(axes[at, 0], report)
    if report.get("warnings"):
        figure.suptitle("\n".join(report["warnings"]), color="#b00000", fontsize=8)
    save_figure(figure, path)


def _draw_skill(plot: Any, report: Mapping[str, Any]) -> None:
    rows = report["skill"]
    places = range(len(rows))
    skill = [row["skill"] for row in rows.values()]
    below = [max(row["skill"] - row["ci95"][0], 0) for row in rows.values()]
    above = [max(row["ci95"][1] - row["skill"], 0) for row in rows.values()]
    plot.axhline(0, color="k", linewidth=0.8)
    plot.errorbar(places, skill, yerr=[below, above], fmt="o", color="#0072b2", capsize=4,
                  label="SIDE")  # fmt: skip
    for name, mark in (("ridge", "s"), ("boosting", "^")):
        found = report["baselines"].get(name)
        if found:
            values = [found[h]["skill"] if h in found else float("nan") for h in rows]
            plot.plot(places, values, mark, label=name, alpha=0.8)
    plot.set_xticks(list(places), [ahead(h) for h in rows])
    plot.set_ylim(max(min([-0.5, *skill]), -1.0), 1.0)
    plot.set_title("skill against persistence, 95 % block-bootstrap interval", loc="left",
                   fontsize=10)  # fmt: skip
    plot.legend(fontsize=8)
