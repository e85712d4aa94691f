"""Claims on training: MEAP, the Curse of Depth, SPAM, Mix-LN."""

from __future__ import annotations

import math
import re
from typing import Any

from claim_figures import (
    Claim,
    Files,
    Part,
    Section,
    above,
    below,
    each,
    less,
    mean,
    more,
    number,
    slope,
)

GRID = "`python benchmarks/training/grid.py --place DIR`"
BASE = "Llama of 1.4 M, 0.4 M tokens"
DEEP = "Llamas of 1.5 M, 12 layers, and 1.3 M, 24 layers; 0.4 M tokens"
DEPTHS = {"deep12": "12 layers", "deep24": "24 layers"}
NORMS = ("pre", "post", "mix", "lns")
TASKS = ("needle", "multidoc", "longreason")
SWEEP_SEED = 100  # seeds from here on choose learning rates
LITTLE = 0.01  # of the loss: a layer that costs less when left out does little


def _recipe(name: str, command: str) -> str:
    return f"`compress run {name}`; here {command}"


# MEAP


def _tasks(files: Files, arm: str, task: str, name: str = "acc") -> dict[int, float]:
    lines = files.grid.get(f"retrieve/{arm}", {})
    return {s: 100 * line["tasks"][task][name] for s, line in sorted(lines.items())}


def _retrieval(files: Files) -> tuple[list[Part], str, str]:
    """Parts, chance beside, and what a test needs where neither arm is above chance."""
    parts, chances, at_chance = [], [], []
    for task in TASKS:
        own, base = _tasks(files, "meap", task), _tasks(files, "adam+clip", task)
        chance = _tasks(files, "meap", task, "chance")
        parts.append(more(f"{task}: right, points, with masks against without", own, base, 1))
        if own and base:
            level = next(iter(chance.values()))
            chances.append(f"{task} {mean(own, 1)} and {mean(base, 1)} %, chance {level:.0f} %")
            found = [above("", arm, level).holds for arm in (own, base)]
            at_chance.append(found == [False, False])
    needs = ""
    if len(at_chance) == len(TASKS) and all(at_chance):
        needs = "models that retrieve above chance: about 1 B parameters and 40 B tokens"
    return parts, "with masks and without: " + "; ".join(chances) if chances else "–", needs


def _cost(files: Files) -> list[Part]:
    arms = files.content("benchmarks/training/overhead.json").get("arms", {})
    if "MEAP, AdamW" not in arms:
        return [Part("time of a step: not measured", None)]
    arm = arms["MEAP, AdamW"]
    low, high = arm["quartiles_to_this_trainer"]
    ratio = arm["ratio_to_this_trainer"]
    text = f"time of a step / without masks {ratio:.3f} (quartiles {low:.3f} to {high:.3f})"
    sizes = [files.loss(name, "parameters") for name in ("meap/meap", "clean/adam+clip")]
    both = set(sizes[0]) & set(sizes[1])
    same = all(sizes[0][s] == sizes[1][s] for s in both) if both else None
    said = {None: "not measured", True: "equal", False: "not equal"}[same]
    return [Part(text, high <= 1.05), Part(f"parameters of the model that is used: {said}", same)]


