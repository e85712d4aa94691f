"""What `train_side` hands back, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.reports.headers import header_line
from compress.reports.notebook import Displayable
from compress.reports.receipt import Receipt

if TYPE_CHECKING:
    from compress.drought.preparing import Data


@dataclass(frozen=True)
class SideResult(Displayable):
    """What `train_side` did.

    Attributes:
        plan: what a dry run found; None after a run.
        report: everything that was measured; None after a dry run.
        receipt: the short form of it.
        output: the directory written; None where none was asked for.
    """

    plan: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    receipt: Receipt | None = None
    output: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The receipt, or what a dry run found, as JSON types."""
        return self.receipt.as_dict() if self.receipt is not None else dict(self.plan or {})

    def render(self) -> str:
        """Headline, skill, baselines, impacts and intervals as tables for people."""
        if self.report is None:
            return plan_text(self.plan or {})
        from compress.reports import formats as fmt
        from compress.reports.tables import cost_line

        parts = ["\n".join(headlines(self.report)), *(t for _, t in text_tables(self.report))]
        if self.receipt is not None and self.receipt.cost is not None:
            closing = [cost_line(self.receipt.cost)]
            if self.output is not None:
                closing.append(
                    f"{self.output}   loads with compress.drought.SideModel.from_pretrained"
                )
                closing.append(
                    f"estimates:   compress train-side --predict {self.output} --series NEW.csv"
                )
            parts.append("\n".join(fmt.wrap(line, fmt.screen_width()) for line in closing))
        if self.receipt is not None and self.receipt.notes:
            said = self.report.get("warnings", ())
            lines = (f"note: {note}" for note in self.receipt.notes if note not in said)
            parts.append("\n".join(fmt.wrap(t, fmt.screen_width(), "      ") for t in lines))
        return fmt.fit_encoding("\n\n".join(parts))


Table = tuple[list[str], list[list[str]], str]
"""Titles, cells, and "l" or "r" for each column."""


def headlines(report: Mapping[str, Any]) -> list[str]:
    """The first lines: warnings, then skill against persistence, each horizon in words."""
    lines = list(report.get("warnings", ()))
    for h, row in report["skill"].items():
        low, high = row["ci95"]
        said = f"{row['skill']:+.3f} (95 %: {low:+.3f} … {high:+.3f})".replace("-", "−")
        lines.append(f"skill against persistence, {ahead(h)}: {said}: {row['verdict']}")
    return lines


def ahead(h: str | int) -> str:
    """A horizon in words."""
    weeks = int(h)
    return "nowcast" if weeks == 0 else f"{weeks} week{'s' * (weeks != 1)} ahead"


def notes_of(report: Mapping[str, Any]) -> list[str]:
    """Plain sentences that belong to a receipt."""
    none = [h for h, row in report["skill"].items() if row["verdict"] != "skill"]
    notes = ["it estimates an index and its uncertainty; it doesn't foresee a drought"]
    if none:
        notes.append(f"no skill against persistence at horizons {', '.join(none)}")
    return notes


