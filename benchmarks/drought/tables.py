"""The tables of the README, from the runs of grid.py.

python benchmarks/drought/tables.py WORK > benchmarks/drought/results.md
python benchmarks/drought/tables.py WORK --json > benchmarks/drought/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from compress.drought.metrics import difference

SETS = {
    "us": "United States, 1,272 weeks, weekly texts",
    "ca": "California, 1,214 weeks, the national texts",
    "simulated": "SIMULATED set: 4 places of 320 weeks, texts that tell four weeks ahead",
}
ABLATIONS = {
    "no-text": "without texts",
    "shuffled": "texts of other weeks",
    "no-physical": "without the series",
    "no-cross": "without cross attention",
    "severity": "severity alone",
    "impact": "impact alone",
}
ENCODERS = {
    "minilm": "MiniLM, dense",
    "minilm-50": "MiniLM, half of the weights zero",
    "minilm-lowrank": "MiniLM, half of the weights, low rank",
}


def load(work: Path) -> dict[str, dict]:
    found = {}
    for path in sorted((work / "runs").glob("*/report.json")):
        items = json.loads((path.parent / "items.json").read_text())
        found[path.parent.name] = {**json.loads(path.read_text()), "items": items}
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def skill_cell(row: dict) -> str:
    low, high = row["ci95"]
    mark = {"skill": " *", "no skill": ""}.get(row["verdict"], " !")
    return f"{signed(row['skill'])} ({signed(low)} … {signed(high)}){mark}"


def mae_section(name: str, runs: dict[str, dict]) -> str:
    main = runs[name]
    horizons = list(main["skill"])
    head = ["MAE on the test weeks", *(f"h {h}" for h in horizons)]
    rows = [["n", *(str(main["skill"][h]["n"]) for h in horizons)]]
    for rival, by_h in main["baselines"].items():
        rows.append([rival, *(number(by_h[h]["mae"]) if h in by_h else "" for h in horizons)])
    rows.append(["**SIDE**", *(number(main["skill"][h]["mae"]) for h in horizons)])
    for key, label in {**ABLATIONS, **ENCODERS}.items():
        run = runs.get(f"{name}-{key}")
        if run and key != "impact":
            rows.append([f"SIDE, {label}", *(number(run["skill"][h]["mae"]) for h in horizons)])
    text = table(head, rows)
    rows = []
    for rival, by_h in main["baselines"].items():
        if rival not in ("persistence", "climatology", "seasonal"):
            cells = (skill_cell(by_h[h]) if h in by_h else "" for h in horizons)
            rows.append([rival, *cells])
    rows.append(["**SIDE**", *(skill_cell(main["skill"][h]) for h in horizons)])
    for key, label in {**ABLATIONS, **ENCODERS}.items():
        run = runs.get(f"{name}-{key}")
        if run and key != "impact":
            rows.append([f"SIDE, {label}", *(skill_cell(run["skill"][h]) for h in horizons)])
    head = ["skill against persistence (95 %)", *(f"h {h}" for h in horizons)]
    return text + "\n" + table(head, rows)


def paired_section(name: str, runs: dict[str, dict]) -> str:
    """What leaving a part out costs, paired by week."""
    main = runs[name]
    horizons = list(main["skill"])
    rows = []
    for key, label in ABLATIONS.items():
        run = runs.get(f"{name}-{key}")
        if run is None:
            continue
        kind = "brier" if key == "impact" else "errors"
        cells = []
        for h in horizons:
            first, second = (r["items"].get(kind, {}).get(h) for r in (main, run))
            if not first or not second or len(first) != len(second):
                cells.append("")
                continue
            week = np.array(main["items"]["weeks"][h])
            found = difference(np.array(first), np.array(second), week)
            low, high = found["ci95"]
            mark = " *" if low > 0 else " !" if high < 0 else ""
            cells.append(f"{signed(found['difference'])} ({signed(low)} … {signed(high)}){mark}")
        rows.append([label + (" (Brier)" if key == "impact" else ""), *cells])
    if not rows:
        return ""
    head = ["error without a part, minus the whole model's (95 %)", *(f"h {h}" for h in horizons)]
    return table(head, rows)


def encoder_section(name: str, runs: dict[str, dict]) -> str:
    main = runs.get(f"{name}-minilm")
    if main is None:
        return ""
    horizons = list(main["skill"])
    rows = []
    for key in ("minilm-50", "minilm-lowrank"):
        run = runs.get(f"{name}-{key}")
        if run is None:
            continue
        cells = []
        for h in horizons:
            week = np.array(main["items"]["weeks"][h])
            errors = (np.array(r["items"]["errors"][h]) for r in (main, run))
            found = difference(*errors, week)
            low, high = found["ci95"]
            cells.append(f"{signed(found['difference'])} ({signed(low)} … {signed(high)})")
        rows.append([ENCODERS[key], *cells])
    if not rows:
        return ""
    head = ["MAE minus that of the dense encoder (95 %)", *(f"h {h}" for h in horizons)]
    return table(head, rows)


def coverage_section(name: str, runs: dict[str, dict]) -> str:
    lines = runs[name]["reliability"]
    horizons = list(runs[name]["skill"])
    levels = sorted({line["level"] for line in lines})
    at = {(str(line["horizon"]), line["level"]): line["coverage"] for line in lines}
    rows = [[f"{level:.0%}", *(f"{at[h, level]:.1%}" for h in horizons)] for level in levels]
    return table(
        ["intervals of SIDE: share of test weeks inside", *(f"h {h}" for h in horizons)], rows
    )


def measured(name: str, runs: dict[str, dict]) -> dict:
    """The figures of a set for other pages: skill, that of rivals, and errors without a part."""
    main = runs[name]
    found: dict = {"seeds": len(main["seeds"]), "skill": main["skill"], "without": {}}
    found["baselines"] = {
        rival: {h: {key: line[key] for key in ("mae", "skill", "ci95")} for h, line in by_h.items()}
        for rival, by_h in main["baselines"].items()
        if rival not in ("persistence", "climatology", "seasonal")
    }
    for key in ABLATIONS:
        run = runs.get(f"{name}-{key}")
        for kind, label in (("errors", key), ("brier", f"{key}, impact")):
            own = main["items"].get(kind, {})
            other = run["items"].get(kind, {}) if run else {}
            for h in own:
                if own[h] and other.get(h) and len(own[h]) == len(other[h]):
                    weeks = np.array(main["items"]["weeks"][h])
                    line = difference(np.array(own[h]), np.array(other[h]), weeks)
                    found["without"].setdefault(label, {})[h] = line
    return found


def main() -> None:
    work = Path(sys.argv[1])
    runs = load(work)
    if "--json" in sys.argv:
        sets = {name: measured(name, runs) for name in SETS if name in runs}
        print(json.dumps({"sets": sets}, indent=1))
        return
    for name, title in SETS.items():
        if name not in runs:
            continue
        seeds = len(runs[name]["seeds"])
        print(f"## {title}\n\n{seeds} seed{'s' * (seeds != 1)}; errors are averaged over seeds.\n")
        print(mae_section(name, runs))
        for section in (paired_section, encoder_section, coverage_section):
            text = section(name, runs)
            if text:
                print(text)


if __name__ == "__main__":
    main()
