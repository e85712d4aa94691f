"""Tables and figure of speech.py's and speech_steps.py's results: speech.md, speech.png.

    python benchmarks/lowrank/speech_page.py

Differences are paired by seed: arms of one seed share W0, recordings, their order and the held-out
speaker. Nothing is said to show unless the 95 % interval of its difference leaves out zero.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from compress.numerics.trials import paired_interval
from compress.reports.pictures import new_figure, save_figure

HERE = Path(__file__).resolve().parent
MEASURES = ("wer test12", "wer test3")
NAMED = {"wer test12": "1-2 digits", "wer test3": "3 digits"}
FINDINGS = [  # what the paper says; the arm, what it is compared with, the sign that would show it
    ("low rank in attention alone improves the error rate", "attention 12%", "full", -1),
    ("in feed-forward parts it costs accuracy, from 50 % on", "ffn 50%", "full", 1),
    ("… and more so at 12 %", "ffn 12%", "full", 1),
    ("starting from the SVD of W0 matters (against Gaussian factors)", "all 25%",
     "all 25% gaussian", -1),
    ("… at 12 %", "all 12%", "all 12% gaussian", -1),
    ("rank by depth matters: rising against uniform", "all 25% linear-up", "all 25%", 0),
    ("… falling against uniform", "all 25% linear-down", "all 25%", 0),
    ("low rank is as good as full with at least 2 × fewer parameters", "all 25%", "full", None),
]  # fmt: skip


def read_runs() -> dict[str, dict[int, dict]]:
    """Return arm -> seed -> its line."""
    found: dict[str, dict[int, dict]] = {}
    for line in (HERE / "speech.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["arm"], {})[row["seed"]] = row
    return found


def mean(values: list[float]) -> str:
    """Mean and standard error over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


def difference(runs, arm: str, other: str, measure: str) -> tuple[str, str]:
    """The mean difference arm - other in pairs, its 95 % interval, and whether that shows one."""
    seeds = sorted(runs.get(arm, {}).keys() & runs.get(other, {}).keys())
    if len(seeds) < 2:
        return "too few pairs", ""
    pairs = [[runs[name][seed][measure][0] for seed in seeds] for name in (arm, other)]
    found = paired_interval(*pairs)
    if found.low is None or found.high is None:
        return f"{found.difference:+.3f}, the same in all {len(seeds)} pairs", ""
    text = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}], n = {len(seeds)}"
    way = "more" if found.low > 0 else "less" if found.high < 0 else ""
    return text, way