def text_tables(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All tables as text, each with its name."""
    from compress.reports import formats as fmt

    found = []
    for name, (titles, rows, align) in tables(report).items():
        found.append((name, f"{name}\n{fmt.table(titles, rows, align)}"))
    return found


def tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """All tables by name."""
    unit = "DSCI points" if report["target"] == "dsci" else "classes"
    every: dict[str, Table] = {
        f"MAE on the test weeks, in {unit}": mae_table(report),
        "skill = 1 − MAE / MAE of persistence": skill_table(report),
        "intervals from validation, on the test weeks": reliability_table(report),
        "by place": group_table(report["places"]),
    }
    if "regimes" in report:
        every["by regime (DSCI over 8 weeks)"] = group_table(report["regimes"])
    if "classes" in report:
        every["worst class with half of the area"] = class_table(report["classes"])
    if "impacts" in report:
        every["impact; skill against the train prior"] = impact_table(report["impacts"])
    return every


def mae_table(report: Mapping[str, Any]) -> Table:
    """A line per horizon: SIDE and every baseline."""
    names = list(report["baselines"])
    titles = ["h", "SIDE", *(short(name) for name in names)]
    rows = []
    for h, row in report["skill"].items():
        others = (report["baselines"][name].get(h) for name in names)
        cells = ["" if o is None else number(o["mae"]) for o in others]
        rows.append([h, number(row["mae"]), *cells])
    return titles, rows, "r" * len(titles)


def short(name: str) -> str:
    """A baseline's name where there is little room."""
    return {
        "persistence": "pers.", "climatology": "clim.", "seasonal": "seas.", "boosting": "boost",
        "ridge + text": "+text", "text alone": "text",
    }.get(name, name)  # fmt: skip


def number(value: float) -> str:
    """An error."""
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def skill_table(report: Mapping[str, Any]) -> Table:
    """A line per horizon: skill, its interval, the verdict, and against climatology."""
    rows = []
    for h, row in report["skill"].items():
        low, high = row["ci95"]
        climate = row.get("against_climatology")
        rows.append([
            h, str(row["n"]), number(row["mae"]), number(row["rmse"]),
            number(row["persistence_mae"]), signed(row["skill"]),
            f"{signed(low)} … {signed(high)}", "" if climate is None else signed(climate),
            {"skill": "yes", "no skill": "no"}.get(row["verdict"], "worse"),
        ])  # fmt: skip
    titles = ["h", "n", "MAE", "RMSE", "pers.", "skill", "95 %", "to clim.", "skill?"]
    return titles, rows, "rrrrrrrrl"


def signed(value: float) -> str:
    """A skill."""
    return f"{value:+.3f}".replace("-", "−") if abs(value) < 100 else f"{value:.0e}"


def reliability_table(report: Mapping[str, Any]) -> Table:
    """A line per horizon, a column per level: coverage, and the width at the drawn level."""
    lines: dict[int, dict[float, Mapping[str, Any]]] = {}
    for line in report["reliability"]:
        lines.setdefault(line["horizon"], {})[line["level"]] = line
    levels = sorted(next(iter(lines.values())))
    titles = ["h", *(f"{level:.0%}" for level in levels), "95 % of 90 %", "width 90 %"]
    rows = []
    for h, by_level in lines.items():
        shown = by_level.get(0.9, by_level[levels[-1]])
        low, high = shown["ci95"]
        shares = [f"{by_level[level]['coverage']:.1%}" for level in levels]
        rows.append([str(h), *shares, f"{low:.0%} … {high:.0%}", number(shown["mean_width"])])
    return titles, rows, "r" * len(titles)


def group_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line per group and horizon."""
    rows = [
        [name if i == 0 else "", h, str(row["n"]), number(row["mae"]),
         number(row["persistence_mae"]), signed(row["skill"])]
        for name, by_h in groups.items()
        for i, (h, row) in enumerate(by_h.items())
    ]  # fmt: skip
    return ["", "h", "n", "MAE", "persistence", "skill"], rows, "lrrrrr"


def class_table(classes: Mapping[str, Any]) -> Table:
    """A line per horizon: of SIDE and of persistence."""
    rows = []
    for h, pair in classes.items():
        a, b = pair["model"], pair["persistence"]
        rows.append([
            h, f"{a['macro_f1']:.3f}", f"{b['macro_f1']:.3f}", f"{a['ordinal_mae']:.3f}",
            f"{b['ordinal_mae']:.3f}", f"{a['commonest_share']:.0%}",
        ])  # fmt: skip
    titles = ["h", "macro F1", "persistence", "ordinal MAE", "persistence", "commonest"]
    return titles, rows, "r" * 6


def impact_table(impacts: Mapping[str, Any]) -> Table:
    """A line per horizon and estimator."""
    keys = (
        ("deviance", "mae", "skill")
        if impacts["loss"] == "poisson"
        else ("macro_f1", "micro_f1", "auprc", "base_rate", "brier", "skill")
    )
    rows = [
        [h if i == 0 else "", "SIDE" if name == "model" else name, str(row["n"]),
         *(f"{row[k]:.3f}" if k in row else "" for k in keys)]
        for h, by_name in impacts["horizons"].items()
        for i, (name, row) in enumerate(by_name.items())
    ]  # fmt: skip
    for cells, scores in zip(rows, (s for by in impacts["horizons"].values() for s in by.values())):
        cells.append("{} … {}".format(*map(signed, scores["ci95"])) if "ci95" in scores else "")
    words = {"macro_f1": "macro F1", "micro_f1": "micro", "base_rate": "base", "auprc": "AUPRC"}
    titles = ["h", "", "n", *(words.get(key, key) for key in keys), "95 %"]
    return titles, rows, "rl" + "r" * (2 + len(keys))


def describe_data(data: Data) -> str:
    """The header's lines of what is read."""
    table = data.table
    parts = " · ".join(f"{name} {a} … {b} ({n})" for name, (a, b, n) in data.split.ranges.items())
    places = ", ".join(table.regions[:6]) + (" …" if len(table.regions) > 6 else "")
    what = f"{len(table.days)} place-weeks of {places}"
    lines = [
        header_line("series", what, f"{data.series.layout.name} layout, {data.series.form}"),
        header_line("split", parts),
    ]
    if data.texts.digest is not None:
        counts = data.texts.counts()
        share = float((table.text_counts == 0).mean())
        said = [f"{counts['used']} used of {counts['records']}", f"{share:.0%} of weeks have none"]
        if data.texts.masked:
            said.append(f"{counts['leaked_term_share']:.1%} stated the label, masked")
        lines.append(header_line("texts", *said))
    if data.impacts is not None:
        lines.append(
            header_line("impacts", f"{data.impacts.records} reports", ", ".join(table.categories))
        )
    return "\n".join(lines)


def plan_text(plan: Mapping[str, Any]) -> str:
    """What a dry run found that the header doesn't say."""
    from compress.reports import formats as fmt

    titles = ["samples", *(f"h {h}" for h in plan["purged"])]
    rows = [[name, *map(str, by_h.values())] for name, by_h in plan["samples"].items()]
    rows.append(["purged", *map(str, plan["purged"].values())])
    text = fmt.table(titles, rows, "l" + "r" * len(plan["purged"]))
    outside = plan.get("texts", {}).get("outside")
    lines = [
        fmt.wrap(f"note: {note}", fmt.screen_width(), "      ") for note in plan.get("notes", ())
    ]
    if outside:
        told = f"texts outside: {outside['area']} by place, {outside['period']} by date"
        lines.insert(0, told)
    return fmt.fit_encoding("\n\n".join([text, *(["\n".join(lines)] if lines else [])]))
