"""Quality against size and speed: ways to make tiny trained mixtures of experts smaller.

    python benchmarks/experts/curve.py --model calib_data/tiny-moe [--model DEEPSEEK]

Every arm at every number of layers (or of experts), three calibration seeds. Perplexity on the
shipped test text, accuracy over the four shipped tasks, bytes, and decoding speed at batch 1 and 16
against the original, timed alternately in one run. A line of curve.jsonl per finished run; those
present are kept, so the script goes on where it stopped.
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
from transformers import AutoModelForCausalLM, AutoTokenizer

import compress
from compress.checkpoints import edits
from compress.checkpoints.source import open_source
from compress.data.packing import prepare_calibration

HERE = Path(__file__).parent
TASKS = ("tiny_story", "tiny_arithmetic", "tiny_entailment", "tiny_commonsense")
SAMPLES, SEQLEN = 64, 128
PAPER = {"weights": "conditional-mean", "refit": "none", "shared_gate": "constant"}


class Arm(NamedTuple):
    """One way, at one strength."""

    name: str
    strength: int
    """Layers condensed or dropped; experts kept where layers stay sparse."""
    options: dict[str, Any] | None
    """Options of cd_moe_condense; None where something is dropped."""


def arms(layers: int, experts: int, routed: int) -> Iterator[Arm]:
    """Yield all arms of a model."""
    for n in (n for n in (1, 2, 4) if n <= layers):
        yield Arm("drop MoE layer", n, None)
        if n < layers:
            yield Arm("drop block", n, None)
        for name, options in {
            "random": {"score": "random", **PAPER},
            "frequency": {"score": "frequency", **PAPER},
            "CD-MoE-S": {"paper": True, "experts": 0},
            "CD-MoE-SR": {"paper": True},
            "shared, refit": {"experts": 0},
            "frequency, refit": {"score": "frequency"},
            "greedy-ls, refit": {},
            "greedy-ls, sequential": {"refit": "sequential"},
        }.items():
            yield Arm(name, n, {"layers": n, "experts": routed, **options})
    for kept in sorted({experts * 3 // 4, experts // 2, max(routed, experts // 4)}, reverse=True):
        yield Arm("REAP", kept, {"mode": "prune", "experts": kept})
        yield Arm(
            "frequency pruning", kept, {"mode": "prune", "experts": kept, "score": "frequency"}
        )
        yield Arm("merge (HC-SMoE)", kept, {"mode": "merge", "experts": kept})


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
def decode_ms(model: Any, rows: int, tokens: int = 24) -> float:
    """Milliseconds of CPU to write one token for each row, with the cache."""
    ids = torch.full((rows, 32), 5)
    out = model(ids, use_cache=True)
    cache, next_ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
    start = time.process_time()
    for _ in range(tokens):
        out = model(next_ids, past_key_values=cache, use_cache=True)
        cache, next_ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
    return 1000 * (time.process_time() - start) / tokens


def speed_up(path: Path, other: Path) -> dict[str, float]:
    """Return how much faster the other model decodes, by batch size; medians of alternate runs."""
    models = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (path, other)]
    found = {}
    for rows in (1, 16):
        taken: list[list[float]] = [[], []]
        for _ in range(5):
            for which, model in enumerate(models):
                taken[which].append(decode_ms(model, rows))
        found[str(rows)] = statistics.median(taken[0]) / statistics.median(taken[1])
    return found


def run(path: Path, arm: Arm, seed: int, place: Path) -> dict[str, Any]:
    """Make a model smaller and measure it."""
    out, errors = place / "out", []
    start = time.perf_counter()
    if arm.options is None:
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
            search_samples=16, seed=seed, dtype="float32", **arm.options,
        )  # fmt: skip
        errors = [row["errors"] for row in done.plan.rows if "errors" in row]
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "errors": errors,
        "bytes": open_source(out).bytes_on_disk(),
        **score(out),
        "speed_up": speed_up(path, out) if seed == 0 else {},
    }


def score(path: Path) -> dict[str, Any]:
    """Perplexity and accuracy of a checkpoint."""
    found = compress.evaluate(path, ppl="demo", tasks=TASKS, limit=60, eval_seqlen=SEQLEN)
    measured = found.as_dict()["models"][0]
    accuracy = [task["acc"] for task in measured["tasks"].values()]
    return {
        "loss": math.log(measured["perplexity"]["demo"]["value"]),
        "accuracy": statistics.fmean(accuracy),
    }


def spread(values: Sequence[float], form: str) -> str:
    """Mean and standard error."""
    mean = form.format(statistics.fmean(values))
    if len(values) < 2:
        return mean
    return f"{mean} ± {form.format(statistics.stdev(values) / len(values) ** 0.5)}"


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table per model."""
    out = []
    for model in dict.fromkeys(line["model"] for line in lines):
        mine = [line for line in lines if line["model"] == model]
        dense = next(line for line in mine if line["arm"] == "original")
        out += [
            f"\n## {model}\n",
            f"Original: loss {dense['loss']:.3f}, accuracy {dense['accuracy']:.3f}.\n",
            "| way | layers or experts | bytes | loss | accuracy | decoding, batch 1 / 16 |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        keys = dict.fromkeys((line["arm"], line["strength"]) for line in mine)
        for arm, strength in keys:
            own = [line for line in mine if (line["arm"], line["strength"]) == (arm, strength)]
            if arm == "original":
                continue
            fast = next((line["speed_up"] for line in own if line["speed_up"]), {})
            speeds = " / ".join(f"{v:.2f}" for v in fast.values())
            out.append(
                f"| {arm} | {strength} | {own[0]['bytes'] / dense['bytes']:.2f} | "
                f"{spread([o['loss'] for o in own], '{:.3f}')} | "
                f"{spread([o['accuracy'] for o in own], '{:.3f}')} | {speeds} |"
            )
        out += ["", *error_table(mine)]
    return "\n".join(out) + "\n"


def error_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Held-out relative output error of each layer at equal width, all layers condensed."""
    own = [line for line in lines if line["arm"] == "greedy-ls, refit"]
    most = max((line["strength"] for line in own), default=0)
    own = [line for line in own if line["strength"] == most]
    if not own:
        return []
    kinds = ("constants", "least_squares", "refit")
    rows = ["| layer | mean weights | least squares | refitted |", "| --- | --- | --- | --- |"]
    for layer in range(len(own[0]["errors"])):
        cells = [spread([o["errors"][layer][k] for o in own], "{:.3f}") for k in kinds]
        rows.append(f"| {layer} | {' | '.join(cells)} |")
    return ["Held-out |condensed - layer|² / |layer|², each layer by itself:", "", *rows]


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

    for seed in range(options.seeds):
        for path in options.model:
            config = AutoModelForCausalLM.from_pretrained(path).config
            count = getattr(config, "num_experts", None) or config.n_routed_experts
            if (path.name, "original", 0, 0) not in done and seed == 0:
                size = open_source(path).parameters_on_disk() * 4
                add({"model": path.name, "arm": "original", "strength": 0, "seed": 0,
                     "bytes": size, **score(path), "speed_up": {}, "errors": []})  # fmt: skip
            for arm in arms(config.num_hidden_layers, count, config.num_experts_per_tok):
                if (path.name, arm.name, arm.strength, seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as place:
                    found = run(path, arm, seed, Path(place))
                add({"model": path.name, "arm": arm.name, "strength": arm.strength,
                     "seed": seed, **found})  # fmt: skip
    options.output.with_suffix(".md").write_text(tables(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