def arm_table(runs) -> list[str]:
    """A row an arm."""
    lines = [
        "| arm | parameters | fewer | WER, 1-2 digits | WER, 3 digits | training loss | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    whole = next(iter(runs["full"].values()))["parameters"]
    for arm, rows in runs.items():
        first = next(iter(rows.values()))
        rates = [mean([row[m][0] for row in rows.values()]) for m in MEASURES]
        loss = mean([row["loss"] for row in rows.values()])
        lines.append(
            f"| {arm} | {first['parameters']:,} | {whole / first['parameters']:.2f} × | "
            f"{rates[0]} | {rates[1]} | {loss} | {len(rows)} |"
        )
    return lines


def finding_table(runs) -> list[str]:
    """A row a finding."""
    lines = [
        "| the paper's finding | compared here | WER, 1-2 digits: difference | 3 digits | shows |",
        "| --- | --- | --- | --- | --- |",
    ]
    for text, arm, other, sign in FINDINGS:
        found = [difference(runs, arm, other, measure) for measure in MEASURES]
        lines.append(
            f"| {text} | {arm} - {other} | {found[0][0]} | {found[1][0]} | "
            f"{verdict([way for _, way in found], sign, found[0][0])} |"
        )
    return lines


def verdict(ways: list[str], sign: int | None, text: str) -> str:
    """Say whether a finding shows, the opposite does, or the noise is larger."""
    if text.startswith("too few"):
        return "not measured"
    if sign is None:
        return "worse" if "more" in ways else "no difference seen; the interval bounds it"
    wanted = {-1: {"less"}, 1: {"more"}, 0: {"less", "more"}}[sign]
    if wanted & set(ways):
        return "yes, " + " and ".join(NAMED[m] for m, w in zip(MEASURES, ways) if w in wanted)
    return "the opposite" if any(ways) else "no: within noise"


def step_tables() -> list[str]:
    """A table a size: time of a step over the dense one's, median and quartiles."""
    place = HERE / "speech_steps.json"
    if not place.is_file():
        return ["Not measured yet: `python benchmarks/lowrank/speech_steps.py`."]
    lines = []
    for size, arms in json.loads(place.read_text()).items():
        lines += [
            f"**{size}**",
            "",
            "| arm | parameters | fewer | step time / dense | quartiles |",
            "| --- | ---: | ---: | ---: | --- |",
        ]
        whole = arms["full"]["parameters"]
        for arm, own in arms.items():
            low, middle, high = own["ratio"]
            lines.append(
                f"| {arm} | {own['parameters']:,} | {whole / own['parameters']:.2f} × | "
                f"{middle:.2f} | {low:.2f} … {high:.2f} |"
            )
        lines.append("")
    return lines


def draw(runs) -> None:
    """Error rate by parameters, with standard errors."""
    figure, ((left, right),) = new_figure(1, 2, (11, 4), dpi=120)
    for axes, measure in ((left, MEASURES[0]), (right, MEASURES[1])):
        for arm, rows in runs.items():
            values = [row[measure][0] for row in rows.values()]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            size = next(iter(rows.values()))["parameters"] / 1000
            axes.errorbar(size, statistics.fmean(values), error, fmt="o", capsize=3, label=arm)
        axes.set(xlabel="parameters, thousands", ylabel="word error rate", title=NAMED[measure])
        axes.grid(alpha=0.3)
    right.legend(frameon=False, fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    save_figure(figure, HERE / "speech.png")


def main() -> None:
    """Write the page and the figure."""
    runs = read_runs()
    any_run = next(iter(runs["full"].values()))
    seeds = sorted(runs["full"])
    speakers = ", ".join(runs["full"][seed]["speaker"] for seed in seeds)
    text = [
        "# Low rank from scratch on spoken digits",
        "",
        "Commands: `python benchmarks/lowrank/speech.py`, `speech_steps.py`, `speech_page.py`, "
        "with COMPRESS_ASSETS naming the assets (Free Spoken Digit Dataset, 600 takes of 6 "
        "speakers, 8 kHz).",
        "",
        f"ParakeetForCTC `conformer-tiny` (3 blocks, width 96), word tokens, 40 mels, "
        f"{any_run['steps']} steps of 16 strings of 1-2 digits, AdamW 1e-3 cosine. **Speaker-"
        f"disjoint**: each seed holds out one speaker ({speakers}) for the test and trains on the "
        "other five, so error rates are far above those of a split by takes. ± is the standard "
        "error over seeds, of which most is the speaker; differences are paired by seed, with "
        "95 % intervals by the t distribution. The machine was shared with other work.",
        "",
        *arm_table(runs),
        "",
        "![error rate by parameters](speech.png)",
        "",
        "## Which of the paper's findings show at this size",
        "",
        *finding_table(runs),
        "",
        "This is a toy: a run takes half a minute. It shows that every arm trains, what it costs "
        "and saves, and what can't be told apart here; it is no evidence for or against LR-SMS, "
        "whose own tables are of hundreds of hours.",
        "",
        "## Time of a training step",
        "",
        "Thread CPU time, one thread, arms in turn within a round, each over the dense step of "
        "its round. `visual` is the tiny model with 24 **synthetic** visual features beside the "
        "log-mel ones.",
        "",
        *step_tables(),
    ]
    (HERE / "speech.md").write_text("\n".join(text).rstrip() + "\n")
    draw(runs)


if __name__ == "__main__":
    main()
