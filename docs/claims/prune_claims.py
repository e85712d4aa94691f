"""Claims on pruning: AlphaPruning, calibration data, CD-MoE."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping

from claim_figures import (
    PENDING,
    BySeed,
    Claim,
    Files,
    Part,
    Section,
    less,
    mean,
    more,
    number,
    times,
)

from compress.numerics.trials import paired_interval, rank_sets

QUALITY = "`python benchmarks/prune/quality.py`"
MODELS = ("tiny-llama", "stories260k", "small (real text)")
SMALL = "Llamas of 1.1, 0.3 and 3.9 M"
SPECTRAL = ("alpha (peak)", "alpha (mid)")


def _shares(files: Files, model: str, arm: str, share: float) -> dict[int, float]:
    """Seed -> held-out loss of a model pruned by "method|allocation"."""
    return {
        line["seed"]: line["losses"][f"{arm}|{share}"]
        for line in files.lines("benchmarks/prune/quality.jsonl")
        if line["model"] == model and f"{arm}|{share}" in line["losses"]
    }


def _allocations(files: Files, method: str, first: str, second: str, share: float) -> list[Part]:
    return [
        less(f"{first} against {second}, {model}:", _shares(files, model, f"{method}|{first}",
             share), _shares(files, model, f"{method}|{second}", share))
        for model in MODELS
    ]  # fmt: skip


def _line(files: Files, method: str, share: float) -> str:
    parts = _allocations(files, method, "atp", "uniform", share)
    return "straight line (atp) against uniform: " + "; ".join(
        part.text.partition(", ")[2] for part in parts
    )


def _layers(files: Files) -> list[Part]:
    """Do blocks with a larger exponent lose more when cut?"""
    found = files.content("benchmarks/prune/layers.json")
    parts = []
    for model, entry in found.get("models", {}).items():
        rises = sorted(statistics.fmean(r) for r in zip(*entry["rises"].values()))
        low, high = min(entry["alpha"]), max(entry["alpha"])
        ratio = rises[-1] / max(rises[0], 1e-4)
        text = (f"{model}: exponents {number(low, 2)} to {number(high, 2)}, loss by one block cut "
                f"{number(rises[0])} to {number(rises[-1])}")  # fmt: skip
        parts.append(Part(text, high / low >= 1.5 and ratio >= 2))
    return parts or [Part("not measured", None)]


def alpha(files: Files) -> Section:
    """The rows of AlphaPruning, a straight line and uniform beside."""
    heads = [part for metric in SPECTRAL for other in ("uniform", "owl")
             for part in _allocations(files, "wanda", metric, other, 0.7)]  # fmt: skip
    solvers = [Part(f"{method}, {p.text}", p.holds) for method in ("wanda", "sparsegpt")
               for p in _allocations(files, method, "alpha (mid)", "uniform", 0.7)]  # fmt: skip
    correlation = files.content("benchmarks/prune/layers.json").get("models", {})
    beside = "; ".join(
        f"{m}: rank correlation of exponent and loss {number(e['spearman'], 2, True)}"
        for m, e in correlation.items()
    )
    eighty = "; ".join(f"{model} {mean(_shares(files, model, 'wanda|alpha (mid)', 0.8))}"
                       for model in MODELS)  # fmt: skip
    return Section("AlphaPruning (arXiv:2410.10912)",
                   "Held-out loss in nats a token, three draws of the calibration text; OWL is the "
                   "heuristic rival, atp a straight line over depth whose slope is searched on "
                   "calibration text.", (
        Claim("A1", "Layers differ widely in how well trained and how prunable they are",
              "`python benchmarks/prune/layers.py`", SMALL, _layers(files), beside or "–",
              remark="Widely means: exponents by a factor of 1.5, and the loss by cutting one "
              "block to 70 % by a factor of 2. Bounds of one model have no interval."),
        Claim("A2", "Ratios from the shape of spectra beat uniform and heuristic ones",
              f"`compress run owl-comparison`; here {QUALITY}", f"{SMALL}; Wanda at 70 %", heads,
              _line(files, "wanda", 0.7),
              remark="alpha (peak) is the published estimate of the exponent."),
        Claim("A3", "Combines with several pruners", f"`compress run alpha-pruning-s70`; here "
              f"{QUALITY}", f"{SMALL}; 70 %", solvers, _line(files, "sparsegpt", 0.7)),
        Claim("A4", "LLaMA-7B at 80 % keeps a reasonable perplexity",
              "`compress run alpha-pruning-s80`", SMALL, (),
              f"Wanda, alpha (mid), 80 %: {eighty}; {_line(files, 'wanda', 0.8)}",
              "LLaMA-7B: one GPU of 24 GB or 16 GB of memory and a day of CPU"),
    ))  # fmt: skip


# Calibration data

STUDIES = {"tiny-llama": "demo", "stories260k": "own-stories.jsonl", "small": "openwebtext.jsonl"}
ARITHMETIC = ("gsm8k", "svamp", "mawps")
CATEGORIES = {"arithmetic": ARITHMETIC, "entailment": ("esnli",),
              "commonsense": ("commonsense_qa", "winogrande")}  # fmt: skip
BAD = ("ellipses", "random")
Trials = dict[str, dict[str, dict[int, float]]]


def _all_trials(files: Files, model: str) -> Trials:
    """Text -> set -> seed -> loss in nats, a mean over methods and sparsities; bad data too."""
    cells: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in files.rows(f"benchmarks/calib/{model}/cells.csv"):
        if row["control"] not in ("", "bad-end") or row["status"] != "ok":
            continue
        for name, value in row.items():
            if name.startswith("perplexity.") and name.endswith(".value") and value:
                text = name[len("perplexity.") : -len(".value")]
                seeds = cells.setdefault(text, {}).setdefault(row["calib"], {})
                seeds.setdefault(int(row["seed"]), []).append(math.log(float(value)))
    return {t: {c: {s: statistics.fmean(v) for s, v in by.items()} for c, by in sets.items()}
            for t, sets in cells.items()}  # fmt: skip


def _blind(sets: Mapping[str, BySeed]) -> bool:
    """Whether dots or random characters prune as well as some set, by their means."""
    means = {name: statistics.fmean(by.values()) for name, by in sets.items()}
    worst = max(value for name, value in means.items() if name not in BAD)
    return any(means[name] <= worst for name in BAD if name in means)


def _trials(files: Files, model: str) -> Trials:
    """Those of texts whose loss tells text from bad data, real sets alone."""
    return {
        text: {name: by for name, by in sets.items() if name not in BAD}
        for text, sets in _all_trials(files, model).items()
        if not _blind(sets)
    }


def _together(trials: Iterable[BySeed]) -> dict[int, float]:
    """Seed -> mean over trials of the seeds that all have."""
    some = list(trials)
    seeds = set.intersection(*(set(t) for t in some)) if some else set()
    return {s: statistics.fmean(t[s] for t in some) for s in sorted(seeds)}


def _pooled(trials: Trials, sets: Callable[[str], bool]) -> dict[int, float]:
    """Seed -> mean over texts and the sets that are asked for."""
    return _together(by for text in trials.values() for name, by in text.items() if sets(name))


def _choice(files: Files) -> list[Part]:
    """On how many texts can some pair of sets be told apart?"""
    parts = []
    for model in STUDIES:
        found = _trials(files, model)
        if not found:
            parts.append(Part(f"{model}: not measured", None))
            continue
        apart, widths = 0, []
        for sets in found.values():
            ranks = rank_sets({n: list(by.values()) for n, by in sets.items()}, smaller=True)
            apart += any(r.best > 1 for r in ranks)
            widths.append(ranks[-1].mean - ranks[0].mean)
        text = (f"{model}: sets told apart on {apart} of {len(found)} texts, best to worst "
                f"{number(min(widths))} to {number(max(widths))}")  # fmt: skip
        parts.append(Part(text, apart == len(found)))
    return parts


def _own(files: Files) -> tuple[list[Part], str]:
    """A task's own training split against the mean of the other corpora, on that task.

    Also what a test needs, where no task's loss tells text from bad data.
    """
    trials = _all_trials(files, "small")
    parts, blind = [], []
    for task in ("gsm8k", "esnli", "commonsense_qa"):
        sets = trials.get(task, {})
        mine = (task, "openwebtext.jsonl", *BAD)
        others = _together(by for n, by in sets.items() if "@" not in n and n not in mine)
        part = more(f"{task}: own against other corpora", sets.get(task, {}), others)
        blind.append(bool(sets) and _blind(sets))
        parts.append(Part(part.text + (", but blind to bad data" if blind[-1] else ""),
                          None if blind[-1] else part.holds))  # fmt: skip
    needs = "a model whose loss on a task tells text from dots as calibration data"
    return parts, needs if all(blind) else ""


def _any(parts: list[Part]) -> list[Part]:
    """One part of several: claimed is that at least one holds."""
    text = "; ".join(p.text for p in parts)
    known = [p.holds for p in parts]
    return [Part(text, True if True in known else None if None in known else False)]


def calibration(files: Files) -> Section:
    """The rows of the study of calibration data."""
    all_trials = {model: _trials(files, model) for model in STUDIES}
    gsm8k = _all_trials(files, "small").get("gsm8k", {})
    own, own_needs = _own(files)
    arithmetic, context = [], []
    for model, reference in STUDIES.items():
        found = all_trials[model]
        base = _pooled(found, lambda n, r=reference: n == r)  # type: ignore[misc]
        sums = _pooled(found, lambda n: n in ARITHMETIC)
        arithmetic.append(less(f"{model}: gsm8k, svamp, mawps against {reference}", sums, base,
                               margin=0.01))  # fmt: skip
        for category, corpora in CATEGORIES.items():
            plain = _pooled(found, lambda n, c=corpora: n in c)  # type: ignore[misc]
            shots = _pooled(found, lambda n, c=corpora: n in {f"{x}@icl" for x in c})  # type: ignore[misc]
            context.append(less(f"{model}, {category}: icl against raw", shots, plain))
    reasoned = {model: _trials(files, f"{model}/cot") for model in STUDIES}
    reasoned = {model: found for model, found in reasoned.items() if found}
    thought = [
        less(f"{model}, {corpus}: with reasoning against without",
             _pooled(found, lambda n, c=corpus: n == f"{c}@icl-cot"),  # type: ignore[misc]
             _pooled(found, lambda n, c=corpus: n == f"{c}@icl"))  # type: ignore[misc]
        for model, found in reasoned.items()
        for corpus in ("gsm8k", "esnli")
    ]  # fmt: skip
    helped = [p.holds for p in thought]
    some = None if not helped or None in helped else any(helped) and not all(helped)
    how = "`compress run calibration-study`; here `python benchmarks/calib/study.py MODEL`"
    way = "Wanda and SparseGPT at 50 and 60 %, 8 × 256 tokens"
    scale = f"{SMALL}; {way}"
    return Section("Calibration data (arXiv:2410.07461)",
                   "Held-out loss in nats a token, a mean over methods, sparsities and scored "
                   "texts; the plain baseline is text like the model's own training text. A text "
                   "counts only where dots and random characters are worse than every set: "
                   "elsewhere the loss is blind to the data.", (
        Claim("K1", "The choice of calibration data matters", how, scale, _choice(files),
              "magnitude pruning, which reads no data: the same over all sets"),
        Claim("K2", "C4 isn't the best, even among pre-training sets", how, scale, (), "–",
              "C4, the Pile, OSCAR and RedPajama, and a model trained on such text"),
        Claim("K3", "Arithmetic sets equal or beat pre-training text", how, scale, arithmetic,
              "the reference itself: 0",
              remark="Seen means that the interval excludes being worse by 0.01 nats or more."),
        Claim("K4", "A task's own data needn't help it", how, f"Llama of 3.9 M; {way}",
              _any(own), "on gsm8k, its own against openwebtext, the model's own text: " + less(
                  "", gsm8k.get("gsm8k", {}), gsm8k.get("openwebtext.jsonl", {})).text, own_needs,
              remark="Seen means that on one task at least its own data is worse than the mean of "
              "the other corpora."),
        Claim("K5", "In-context examples (ICL) help all categories of data", how, scale, context,
              "raw text of the same corpora: 0"),
        Claim("K6", "Chain of thought helps only some", how.removesuffix("`") + " --cot`",
              f"{' and '.join(reasoned) or 'the same models'}; {way}",
              [Part("; ".join(p.text for p in thought) or PENDING, some)],
              "examples without reasoning: 0",
              remark="Seen means that it helps on some of these and not on all."),
    ))  # fmt: skip


# CD-MoE

CURVE = "`python benchmarks/experts/curve.py`"
KINDS = {"tiny-moe": "Qwen2-MoE of 3.5 M", "deepseek": "DeepSeek-V2 of 3.3 M"}
STEPS = (1, 2, 3, 4)


def _curve(files: Files) -> dict[tuple[str, str, int], dict[int, dict]]:
    found: dict[tuple[str, str, int], dict[int, dict]] = {}
    for line in files.lines("benchmarks/experts/curve.jsonl"):
        key = line["model"], line["arm"], line["strength"]
        found.setdefault(key, {})[line["seed"]] = line
    return found


def _figure(curve: dict, model: str, arm: str, strength: int, name: str = "loss") -> BySeed:
    return {s: line[name] for s, line in sorted(curve.get((model, arm, strength), {}).items())}


def _ninety(curve: dict, model: str, arm: str) -> list[Part]:
    """Is there a number of layers with 90 % of the accuracy, 30 % less memory, 30 % more speed?"""
    whole = _figure(curve, model, "original", 0, "accuracy")
    texts, holds = [], []
    for strength in STEPS:
        lines = curve.get((model, arm, strength), {})
        speeds = [x["speed"]["1"] for x in lines.values() if x.get("speed", {}).get("1")]
        if not lines or not whole or not speeds:
            continue
        kept = [x["accuracy"] / next(iter(whole.values())) for x in lines.values()]
        memory = statistics.median(s["memory"] for s in speeds)
        speed = statistics.median(s["speed_up"] for s in speeds)
        found = paired_interval(kept, [0.0] * len(kept))
        low = found.low if found.low is not None else min(kept)
        said = f" ({100 * low:.1f} to {100 * (found.high or max(kept)):.1f}, {times(len(kept))})"
        texts.append(f"{strength} of 4 layers: {100 * statistics.fmean(kept):.1f} %{said}, memory "
                     f"{memory:.2f}, speed {speed:.2f}")  # fmt: skip
        holds.append(len(kept) > 1 and low >= 0.9 and memory <= 0.7 and speed >= 1.3)
    return [Part("; ".join(texts), any(holds)) if texts else Part("not measured", None)]


def experts(files: Files) -> Section:
    """The rows of CD-MoE."""
    curve = _curve(files)
    pairs = [(model, strength) for model in KINDS for strength in (2, 4)]
    tuned = [less(f"{m}, {n} layers: tuned against not", _figure(curve, m, "CD-MoE-SR + tuned", n),
                  _figure(curve, m, "CD-MoE-SR", n)) for m, n in pairs]  # fmt: skip
    control = "; ".join(
        f"{m}: {mean(_figure(curve, m, 'original', 0))} and tuned "
        f"{mean(_figure(curve, m, 'original + tuned', 0))}"
        for m in KINDS
    )
    random = "; ".join(
        less(
            f"{m}, {n}", _figure(curve, m, "CD-MoE-SR", n), _figure(curve, m, "random experts", n)
        ).text
        for m, n in pairs
    )
    return Section("CD-MoE (arXiv:2412.00069)",
                   "CD-MoE-SR, the published form with routed experts, in four-layer models; loss "
                   "in nats a token, accuracy over four shipped tasks.", (
        Claim("C1", "Dropping MoE layers hurts more than condensing them", CURVE,
              ", ".join(KINDS.values()),
              [less(f"{m}, {n} of 4 layers: loss, condensed against dropped",
                    _figure(curve, m, "CD-MoE-SR", n), _figure(curve, m, "drop MoE layer", n))
               for m, n in pairs], f"condensed against random experts: {random}",
              remark="At the same number of layers; what is left of a dropped layer is smaller. "
              f"Accuracy at 3 of 4 layers, condensed and dropped: {_three(curve)}."),
        Claim("C2", "DeepSeekMoE-16B keeps about 90 % of its accuracy at 30 % less memory and 30 % "
              "more speed", f"`compress run cd-moe-deepseek-16b`; here {CURVE}",
              f"{KINDS['deepseek']}; decoding, batch 1", _ninety(curve, "deepseek", "CD-MoE-SR"),
              "our default (refitted): " + _ninety(curve, "deepseek", "default")[0].text,
              remark="Seen means: one number of layers meets all three, with the lower end of the "
              "accuracy's interval. Speeds are of a busy CPU."),
        Claim("C3", "Light fine-tuning of the experts wins more back", CURVE,
              ", ".join(KINDS.values()), tuned, f"the original, then tuned alike: {control}"),
        Claim("C4", "Holds on Qwen MoE too", f"`compress run cd-moe-qwen1.5`; here {CURVE}",
              f"{KINDS['tiny-moe']}; decoding, batch 1", _ninety(curve, "tiny-moe", "CD-MoE-SR"),
              "our default (refitted): " + _ninety(curve, "tiny-moe", "default")[0].text),
    ))  # fmt: skip


def _three(curve: dict) -> str:
    return "; ".join(
        f"{m} {mean(_figure(curve, m, 'CD-MoE-SR', 3, 'accuracy'))} and "
        f"{mean(_figure(curve, m, 'drop MoE layer', 3, 'accuracy'))}"
        for m in KINDS
    )


def sections(files: Files) -> list[Section]:
    """All of this file."""
    return [alpha(files), calibration(files), experts(files)]
