"""Tables and the picture of curve.jsonl; lines of further files are joined into the first.

python benchmarks/experts/curve_report.py benchmarks/experts/curve.jsonl [MORE.jsonl ...]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compress.reports.pictures import new_figure, save_figure

KEPT = 0.9  # share of the original's accuracy
DRAWN = {
    "drop block": "tab:gray", "drop MoE layer": "black", "random experts": "tab:olive",
    "frequency": "tab:brown", "CD-MoE-S": "tab:cyan", "CD-MoE-SR": "tab:blue",
    "CD-MoE-SR + tuned": "tab:purple", "default": "tab:orange", "default + tuned": "tab:red",
    "REAP": "tab:green", "merge (HC-SMoE)": "tab:pink",
}  # fmt: skip


class Point(NamedTuple):
    """One way at one strength, over the seeds."""

    arm: str
    strength: int
    size: float
    """Bytes, as a share of the original's."""
    loss: list[float]
    accuracy: list[float]
    speed: dict[str, dict[str, float]]
    """Batch size -> speed_up and memory against the original."""


def points(lines: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[Point]]:
    """Return the original's line of one model, and what became of it."""
    dense = next(line for line in lines if line["arm"] == "original")
    found = []
    for arm, strength in dict.fromkeys((line["arm"], line["strength"]) for line in lines):
        own = [line for line in lines if (line["arm"], line["strength"]) == (arm, strength)]
        if arm == "original":
            continue
        speed = next((line["speed"] for line in own if line["speed"]), {})
        size = statistics.fmean(line["bytes"] for line in own) / dense["bytes"]
        found.append(
            Point(
                arm, strength, size, [o["loss"] for o in own], [o["accuracy"] for o in own], speed
            )
        )
    return dense, sorted(found, key=lambda p: (p.arm, p.strength))


def spread(values: Sequence[float]) -> str:
    """Mean and standard error over seeds."""
    mean = f"{statistics.fmean(values):.3f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {error_of(values):.3f}"


def error_of(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 of one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def report(lines: Sequence[dict[str, Any]], output: Path) -> None:
    """Write the tables and the picture beside curve.jsonl."""
    models = list(dict.fromkeys(line["model"] for line in lines if line["arm"] != "original"))
    text = []
    for model in models:
        mine = [line for line in lines if line["model"] == model]
        text += [f"## {model}", "", *model_table(mine), *kept_table(mine), *error_table(mine)]
    output.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    picture(lines, models, output.with_suffix(".png"))


def model_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """All ways of one model."""
    dense, found = points(lines)
    yield f"Original: loss {dense['loss']:.3f}, accuracy {dense['accuracy']:.3f}."
    yield ""
    yield "| way | layers or experts | bytes | loss | accuracy | decode x, batch 1 / 16 | memory |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for point in found:
        speeds = " / ".join(f"{v['speed_up']:.2f}" for v in point.speed.values())
        memory = f"{point.speed['1']['memory']:.2f}" if point.speed else ""
        count = len(point.loss)
        seeds = "" if count == 3 else f" ({count} seed{'s' * (count > 1)})"
        yield (
            f"| {point.arm}{seeds} | {point.strength} | {point.size:.2f} | {spread(point.loss)} | "
            f"{spread(point.accuracy)} | {speeds} | {memory} |"
        )
    yield ""


def kept_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The smallest model of each way that keeps nine tenths of the accuracy."""
    dense, found = points(lines)
    if not found:
        return
    yield f"Smallest with {KEPT:.0%} of the accuracy ({KEPT * dense['accuracy']:.3f}):"
    yield ""
    yield "| way | layers or experts | bytes | accuracy kept | decode x, batch 1 / 16 |"
    yield "| --- | --- | --- | --- | --- |"
    for arm in dict.fromkeys(point.arm for point in found if point.strength):
        good = [
            p for p in found
            if p.arm == arm and statistics.fmean(p.accuracy) >= KEPT * dense["accuracy"]
        ]  # fmt: skip
        if not good:
            yield f"| {arm} | none | | | |"
            continue
        best = min(good, key=lambda p: p.size)
        share = statistics.fmean(best.accuracy) / dense["accuracy"]
        speeds = " / ".join(f"{v['speed_up']:.2f}" for v in best.speed.values())
        yield f"| {arm} | {best.strength} | {best.size:.2f} | {share:.3f} | {speeds} |"
    yield ""


def error_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Held-out relative output error of each layer at equal width, all layers condensed."""
    own = [line for line in lines if line["arm"] == "default"]
    most = max((line["strength"] for line in own), default=0)
    own = [line for line in own if line["strength"] == most]
    if not own:
        return
    kinds = ("constants", "least_squares", "refit")
    yield "Held-out |condensed - layer|² / |layer|², each layer by itself:"
    yield ""
    yield "| layer | mean weights | least squares | refitted |"
    yield "| --- | --- | --- | --- |"
    for layer in range(len(own[0]["errors"])):
        cells = [spread([o["errors"][layer][k] for o in own]) for k in kinds]
        yield f"| {layer} | {' | '.join(cells)} |"
    yield ""


def picture(lines: Sequence[dict[str, Any]], models: Sequence[str], path: Path) -> None:
    """Loss and accuracy against bytes and against decoding speed, a row a model."""
    figure, axes = new_figure(len(models), 3, (15, 4.2 * len(models)))
    for row, model in enumerate(models):
        dense, found = points([line for line in lines if line["model"] == model])
        for arm, colour in DRAWN.items():
            own = sorted((p for p in found if p.arm == arm), key=lambda p: p.size)
            sizes, fast = [p.size for p in own], [p for p in own if p.speed]
            panels = [
                (sizes, own, "loss"), (sizes, own, "accuracy"),
                ([p.speed["16"]["speed_up"] for p in fast], fast, "loss"),
            ]  # fmt: skip
            for plot, (xs, some, what) in zip(axes[row], panels, strict=True):
                values = [getattr(p, what) for p in some]
                plot.errorbar(
                    xs, [statistics.fmean(v) for v in values], [error_of(v) for v in values],
                    marker="o", markersize=3, linewidth=1, color=colour, label=arm,
                )  # fmt: skip
        axis = (
            ("bytes, share of the original", "loss"),
            ("bytes, share of the original", "accuracy"),
        )
        for plot, (x, y) in zip(axes[row], (*axis, ("decoding speed-up, batch 16", "loss")),
                                strict=True):  # fmt: skip
            plot.axhline(dense[y], color="black", linestyle=":", linewidth=0.8)
            plot.set_xlabel(x)
            plot.set_ylabel(y)
            plot.set_title(model)
            if y == "loss":
                plot.set_ylim(dense["loss"] - 0.02, dense["loss"] + 1.2)
        axes[row, 1].axhline(KEPT * dense["accuracy"], color="red", linestyle=":", linewidth=0.8)
    axes[0, 0].legend(fontsize=7)
    save_figure(figure, path)


def join(places: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the lines of several runs, each cell once, and keep them in the first file."""
    cells = {}
    for place in places:
        for text in place.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            cells[line["model"], line["arm"], line["strength"], line["seed"]] = line
    lines = sorted(cells.values(), key=lambda line: (line["model"] != "tiny-moe", line["model"]))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    places[0].write_text(text, encoding="utf-8")
    return lines


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]]
    report(join(files), files[0])
