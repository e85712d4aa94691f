"""A small pre-training grid: optimizers, spikes, norms, depth, masks, memory, bits.

    COMPRESS_ASSETS=DIR python benchmarks/training/grid.py --place DIR [--workers 2] [--only NAMES]

Each run trains 400 steps of 8 x 128 tokens with one of compress.train_spam, train_meap and
train_mixln, on one thread, and is then scored on held-out text; all runs of a seed see the same
tokens in the same order. A finished run is a line in grid.jsonl. The grid goes on where it
stopped, also inside a run; weights lie in the place. Learning rates: `arms.SWEEPS`, one seed of its
own, the best of two or more (doubled or halved on while the best is at an end); an arm waits for
its sweep. What has no sweep of its own takes that of its kind, norms that of Adam.

    --only NAMES   arms whose name begins with one of these, comma separated; their sweeps too
    --list         what could start now
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import corpus
from arms import BATCH, STEPS, SWEEP_SEED, Arm, best_rate, next_rates, ordered, sweep_arms

HELD_OUT_WINDOWS, DEPTH_WINDOWS = 600, 16


class Run(NamedTuple):
    """An arm with a seed and a learning rate."""

    arm: Arm
    seed: int
    lr: float

    @property
    def key(self) -> str:
        """Its name among the lines."""
        rate = f" lr={self.lr:g}" if self.arm.name.startswith("sweep/") else ""
        return f"{self.arm.name}{rate} seed={self.seed}"


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """All finished runs by key."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line["run"]: line for line in map(json.loads, lines)}


# What to run next


def sweep_losses(name: str, done: dict[str, dict[str, Any]]) -> dict[float, float]:
    """Rate -> held-out loss of a sweep, as far as it is."""
    lines = [line for line in done.values() if line["arm"] == f"sweep/{name}"]
    return {line["lr"]: line.get("held_out", math.inf) for line in lines}


def pending(only: tuple[str, ...], done: dict[str, dict[str, Any]]) -> Iterator[Run]:
    """Runs that are open and could start now, the most important first."""
    asked: set[str] = set()
    for seed, arm in ordered():
        if only and not arm.name.startswith(only):
            continue
        if arm.base is not None:
            run = Run(arm, seed, 0.0)
            if run.key not in done and _can_start(run, done):
                yield run
            continue
        assert arm.sweep is not None
        losses = sweep_losses(arm.sweep, done)
        rates = next_rates(arm.sweep, losses)
        if rates and arm.sweep not in asked:
            asked.add(arm.sweep)
            yield from (Run(sweep_arms(arm.sweep), SWEEP_SEED, rate) for rate in rates)
        if rates:
            continue
        run = Run(arm, seed, best_rate(losses))
        if run.key not in done:
            yield run


def _can_start(run: Run, done: dict[str, dict[str, Any]]) -> bool:
    base = done.get(f"{run.arm.base} seed={run.seed}")
    return base is not None and "failed" not in base


# One run


def follow(run: Run, place: Path) -> dict[str, Any]:
    """Go on from another run's checkpoint."""
    import torch
    from followups import STAGES

    torch.set_num_threads(1)
    began, cpu = time.time(), time.process_time()
    base = directory(place, f"{run.arm.base} seed={run.seed}")
    stage = run.arm.options["stage"]
    found = STAGES[stage](base, directory(place, run.key), run.seed, place / "text")
    line = {"run": run.key, "arm": run.arm.name, "seed": run.seed, "base": run.arm.base, **found}
    line["wall_seconds"] = round(time.time() - began, 1)
    line["cpu_seconds"] = round(time.process_time() - cpu, 1)
    return {**line, "finished": round(time.time())}


def directory(place: Path, key: str) -> Path:
    """Where a run's checkpoint lies."""
    return place / "runs" / key.replace("/", "-").replace(" ", "_")


