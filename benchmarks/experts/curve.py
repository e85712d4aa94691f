"""Quality against size and speed: ways to make tiny trained mixtures of experts smaller.

    python benchmarks/experts/curve.py --model calib_data/tiny-moe [--model DEEPSEEK]

Every arm at every number of layers (or of experts), three calibration seeds. Perplexity on the
shipped test text, accuracy over the four shipped tasks, bytes, and decoding speed and memory at
batch 1 and 16 against the original, timed alternately in one run. A line of curve.jsonl per
finished run; those present are kept, so the script goes on where it stopped. At the end, or by
`python benchmarks/experts/curve_report.py curve.jsonl`, tables (curve.md) and curve.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from curve_report import report
from transformers import AutoModelForCausalLM, AutoTokenizer

import compress
from compress.checkpoints import edits
from compress.checkpoints.source import open_source
from compress.data.packing import prepare_calibration
from compress.evaluation.speed import peak_memory

HERE = Path(__file__).parent
TASKS = ("tiny_story", "tiny_arithmetic", "tiny_entailment", "tiny_commonsense")
SAMPLES, SEQLEN, LIMIT = 32, 128, 100
PAPER = {"weights": "conditional-mean", "refit": "none", "shared_gate": "constant"}


class Arm(NamedTuple):
    """One way, at one strength."""

    name: str
    strength: int
    """Layers condensed or dropped; experts kept where layers stay sparse."""
    options: dict[str, Any] | None
    """Options of cd_moe_condense; None where something is dropped."""


WAYS: dict[str, dict[str, Any]] = {
    "random experts": {"score": "random", **PAPER},
    "random experts + refit": {"score": "random"},
    "frequency": {"score": "frequency", **PAPER},
    "frequency + refit": {"score": "frequency"},
    "CD-MoE-S": {"paper": True, "experts": 0},
    "CD-MoE-S + refit": {"score": "greedy-js", "metric": "js-hidden", "experts": 0},
    "CD-MoE-SR": {"paper": True},
    "CD-MoE-SR + refit": {"score": "greedy-js", "metric": "js-hidden"},
    "least squares": {"refit": "none"},
    "default": {},
    "default, sequential": {"refit": "sequential"},
}
"""Ways to make layers dense; the default is greedy-ls, least squares, kl-logits and refit."""

CORE = ("random experts", "frequency", "CD-MoE-S", "CD-MoE-SR", "default")
WIDELY = ("CD-MoE-SR", "default")
REFITTED = ("CD-MoE-S + refit", "CD-MoE-SR + refit")
TUNED = ("CD-MoE-S", "CD-MoE-SR", "default")
TUNING = {"finetune": 60, "finetune_lr": 1e-3, "finetune_seqlen": SEQLEN}


def core(layers: int, experts: int, routed: int) -> Iterator[Arm]:
    """Yield the arms that tell most: run first, with every seed."""
    for n in (layers, layers // 2):
        yield Arm("drop MoE layer", n, None)
        if n < layers:
            yield Arm("drop block", n, None)
        for name in (*CORE, *REFITTED) if n == layers else CORE:
            yield Arm(name, n, {"layers": n, "experts": routed, **WAYS[name]})
    yield from sparse(experts // 2)
    yield Arm("original + tuned", 0, None)
    for name in TUNED[1:]:
        yield tuned(name, layers, routed)


def repeated(arm: Arm, half: int) -> bool:
    """Whether an arm of the core is run with other seeds before all else is run with one."""
    return not arm.name.startswith("drop") and (arm.strength != half or arm.name in WIDELY)


def others(layers: int, experts: int, routed: int) -> Iterator[Arm]:
    """Yield the arms between and beside those."""
    for n in (layers, layers // 2, layers * 3 // 4, 1):
        some = WAYS if n in (layers, layers // 2) else WIDELY
        for name in some:
            yield Arm(name, n, {"layers": n, "experts": routed, **WAYS[name]})
        yield Arm("drop MoE layer", n, None)
        if n < layers:
            yield Arm("drop block", n, None)
    yield from sparse(experts * 3 // 4)
    yield from sparse(max(routed, experts // 4))
    for name in TUNED:
        for n in (layers, layers // 2):
            yield tuned(name, n, routed)


def sparse(kept: int) -> Iterator[Arm]:
    """Yield the ways that keep the router and some experts in every layer."""
    yield Arm("REAP", kept, {"mode": "prune", "experts": kept})
    yield Arm("frequency pruning", kept, {"mode": "prune", "experts": kept, "score": "frequency"})
    yield Arm("merge (HC-SMoE)", kept, {"mode": "merge", "experts": kept})


def tuned(name: str, layers: int, routed: int) -> Arm:
    """Return a way with fine-tuning after it."""
    return Arm(
        f"{name} + tuned", layers, {"layers": layers, "experts": routed, **WAYS[name], **TUNING}
    )


def drop(model: Any, arm: Arm, which: Sequence[int], place: Path) -> None:
    """Save a model without some MoE layers (zeros in a layer of width 1) or some blocks."""
    if arm.name == "drop block":
        kept = [b for i, b in enumerate(model.model.layers) if i not in which]
        for index, block in enumerate(kept):
            block.self_attn.layer_idx = index
        model.model.layers = torch.nn.ModuleList(kept)
        model.config.num_hidden_layers = len(kept)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[: len(kept)]
    else:
        names = [f"model.layers.{i}.mlp" for i in which]
        edits.apply(model, {name: {"kind": "dense_mlp", "width": 1} for name in names})
        for name in names:
            torch.nn.init.zeros_(model.get_submodule(name).down_proj.weight)
    compress.save(model, place)


@torch.no_grad()
def loss_of(model: Any, batches: Sequence[dict[str, Any]]) -> float:
    """Mean loss of a model in memory on token windows."""
    losses = [model(**b, labels=b["input_ids"]).loss.item() for b in batches]
    return statistics.fmean(losses)


def best_to_drop(path: Path, arm: Arm, batches: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Return the layers whose loss on calibration text is least when they are dropped."""
    count = AutoModelForCausalLM.from_pretrained(path).config.num_hidden_layers
    found = {}
    for which in itertools.combinations(range(count), arm.strength):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as place:
            drop(model, arm, which, Path(place) / "m")
            again = AutoModelForCausalLM.from_pretrained(Path(place) / "m", dtype=torch.float32)
            found[which] = loss_of(again, batches)
    return min(found, key=found.__getitem__)