def meap(files: Files) -> Section:
    """The rows of MEAP."""
    parts, beside, needs = _retrieval(files)
    place = {int(k): v for k, v in files.content("benchmarks/training/attention.json").items()}
    entropy = {a: {s: v[a] for s, v in place.items() if a in v} for a in ("masked", "plain")}
    held = less("", files.loss("meap/meap"), files.loss("clean/adam+clip")).text.strip()
    multidoc = mean(_tasks(files, "meap", "multidoc"), 1, "%")
    return Section("MEAP: masks in next-token training (arXiv:2502.07490)", "", (
        Claim("M1", "Better than next-token training at finding key information and at reasoning "
              "over long context", _recipe("meap-pretrain", GRID), f"{BASE}, prompts of 256 tokens",
              parts, beside, needs),
        Claim("M2", "As good or better at commonsense", "`compress run meap-pretrain`", BASE, (),
              f"held-out loss, nats, against training without masks: {held}",
              "a model above chance at commonsense tasks, some 100 M parameters and more"),
        Claim("M3", "No extra cost in pre-training or inference",
              "`python benchmarks/training/overhead.py`", "3.3 M, CPU", _cost(files),
              "stock Trainer of transformers: in the benchmark's table",
              remark="Seen means: upper quartile of the time at most 1.05, and equal size."),
        Claim("M4", "Fine-tuning with masks: 11.77 points more where the answer is lost in the "
              "middle", "`compress run meap-finetune`", BASE, (),
              f"multidoc after pre-training with masks: {multidoc} (chance 25 %)",
              "a model that answers questions over ten documents, 1 B parameters and more"),
        Claim("M5", "Attention scores grow more distinguishable, since fewer tokens share them",
              "`python benchmarks/training/attention.py --place DIR`", BASE,
              (less("entropy of attention / its maximum, with masks against without",
                    entropy["masked"], entropy["plain"], 4),),
              "without masks: " + mean(entropy["plain"], 4),
              remark="Lower entropy is read as more distinguishable; held-out text, no masks "
              "while measuring."),
    ))  # fmt: skip


# Curse of Depth


def _growth(files: Files, arm: str) -> dict[int, float]:
    """Seed -> slope of ln variance by layer."""
    return each(files.layers(arm, "variance"), lambda v: slope([math.log(x) for x in v]))


def _little(files: Files, arm: str) -> dict[int, float]:
    """Seed -> share of layers whose removal costs less than 1 % of the loss."""
    loss = files.loss(arm)
    found = files.layers(arm, "loss_increase")
    return {s: sum(x < LITTLE * loss[s] for x in v) / len(v) for s, v in found.items()}


def depth(files: Files) -> Section:
    """The rows of the Curse of Depth."""
    pairs = [(d, f"{d}/pre", f"{d}/lns") for d in DEPTHS]
    tuned = {kind: files.loss(f"fine-tune/{kind}", "answer_loss") for kind in NORMS}
    others = ", ".join(f"{k} {mean(_little(files, f'deep12/{k}'), 2)}" for k in NORMS[1:])
    return Section("The Curse of Depth: LayerNorm scaling (arXiv:2502.05795)", "", (
        Claim("L1", "Nearly half of the layers do little", f"{GRID}; `compress inspect --depth`",
              DEEP, [Part(f"{DEPTHS[d]}: share of layers {mean(_little(files, pre), 2)}", None)
                     for d, pre, _ in pairs],
              f"other norms, 12 layers: {others}",
              needs="models trained until their layers matter, as the paper's Llama, Mistral, "
              "DeepSeek and Qwen of 7 B and more",
              remark="A layer does little when leaving it out costs less than 1 % of the loss. In "
              "runs this short the share says as much of the training's length as of depth."),
        Claim("L2", "The output variance of Pre-LN grows exponentially with depth", GRID, DEEP,
              [above(f"{DEPTHS[d]}: ln variance a layer", _growth(files, pre))
               for d, pre, _ in pairs],
              "with scaling, 12 layers: " + mean(_growth(files, "deep12/lns")),
              remark="Seen means that ln variance rises over the layers of the trained model."),
        Claim("L3", "The derivative of deep blocks tends to the identity", GRID, DEEP,
              [below(f"{DEPTHS[d]}: d(l, 1) a layer, from the second on",
                     each(files.layers(pre, "distance"), lambda v: slope(v[1:])), digits=4)
               for d, pre, _ in pairs],
              "with scaling, 12 layers: " + mean(
                  each(files.layers("deep12/lns", "distance"), lambda v: slope(v[1:])), 4),
              remark="By a stand-in: the angle between a layer's input and output, which falls "
              "with depth if deep layers come to do nothing. Derivatives weren't measured."),
        Claim("L4", "LayerNorm scaling curbs it and improves pre-training",
              _recipe("lns-130m-1b", GRID), DEEP,
              [part for d, pre, lns in pairs for part in (
                  less(f"{DEPTHS[d]}: held-out loss against pre", files.loss(lns), files.loss(pre)),
                  less(f"{DEPTHS[d]}: ln variance a layer against pre", _growth(files, lns),
                       _growth(files, pre)))],
              "against pre, 12 layers: " + "; ".join(
                  less(k, files.loss(f"deep12/{k}"), files.loss("deep12/pre")).text
                  for k in ("post", "mix"))),
        Claim("L5", "The gain carries over to fine-tuning", GRID,
              f"{DEEP.split(';')[0]}; 100 steps on GSM8K",
              (less("loss of answers against pre", tuned["lns"], tuned["pre"]),),
              f"pre {mean(tuned['pre'])}, post {mean(tuned['post'])}, mix {mean(tuned['mix'])}"),
    ))  # fmt: skip


