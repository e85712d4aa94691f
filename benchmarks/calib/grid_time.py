"""Time of a study's shared grid against the same cells one by one, and against the floor.

    python benchmarks/calib/grid_time.py --model DIR [--rounds 3]

Writes grid_time.json beside this file. One calibration set, K ways to prune (Wanda and SparseGPT at
four sparsities); in turns, in one process:

- `single`: `alpha_prune` for each cell, scored after; the dense model's score is handed to it, so
  what it repeats is only what a single run needs: tokens, checks, statistics, weights, its files;
- `exact`: `calib_study`, all cells in one walk;
- `dense`: `calib_study --stats dense`, against `alpha_prune --propagate dense`.

Times are CPU seconds of the process (the machine may be shared); ratios are of one round each,
their median and range are told. The floor is what the forward passes alone take: 2 passes a cell
exact, 1 pass for all cells dense, and one scoring a cell, at the time of a plain forward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoints.source import open_source
from compress.data import prepare_calibration
from compress.data.registry import shipped

HERE = Path(__file__).resolve().parent
METHODS, SPARSITY = ("wanda", "sparsegpt"), (0.4, 0.5, 0.6, 0.7)
SIZE: dict[str, Any] = {"samples": 32, "seqlen": 256, "batch_size": 8}


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def singles(model: Path, place: Path, score: dict[str, Any], propagate: str) -> list[str]:
    """Every cell by itself; the digests of the pruned models."""
    before = compress.evaluate(str(model), **score)
    (dense,) = before.measures.values()
    digests = []
    for method in METHODS:
        for sparsity in SPARSITY:
            out = place / f"{method}{sparsity}"
            compress.alpha_prune(
                model, out, method=method, sparsity=sparsity, allocation="uniform", calib="demo",
                propagate=propagate, before=dense, overwrite=True, **SIZE, **score,
            )  # fmt: skip
            digests.append(open_source(out).digest())
    return digests


def study(model: Path, place: Path, score: dict[str, Any], stats: str) -> list[str]:
    """All cells together; the digests of the pruned models."""
    found = compress.calib_study(
        model, place / stats, calib=("demo",), methods=METHODS, sparsity=SPARSITY, seeds=1,
        stats=stats, controls="none", predictors=False, overwrite=True, **SIZE, **score,
    )  # fmt: skip
    return [cell["digest"] for cell in found.as_dict()["cells"]]


def forward_seconds(model: Path, windows: int) -> tuple[float, float]:
    """CPU seconds of one pass over the calibration set, and of scoring one model."""
    source = open_source(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    batches, _ = prepare_calibration("demo", source.tokenizer(), **SIZE)
    scored = [{"input_ids": batches[0]["input_ids"][:1]}] * windows
    with torch.inference_mode():
        network(**batches[0])
        passed = min(cpu(partial(run_all, network, batches))[0] for _ in range(3))
        score = min(cpu(partial(run_all, network, scored))[0] for _ in range(3))
    return passed, score


def run_all(network: Any, batches: list[dict[str, torch.Tensor]]) -> None:
    """Plain forwards of a model."""
    for batch in batches:
        network(**batch, use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="default: the shipped one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "grid_time.json")
    options = parser.parse_args()
    model = options.model or shipped("tiny-llama")
    texts = shipped("demo/test.jsonl")
    limit = min(open_source(model).token_limit() or 256, 256)
    score = {"ppl": (str(texts),), "limit": 16, "eval_seqlen": limit}
    kinds = {
        "single exact": lambda place: singles(model, place, score, "pruned"),
        "study exact": lambda place: study(model, place, score, "exact"),
        "single dense": lambda place: singles(model, place, score, "dense"),
        "study dense": lambda place: study(model, place, score, "dense"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(options.rounds + 1):
        digests = {}
        for name, work in kinds.items():
            with tempfile.TemporaryDirectory() as place:
                spent, digests[name] = cpu(partial(work, Path(place)))
            if turn:  # the first round warms up
                seconds[name].append(spent)
            print(turn, name, f"{spent:.1f} s", flush=True)
        for kind in ("exact", "dense"):
            assert digests[f"single {kind}"] == digests[f"study {kind}"], "other weights"
    passed, scored = forward_seconds(model, score["limit"])
    cells = len(METHODS) * len(SPARSITY)
    floors = {"exact": 2 * cells * passed + cells * scored, "dense": passed + cells * scored}
    found: dict[str, Any] = {
        "model": model.name,
        "cells": cells,
        **SIZE,
        "rounds": options.rounds,
        "cpu_seconds": {n: round(statistics.median(v), 2) for n, v in seconds.items()},
        "floor_seconds": {k: round(v, 2) for k, v in floors.items()},
    }
    pairs = {
        "exact": ("single exact", "study exact"),
        "dense": ("single dense", "study dense"),
        "dense against single exact": ("single exact", "study dense"),
    }
    for kind, (slow, fast) in pairs.items():
        ratios = sorted(a / b for a, b in zip(seconds[slow], seconds[fast]))
        found[f"speedup {kind}"] = {
            "median": round(statistics.median(ratios), 2),
            "range": [round(ratios[0], 2), round(ratios[-1], 2)],
        }
    known = json.loads(options.output.read_text()) if options.output.is_file() else []
    known = [each for each in known if each["model"] != found["model"]] + [found]
    options.output.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