@torch.no_grad()
def decode_ms(model: Any, rows: int, tokens: int = 12) -> float:
    """Milliseconds of CPU to write one token for each row, with the cache."""
    ids = torch.full((rows, 32), 5)
    out = model(ids, use_cache=True)
    cache, next_ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
    start = time.thread_time()
    for _ in range(tokens):
        out = model(next_ids, past_key_values=cache, use_cache=True)
        cache, next_ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
    return 1000 * (time.thread_time() - start) / tokens


def against(path: Path, other: Path) -> dict[str, dict[str, float]]:
    """Compare decoding of two models by batch size: medians of alternate runs in one process.

    Returns:
        Batch size -> "speed_up" (thread time of the first over the second), "ms" of the second,
        and "memory": bytes of tensors and of what decoding took on top, second over first.
    """
    models = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (path, other)]
    found = {}
    for rows in (1, 16):
        taken: list[list[float]] = [[], []]
        peaks = [0, 0]
        for _ in range(3):
            for which, model in enumerate(models):
                with peak_memory() as memory:
                    taken[which].append(decode_ms(model, rows))
                peaks[which] = max(peaks[which], memory.growth)
        held = [sum(p.numel() * 4 for p in model.parameters()) for model in models]
        dense, small = (a + b for a, b in zip(held, peaks, strict=True))
        first, second = map(statistics.median, taken)
        found[str(rows)] = {"speed_up": first / second, "ms": second, "memory": small / dense}
    return found