# SPAM


def _spikes(files: Files) -> list[Part]:
    """Largest natural spike of each architecture and corpus, in times of the usual size."""
    parts = []
    for family in ("llama", "gpt2", "gpt_neox"):
        for text in ("openwebtext", "wikitext"):
            name = f"{family}, {text}"
            lines = list(files.grid.get(f"census/{name}", {}).values())
            if not lines:
                parts.append(Part(f"{name}: not measured", None))
                continue
            ratios = [
                entry["largest_ratio"]
                for line in lines
                for parameter, entry in (line.get("spikes") or {}).get("by_parameter", {}).items()
                if re.search(r"\.(layers|h)\.\d+\.", parameter)
            ]
            most = math.sqrt(max(ratios, default=0.0))
            parts.append(Part(f"{name}: largest {most:.0f} times", most >= 1000))
    return parts


def _scores(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    return {row["optimizer"]: dict(enumerate(row["scores"])) for row in rows}


def _beats(files: Files, group: str, own: str, others: tuple[str, ...]) -> list[Part]:
    name = f"{group}/{own}" if "/" not in own else own
    return [
        less(f"against {o.rpartition('/')[2]}", files.loss(name),
             files.loss(o if "/" in o else f"{group}/{o}"))
        for o in others
    ]  # fmt: skip


def _forecast(files: Files) -> list[tuple[float, dict[str, dict[int, float]]]]:
    found = files.content("examples/results/forecast_series.json").get("anomalies", {})
    return [(float(share), _scores(rows)) for share, rows in found.items()]


def _persistence(files: Files) -> str:
    """Test error of "no change", and of Adam at each share."""
    error = files.content("examples/results/forecast_series.json").get("persistence")
    if error is None:
        return "not measured yet"
    adams = "; ".join(f"{share:.0%} {mean(by['Adam'])}" for share, by in _forecast(files))
    return f"{number(error)}, Adam: {adams}"


def _state(files: Files, arm: str) -> str:
    found = files.loss(arm, "state_bytes")
    return f"{next(iter(found.values())) / 1e6:.1f} MB" if found else "–"


def spam(files: Files) -> Section:
    """The rows of SPAM, norm clipping beside each."""
    run = _scores(files.content("examples/results/rl_control.json").get("rows", []))
    series = _forecast(files)
    tuned: dict[str, dict[int, float]] = {}
    for line in files.lines("benchmarks/training/fine_tune.jsonl"):
        name = line["optimizer"]
        if line["seed"] >= SWEEP_SEED:
            name += f", rate {line['lr']:g}"
        tuned.setdefault(name, {})[line["seed"]] = line["answer_loss"]
    harm = [more("injected spikes, plain Adam: held-out loss", files.loss("noise/adam"),
                 files.loss("clean/adam"))]  # fmt: skip
    clip = less("", files.loss("noise/adam+clip"), files.loss("noise/adam")).text.strip()
    return Section("SPAM and Stable-SPAM (arXiv:2501.06842, 2502.17055)",
                   "\"Adam, clipped\" scales the whole gradient to norm 1: the plain remedy, "
                   "beside every row. Losses in nats a token.", (
        Claim("S1", "Gradient spikes reach 1000 times the usual size, in many architectures and "
              "data sets, and harm", GRID, f"{BASE}; GPT-2 and GPT-NeoX alike; 1 seed a cell",
              [*_spikes(files), *harm],
              f"norm clipping against plain Adam under injected spikes: {clip}",
              remark="Sizes are |g| over the root of Adam's second moment, in layers' parameters; "
              "rows of embeddings and head that were long unseen have a moment near 0 and exceed "
              "any bound. The harm is of spikes put in by hand; the natural ones here weren't "
              "shown to harm."),
        Claim("S2", "Beats Adam and its variants in pre-training", _recipe("spam-60m-1b", GRID),
              BASE, _beats(files, "clean", "spam", ("adam", "adam+clip", "memory/adam-mini")),
              "Stable-SPAM " + "; ".join(p.text for p in _beats(
                  files, "clean", "stable-spam", ("adam+clip",))) + "; under injected spikes SPAM "
              + _beats(files, "noise", "spam", ("adam+clip",))[0].text),
        Claim("S3", "Beats Adam in 4-bit pre-training", _recipe("stable-spam-4bit", GRID),
              f"{BASE}, weights and activations in 4 bits",
              _beats(files, "4-bit", "spam", ("adam",)),
              "; ".join(p.text for p in _beats(files, "4-bit", "spam", ("adam+clip",)))
              + "; Stable-SPAM "
              + "; ".join(p.text for p in _beats(files, "4-bit", "stable-spam",
                                                 ("adam", "adam+clip")))),
        Claim("S4", "Beats Adam in reinforcement learning", "`python examples/rl_control.py`",
              "cart-pole by PPO, 60 rounds; steps balanced of 200",
              (more("against Adam", run.get("SPAM", {}), run.get("Adam", {}), 1),),
              more("against Adam, clipped", run.get("SPAM", {}), run.get("Adam, clipped", {}),
                   1).text),
        Claim("S5", "Beats Adam in forecasting time series",
              "`python examples/forecast_series.py`", "one weekly series, 300 steps; test error",
              [less(f"{share:.0%} anomalies, against Adam", by.get("SPAM", {}),
                    by.get("Adam", {}), 4)
               for share, by in series] or [Part("not measured", None)],
              "; ".join(less(f"{share:.0%}, against Adam, clipped", by.get("SPAM", {}),
                             by.get("Adam, clipped", {}), 4).text for share, by in series)
              + "; forecasting no change: " + _persistence(files)),
        Claim("S6", "Beats Adam in fine-tuning",
              "`python benchmarks/training/fine_tune.py --place DIR`",
              "Llama of 1.4 M, 100 steps on GSM8K; loss of answers",
              (less("against Adam", tuned.get("spam", {}), tuned.get("adam", {})),),
              less("against Adam, clipped", tuned.get("spam", {}),
                   tuned.get("adam+clip", {})).text
              + "".join(f"; {name}: {mean(by)}" for name, by in tuned.items() if "rate" in name),
              remark="An optimizer takes the better of two learning rates on a seed of its own."),
        Claim("S7", "With sparse momentum, beats GaLore and Adam-mini under equal memory",
              _recipe("spam-60m-1b", GRID), BASE,
              _beats(files, "memory", "spam d=0.25", ("galore", "adam-mini")),
              "state: " + ", ".join(f"{name} {_state(files, arm)}" for name, arm in (
                  ("SPAM d=0.25", "memory/spam d=0.25"), ("GaLore", "memory/galore"),
                  ("Adam-mini", "memory/adam-mini"), ("Adam", "clean/adam+clip"))) + "; "
              + less("against Adam, clipped", files.loss("memory/spam d=0.25"),
                     files.loss("clean/adam+clip")).text),
    ))  # fmt: skip


# Mix-LN


def _tilt(files: Files, arm: str) -> dict[int, float]:
    """Seed -> slope of ln gradient norm by layer."""
    return each(files.layers(arm, "gradient_2d"), lambda g: slope([math.log(x) for x in g]))


def _spread(files: Files, arm: str) -> dict[int, float]:
    """Seed -> ln of largest over smallest gradient norm."""
    return each(files.layers(arm, "gradient_2d"), lambda g: math.log(max(g) / min(g)))


def _banned(files: Files, kind: str, when: str = "after") -> dict[int, float]:
    lines = files.grid.get(f"prefer/{kind}", {})
    return {s: 100 * line[when]["banned"] for s, line in sorted(lines.items())}


def _sizes(files: Files) -> list[Part]:
    parts = []
    for d in DEPTHS:
        found = {k: set(files.loss(f"{d}/{k}", "parameters").values()) for k in NORMS}
        if not all(found.values()):
            parts.append(Part(f"{DEPTHS[d]}: not measured", None))
            continue
        counts = sorted(set().union(*found.values()))
        shown = ", ".join(f"{c:,}" for c in counts)
        parts.append(Part(f"{DEPTHS[d]}: parameters {shown}", found["mix"] == found["pre"]))
    return parts


def mix(files: Files) -> Section:
    """The rows of Mix-LN."""
    both = [(d, other) for d in DEPTHS for other in ("pre", "post")]
    tuned = {k: files.loss(f"fine-tune/{k}", "answer_loss") for k in NORMS}
    lns = "; ".join(less(f"{DEPTHS[d]}: LNS against pre", files.loss(f"{d}/lns"),
                         files.loss(f"{d}/pre")).text for d in DEPTHS)  # fmt: skip
    return Section("Mix-LN (arXiv:2412.13795)", "", (
        Claim("X1", "Pre-LN shrinks the gradients of deep layers, Post-LN those of early ones",
              GRID, DEEP, [part for d in DEPTHS for part in (
                  below(f"{DEPTHS[d]}: pre, ln gradient norm a layer", _tilt(files, f"{d}/pre")),
                  above(f"{DEPTHS[d]}: post", _tilt(files, f"{d}/post")))],
              "mix, 12 layers: " + mean(_tilt(files, "deep12/mix"))),
        Claim("X2", "Mix-LN makes them more uniform", GRID, DEEP,
              [less(f"{DEPTHS[d]}: ln(largest / smallest) against {o}", _spread(files, f"{d}/mix"),
                    _spread(files, f"{d}/{o}"), 2) for d, o in both],
              "LNS, 12 layers: " + mean(_spread(files, "deep12/lns"), 2)),
        Claim("X3", "Pre-trains better than both", _recipe("mix-ln-71m-1b", GRID), DEEP,
              [less(f"{DEPTHS[d]}: held-out loss against {o}", files.loss(f"{d}/mix"),
                    files.loss(f"{d}/{o}")) for d, o in both], lns),
        Claim("X4", "Better after supervised fine-tuning", GRID,
              f"{DEEP.split(';')[0]}; 100 steps on GSM8K",
              [less(f"loss of answers against {o}", tuned["mix"], tuned[o])
               for o in ("pre", "post")], f"LNS: {mean(tuned['lns'])}"),
        Claim("X5", "Better after reinforcement learning from human feedback", GRID,
              "12 layers, 1.5 M; DPO on a rule, 48 steps",
              [less(f"banned tokens after, points, against {o}", _banned(files, "mix"),
                    _banned(files, o), 1) for o in ("pre", "post")],
              "before: " + ", ".join(f"{k} {mean(_banned(files, k, 'before'), 1)} %"
                                     for k in NORMS),
              remark="No human feedback: of two samples, that with fewer of the 20 most frequent "
              "tokens is preferred."),
        Claim("X6", "Adds no parameters", GRID, DEEP, _sizes(files), "stock Pre-LN"),
    ))  # fmt: skip


def sections(files: Files) -> list[Section]:
    """All of this file."""
    return [meap(files), depth(files), spam(files), mix(files)]