def perform(run: Run, place: Path) -> dict[str, Any]:
    """Train, score and describe one run; in a process of its own."""
    if run.arm.base is not None:
        return follow(run, place)
    import torch

    import compress
    from compress.checkpoints.workspace import partial_path
    from compress.errors import RequestError, RunError
    from compress.reports.receipt import Receipt

    torch.set_num_threads(1)
    arm, text = run.arm, place / "text"
    held = str(text / f"{arm.corpus}.held.jsonl")
    output = directory(place, run.key)
    output.parent.mkdir(exist_ok=True)
    began, cpu = time.time(), time.process_time()
    options: dict[str, Any] = {
        "data": [str(text / f"{arm.corpus}.jsonl")], "tokenizer": str(text / "tokenizer"),
        "steps": STEPS, "batch_size": BATCH, "seqlen": corpus.LENGTH, "seed": run.seed,
        "lr": run.lr, "ppl": [held], "eval_seqlen": corpus.LENGTH, "limit": HELD_OUT_WINDOWS,
        "save_every": STEPS // 4, "keep": 1, "device": "cpu", "spikes": False, **arm.options,
    }  # fmt: skip
    model = str(text / f"{arm.family}-{arm.shape}")
    train = getattr(compress, arm.door)
    line: dict[str, Any] = {
        "run": run.key, "arm": arm.name, "seed": run.seed, "lr": run.lr, "shape": arm.shape,
        "family": arm.family, "corpus": arm.corpus, "options": dict(arm.options),
    }  # fmt: skip
    try:
        if not (output / "receipt.json").exists():
            begun = partial_path(output).exists()
            try:
                train(model, output, resume=begun, overwrite=not begun, **options)
            except RequestError:
                if not begun:
                    raise
                train(model, output, overwrite=True, **options)
    except RunError as fault:
        return {**line, "failed": str(fault), "finished": round(time.time())}
    receipt = Receipt.read(output).as_dict()
    line |= measured(receipt, held) | depth(output, held)
    line["wall_seconds"] = round(time.time() - began, 1)
    line["cpu_seconds"] = round(time.process_time() - cpu, 1)
    return {**line, "finished": round(time.time())}


def measured(receipt: dict[str, Any], held: str) -> dict[str, Any]:
    """What a receipt says of a run: losses in nats a token."""
    training, found = receipt["training"], receipt["after"]["perplexity"][held]
    return {
        "held_out": round(math.log(found["value"]), 5),
        "held_out_tokens": found["tokens"],
        "train_loss": round(training["loss"]["value"], 5),
        "tokens": training["tokens"],
        "state_bytes": training["optimizer_state_bytes"],
        "skipped": training["skipped"],
        "spikes": training.get("spikes"),
        "parameters": receipt["after"].get("parameters"),
        "train_seconds": round(receipt["cost"]["seconds"]["train"], 1),
    }


def depth(output: Path, held: str) -> dict[str, Any]:
    """By layer: gradient norm, output variance, distance and what leaving it out costs."""
    from compress.evaluation.depth_page import inspect_depth

    found = inspect_depth(
        output, data=held, samples=DEPTH_WINDOWS, seqlen=corpus.LENGTH, device="cpu"
    ).depth.layers
    names = ("gradient_2d", "gradient", "variance", "distance", "loss_increase")
    rows = {name: [float(f"{getattr(layer, name):.5g}") for layer in found] for name in names}
    return {"layers": rows}


def code_version() -> str:
    """The commit of the package that runs."""
    import subprocess

    place = Path(__file__).parent
    asked = ("git", "-C", str(place), "rev-parse", "--short", "HEAD")
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def _quietly() -> None:
    import warnings

    warnings.simplefilter("ignore")


def go(only: tuple[str, ...], workers: int, place: Path, lines: Path) -> None:
    """Run what is open until nothing is."""
    commit = code_version()
    running: dict[Future, Run] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _quietly) as pool:
        while True:
            done = read_lines(lines)
            busy = {run.key for run in running.values()}
            for run in pending(only, done):
                if len(running) >= workers:
                    break
                if run.key not in busy:
                    running[pool.submit(perform, run, place)] = run
                    print(f"{time.strftime('%H:%M:%S')} start {run.key}", flush=True)
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                run = running.pop(future)
                line = {**future.result(), "commit": commit}
                with lines.open("a", encoding="utf-8") as file:
                    print(json.dumps(line), file=file)
                said = line.get("held_out", line.get("failed"))
                print(f"{time.strftime('%H:%M:%S')} done  {run.key}: {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--place", type=Path, required=True, help="text, weights, unfinished runs")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--list", action="store_true")
    own = Path(__file__).with_suffix(".jsonl")
    parser.add_argument("--lines", type=Path, default=own, help="where finished runs are written")
    options = parser.parse_args()
    if options.list:
        for run in pending(options.only, read_lines(options.lines)):
            print("open ", run.key)
        return
    corpus.prepare(options.place / "text")
    go(options.only, options.workers, options.place, options.lines)


if __name__ == "__main__":
    main()
