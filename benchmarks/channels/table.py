"""The tables of compare.py's lines, as Markdown."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

STAGES = ("cut", "repaired", "tuned")


def print_tables(lines: list[dict]) -> None:
    """Print accuracy by arm and share, paired differences, and the price of the search."""
    dense = {line["seed"]: line for line in lines if line["arm"] == "dense"}
    cells: dict[tuple[float, str], list[dict]] = defaultdict(list)
    for line in lines:
        if "share" in line:
            cells[line["share"], line["arm"]].append(line)
    accuracies = [100 * line["dense"]["top1"] for line in dense.values()]
    noise = 100 * math.sqrt(0.25 / next(iter(dense.values()))["dense"]["n"])
    print(f"dense: {', '.join(f'{a:.1f}' for a in accuracies)} % top-1 (± {noise:.1f} each)\n")
    for share in sorted({share for share, _ in cells}, reverse=True):
        print(f"**{share:g} of the MACs**\n")
        print("| arm | seeds | cut | repaired | tuned | MACs |")
        print("|---|---|---|---|---|---|")
        for (own, arm), found in cells.items():
            if own == share:
                print(_row(arm, found))
        base = cells.get((share, "l1"))
        if base:
            print(f"| *no search: l1 + BN re-estimation* | {len(base)} |  | "
                  f"{_mean([_top1(x, 'repaired') for x in base])} |  |  |")  # fmt: skip
        print()
    _paired(cells)
    _costs(cells, dense)


def _row(arm: str, found: list[dict]) -> str:
    stages = " | ".join(_mean([_top1(x, stage) for x in found]) for stage in STAGES)
    macs = sum(x["macs"] for x in found) / len(found)
    return f"| {arm} | {len(found)} | {stages} | {macs:.3f} |"


def _top1(line: dict, stage: str) -> float:
    return 100 * line[stage]["top1"] if stage in line else math.nan


def _mean(values: list[float]) -> str:
    """Mean and standard error over seeds."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.1f} ± {spread / math.sqrt(len(values)):.1f}"


def _paired(cells: dict[tuple[float, str], list[dict]]) -> None:
    """Print each arm minus PASS over the same seeds, mean and standard error."""
    print("Differences to `pass`, paired by seed:\n")
    print("| share | arm | cut | repaired | tuned |")
    print("|---|---|---|---|---|")
    for (share, arm), found in cells.items():
        base = {x["seed"]: x for x in cells.get((share, "pass"), [])}
        both = [(x, base[x["seed"]]) for x in found if x["seed"] in base]
        if arm == "pass" or not both:
            continue
        shown = " | ".join(
            _mean([_top1(x, stage) - _top1(y, stage) for x, y in both]) for stage in STAGES
        )
        print(f"| {share:g} | {arm} | {shown} |")
    print()


def _costs(cells: dict[tuple[float, str], list[dict]], dense: dict[int, dict]) -> None:
    """Print CPU seconds of choosing as a share of the dense training's, medians over cells."""
    print("Choosing, in CPU seconds as a share of the dense training:\n")
    print("| arm | share |")
    print("|---|---|")
    shares: dict[str, list[float]] = defaultdict(list)
    for (_, arm), found in cells.items():
        shares[arm] += [x["seconds"] / dense[x["seed"]]["seconds"] for x in found]
    for arm, values in shares.items():
        print(f"| {arm} | {100 * statistics.median(values):.1f} % |")