def run(path: Path, arm: Arm, seed: int, place: Path) -> dict[str, Any]:
    """Make a model smaller and measure it."""
    out, errors = place / "out", []
    start = time.perf_counter()
    if arm.name == "original + tuned":  # what tuning alone brings: experts of every layer
        compress.train_spam(
            path, out, data="demo", train_only="*.mlp.*_proj*", optimizer="adamw",
            schedule="linear", warmup=0.0, min_lr=0.0, batch_size=8, spikes=False, dtype="float32",
            steps=TUNING["finetune"], lr=TUNING["finetune_lr"], seqlen=SEQLEN, seed=seed,
        )  # fmt: skip
    elif arm.options is None:
        tokenizer = AutoTokenizer.from_pretrained(path)
        batches, _ = prepare_calibration(
            "demo", tokenizer, samples=32, seqlen=SEQLEN, seed=seed, batch_size=8, held_out=()
        )
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        drop(model, arm, best_to_drop(path, arm, batches), out)
        tokenizer.save_pretrained(out)
    else:
        done = compress.cd_moe_condense(
            path, out, calib="demo", samples=SAMPLES, seqlen=SEQLEN, batch_size=8,
            search_samples=8, seed=seed, dtype="float32", **arm.options,
        )  # fmt: skip
        errors = [row["errors"] for row in done.plan.rows if "errors" in row]
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "errors": errors,
        "bytes": open_source(out).bytes_on_disk(),
        **score(out),
        "speed": {},
    }


def score(path: Path) -> dict[str, Any]:
    """Perplexity and accuracy of a checkpoint."""
    found = compress.evaluate(path, ppl="demo", tasks=TASKS, limit=LIMIT, eval_seqlen=SEQLEN)
    measured = found.as_dict()["models"][0]
    accuracy = [task["acc"] for task in measured["tasks"].values()]
    return {
        "loss": math.log(measured["perplexity"]["demo"]["value"]),
        "accuracy": statistics.fmean(accuracy),
    }


def main() -> None:
    """Run what isn't there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "curve.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    if options.output.is_file():
        lines = [json.loads(line) for line in options.output.read_text().splitlines()]
    done = {(line["model"], line["arm"], line["strength"], line["seed"]) for line in lines}

    def add(line: dict[str, Any]) -> None:
        lines.append(line)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    speeds = {(line["model"], line["bytes"]): line["speed"] for line in lines if line["speed"]}
    for path in options.model:
        if (path.name, "original", 0, 0) not in done:
            size = open_source(path).parameters_on_disk() * 4
            add({"model": path.name, "arm": "original", "strength": 0, "seed": 0,
                 "bytes": size, **score(path), "speed": {}, "errors": []})  # fmt: skip
    jobs = itertools.product((core, others), options.model, range(options.seeds))
    for part, path, seed in jobs:
        config = AutoModelForCausalLM.from_pretrained(path).config
        count = getattr(config, "num_experts", None) or config.n_routed_experts
        for arm in part(config.num_hidden_layers, count, config.num_experts_per_tok):
            if (path.name, arm.name, arm.strength, seed) in done:
                continue
            half = config.num_hidden_layers // 2
            if seed and part is core and not repeated(arm, half):
                continue
            with tempfile.TemporaryDirectory() as place:
                found = run(path, arm, seed, Path(place))
                like = (path.name, found["bytes"])  # what has the same shapes is as fast
                if like not in speeds:
                    speeds[like] = against(path, Path(place) / "out")
            found["speed"] = speeds[like]
            done.add((path.name, arm.name, arm.strength, seed))
            add({"model": path.name, "arm": arm.name, "strength": arm.strength,
                 "seed": seed, **found})  # fmt: skip
    report(lines, options.output)


if __name__ == "__main__":
    main()
