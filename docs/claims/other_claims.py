"""Claims of SIDE, LR-SMS and PASS."""

from __future__ import annotations

import statistics

from claim_figures import BySeed, Claim, Files, Part, Section, given, less, mean, more, number

# SIDE

PLACES = {"ca": "California", "us": "United States"}


def _skills(runs: dict, name: str, label: str) -> list[Part]:
    """Skill of a run against persistence at every horizon."""
    if name not in runs:
        return [Part(f"{label}: not measured", None)]
    return [given(f"{label}, h {h}:", e["skill"], e["ci95"], up=True)
            for h, e in runs[name]["skill"].items()]  # fmt: skip


def _without(runs: dict, name: str, part: str, label: str) -> list[Part]:
    """Error without a part minus that of the whole model, paired by week."""
    found = runs.get(name, {}).get("without", {}).get(part)
    if not found:
        return [Part(f"{label}: not measured", None)]
    return [given(f"{label}, h {h}:", e["difference"], e["ci95"], up=True)
            for h, e in sorted(found.items(), key=lambda item: int(item[0]))]  # fmt: skip


def _texts(parts: list[Part]) -> str:
    return "; ".join(part.text for part in parts)


def side(files: Files) -> Section:
    """The rows of SIDE, persistence beside each."""
    runs = files.content("benchmarks/drought/results.json").get("sets", {})
    real = [part for n, label in PLACES.items() for part in _skills(runs, n, label)]
    rivals = []
    for n, label in PLACES.items():
        for rival in ("ridge", "boosting"):
            found = runs.get(n, {}).get("baselines", {}).get(rival, {})
            if "4" in found:
                e = found["4"]
                low, high = e["ci95"]
                rivals.append(f"{label}, {rival}, h 4: {number(e['skill'], 3, True)} "
                              f"({number(low, 3, True)} to {number(high, 3, True)})")  # fmt: skip
    how = "`python benchmarks/drought/grid.py WORK`"
    scale = "some 1,200 weeks of the US Drought Monitor, 5 seeds; errors on the last 15 %"
    return Section("SIDE (texts, society and drought)",
                   "Skill is 1 - error / error of persistence, which forecasts no change; "
                   "h is weeks ahead; intervals are of a block bootstrap over weeks.", (
        Claim("D1", "Text quantifies societal impact over time", how, "simulated impacts alone", (),
              "simulated set, Brier score of impact without texts minus with: " + _texts(
                  _without(runs, "simulated", "no-text, impact", "simulated")),
              "weekly impact reports of real places beside their texts (Drought Impact Reporter)"),
        Claim("D2", "Modelling the link between the social and the physical side helps", how, scale,
              [part for n, label in PLACES.items()
               for part in _without(runs, n, "no-cross", f"{label}, error without the link")],
              "simulated set, whose texts tell the future: "
              + _texts(_without(runs, "simulated", "no-cross", "error without the link"))),
        Claim("D3", "Better than baselines on severity and impact, in California and Texas", how,
              scale, [*_skills(runs, "ca", PLACES["ca"]), Part("Texas, impact: no data", None)],
              "skill against persistence of " + ("; ".join(rivals) or "–") + "; SIDE, "
              + _texts([p for p in real if p.text.startswith(PLACES["us"])]),
              remark="Persistence is the baseline in every figure. Texas and impact would need "
              "the monitor's and the reporter's files of that state."),
    ))  # fmt: skip


# LR-SMS


def speech(files: Files) -> Section:
    """The rows of LR-SMS."""
    lines = files.lines("benchmarks/lowrank/speech.jsonl")

    def wer(arm: str) -> BySeed:
        return {x["seed"]: 100 * x["wer test12"][0] for x in lines if x["arm"] == arm}

    def size(arm: str) -> float | None:
        return next((x["parameters"] for x in lines if x["arm"] == arm), None)

    def against(first: str, second: str, up: bool = False) -> Part:
        return (more if up else less)(f"{first} against {second}", wer(first), wer(second), 1)

    whole, cut = size("full"), size("all 25%")
    fewer = Part("parameters: not measured", None)
    if whole and cut:
        fewer = Part(f"{whole / cut:.2f} times fewer parameters", whole / cut >= 2)
    full = "full rank: " + mean(wer("full"), 1, "%")
    how = "`compress run lr-sms`; here `python benchmarks/lowrank/speech.py`"
    scale = "Conformer of 0.7 M, 400 steps of spoken digits, a held-out speaker a seed"
    return Section("LR-SMS: low rank in speech models from the start",
                   "Word error rate in points on strings of one and two digits.", (
        Claim("R1", "Low rank in attention alone improves speech models, even at 12 %", how, scale,
              (against("attention 12%", "full"),), full),
        Claim("R2", "Feed-forward parts degrade from 50 % on", how, scale,
              (against("ffn 50%", "full", True), against("ffn 12%", "full", True)), full),
        Claim("R3", "Starting from the SVD helps", how, scale,
              (against("all 25%", "all 25% gaussian"), against("all 12%", "all 12% gaussian")),
              "Gaussian factors: " + mean(wer("all 25% gaussian"), 1, "% at 25 %")),
        Claim("R4", "Ranks that change linearly over layers help", how, scale,
              (_either(against("all 25% linear-up", "all 25%"),
                       against("all 25% linear-down", "all 25%")),),
              "uniform ranks: " + mean(wer("all 25%"), 1, "%"),
              remark="The direction isn't published; seen means that one of them is better, each "
              "at 95 %."),
        Claim("R5", "As good as full rank with half of the parameters or fewer", how, scale,
              (less("all 25% against full", wer("all 25%"), wer("full"), 1, margin=2.0), fewer),
              full, remark="As good means that the interval excludes 2 points more."),
        Claim("R6", "Training 1.3 times (speech) and 1.15 times (audio-visual) faster",
              "`python benchmarks/lowrank/speech_steps.py`",
              "19.7 M (speech) and 0.7 M (with synthetic visual features), CPU",
              _step_times(files), "full rank: 1",
              remark="Seen means that the upper quartile of the step's time reaches the figure."),
    ))  # fmt: skip


def _either(one: Part, other: Part) -> Part:
    known = (one.holds, other.holds)
    holds = True if True in known else None if None in known else False
    return Part(f"{one.text}; {other.text}", holds)


def _step_times(files: Files) -> list[Part]:
    found = files.content("benchmarks/lowrank/speech_steps.json")
    parts = []
    for kind, label, aim in (("small", "speech", 1.3), ("visual", "audio-visual", 1.15)):
        entry = found.get(kind, {}).get("all 25%")
        if entry is None:
            parts.append(Part(f"{label}: not measured", None))
            continue
        low, middle, high = (1 / x for x in reversed(entry["ratio"]))
        text = f"{label}, all at 25 %: {middle:.2f} times (quartiles {low:.2f} to {high:.2f})"
        parts.append(Part(text, low >= aim))
    return parts


# PASS

SHARES = (0.5, 0.35, 0.2)
RIVALS = ("l1", "taylor", "isomorphic")


def _top1(files: Files, arm: str, share: float, stage: str = "tuned") -> BySeed:
    """Seed -> top-1 in %."""
    return {
        x["seed"]: 100 * x[stage]["top1"]
        for x in files.lines("benchmarks/channels/compare.jsonl")
        if x["arm"] == arm and x.get("share") == share and stage in x
    }


def _ahead(files: Files, other: str, shares: tuple[float, ...], stage: str = "tuned",
           margin: float = 0.0) -> list[Part]:  # fmt: skip
    label = other.replace("pass, no", "PASS without")
    return [
        more(f"{share:.0%} of MACs, {stage}: PASS against {label}",
             _top1(files, "pass", share, stage), _top1(files, other, share, stage), 1, margin)
        for share in shares
    ]  # fmt: skip


def channels(files: Files) -> Section:
    """The rows of PASS, random and L1 with batch-norm re-estimation beside."""
    how = (
        "`compress run pass-six-datasets`; "
        "here `python benchmarks/channels/compare.py --data DIR --work WORK`"
    )
    scale = "ResNet of 0.17 M, 5,000 images of CIFAR-10 at 16 × 16"
    plain = [part for other in ("random", "l1") for part in _ahead(files, other, SHARES)]
    repaired = _texts(_ahead(files, "l1", SHARES, "repaired"))
    points = [_points(files, share) for share in SHARES]
    speeds = [x["batch_1_speedup"] for x in files.lines("benchmarks/channels/speed.jsonl")
              if x["network"] == "resnet-50" and x["keep"] == 0.5]  # fmt: skip
    speed = (
        f"ResNet-50 at half of the MACs: {statistics.median(speeds):.2f} times" if speeds else "–"
    )
    return Section("PASS (visual prompts find channels to prune)",
                   "Top-1 in points, at equal multiply-adds (MACs). Tuned: 4 epochs after the "
                   "cut. Repaired: cut, then batch norms measured anew, no training.", (
        Claim("P1", "Prompts and weight statistics find good channel sparsity", how, scale,
              [*plain, *(part for name in ("prompt", "statistics")
                         for part in _ahead(files, f"pass, no {name}", (0.5,)))],
              f"L1 with batch-norm re-estimation: {repaired}; random with it: "
              + _texts(_ahead(files, "random", SHARES, "repaired"))),
        Claim("P2", "The recurrent form captures dependency between layers", how, scale,
              _ahead(files, "pass, no recurrence", (0.5,)),
              _texts(_ahead(files, "pass, no recurrence", (0.5,), "repaired"))),
        Claim("P3", "1 to 3 points more on Food-101 at equal FLOPs", how, f"{scale}, not Food-101",
              points, "L1 alone: " + _texts(_ahead(files, "l1", SHARES)),
              remark="The rival is the better of L1, Taylor and isomorphic ranking by its mean; "
              "seen means that the interval lies above 1 point."),
        Claim("P4", "At about 80 % accuracy 0.35 times more speed-up", how, scale, (),
              f"dense: {_dense_text(files)} top-1; {speed}",
              "a network that reaches 80 %: Food-101 and a pre-trained ResNet, GPU hours"),
        Claim("P5", "Holds on several networks and six data sets", how, scale, (),
              f"one network, one data set: dense {_dense_text(files)}",
              "six data sets at 224 × 224 and pre-trained networks, some GPU days"),
    ))  # fmt: skip


def _dense(files: Files) -> BySeed:
    lines = files.lines("benchmarks/channels/compare.jsonl")
    return {x["seed"]: 100 * x["dense"]["top1"] for x in lines if x["arm"] == "dense"}


def _dense_text(files: Files) -> str:
    return mean(_dense(files), 1, "%")


def _points(files: Files, share: float) -> Part:
    """PASS against the best rival, by one point at least."""
    scores = {arm: _top1(files, arm, share) for arm in RIVALS}
    if not all(scores.values()):
        return Part(f"{share:.0%} of MACs: not measured", None)
    best = max(scores, key=lambda arm: statistics.fmean(scores[arm].values()))
    own = _top1(files, "pass", share)
    return more(f"{share:.0%} of MACs: PASS against {best}", own, scores[best], 1, margin=-1.0)


def sections(files: Files) -> list[Section]:
    """All of this file."""
    return [side(files), speech(files), channels(files)]
