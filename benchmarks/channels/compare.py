"""Channel pruning on real images: one network trained from scratch, every method alike after it.

    python benchmarks/channels/compare.py --data CIFAR_SLICE --work DIR --out lines.jsonl
    python benchmarks/channels/compare.py --table lines.jsonl

A line for each finished cell (seed, share of the MACs, arm): accuracy on the test images after the
cut, after batch-norm re-estimation and after fine-tuning, widths, CPU seconds of choosing. Run it
again and it goes on where it was. Masks are searched on train and chosen on validation; the test
images are looked at for the figures alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

from compress.channels.arms import choose_masks, run_arm
from compress.channels.preparing import Job, open_job
from compress.channels.presets import build_image_model
from compress.channels.selecting import kept_counts
from compress.channels.settings import PruneSettings
from compress.channels.tuning import TuneSettings, tune
from compress.checkpoints.source import open_source
from compress.data.images import load_images
from compress.data.images.processing import make_processor, read_processing
from compress.evaluation.accuracy import accuracy
from compress.progress import silent
from compress.reports.clock import Clock

PRESET, SIDE = "resnet-8-fast", 16
DENSE = TuneSettings(epochs=20, lr=0.1, batch_size=128, weight_decay=5e-4, warmup=0.1)
BASE = PruneSettings(
    repair="bn", round_to=1, calib_samples=2048, batch_size=64, finetune_epochs=4, lr=0.02,
    mask_epochs=5, mask_lr=1e-2, prompt_size=2, data="",
)  # fmt: skip
MAIN = {
    "pass": {"method": "pass"},
    "l1": {"method": "l1", "scope": "uniform"},
    "taylor": {"method": "taylor", "scope": "uniform"},
    "random": {"method": "random", "scope": "uniform"},
    "isomorphic": {"method": "isomorphic"},
}
OTHERS = {
    **{name: {"method": name, "scope": "uniform"} for name in ("l2", "bn", "fpgm", "fisher")},
    "group norm": {"method": "group", "scope": "isomorphic"},
    "growreg": {"method": "growreg", "scope": "uniform"},
    "taylor, global": {"method": "taylor", "scope": "global"},
}
ABLATIONS = {
    "pass, no prompt": {"method": "pass", "prompt": "none"},
    "pass, tuned without prompt": {"method": "pass", "prompt_share": 0.0},
    "pass, no recurrence": {"method": "pass", "recurrent": False},
    "pass, no statistics": {"method": "pass", "stats": "none"},
    "pass on taylor": {"method": "pass", "start": "taylor"},
    "pass, norms of the batch": {"method": "pass", "search_norms": "batch"},
}
KINDS = {"main": MAIN, "ablations": ABLATIONS, "others": OTHERS}
ARMS = {**MAIN, **OTHERS, **ABLATIONS}


def cells(seeds: int, budgets: list[float], kinds: list[str]) -> list[tuple[int, float, str]]:
    """The grid, what matters most first: all arms of a seed, then the next seed's."""
    return [
        (seed, share, arm)
        for kind in kinds
        for share in (budgets if kind == "main" else budgets[:1])
        for seed in range(seeds)
        for arm in KINDS[kind]
    ]


def dense_network(data: str, work: Path, seed: int) -> tuple[Path, dict]:
    """Train a seed's network from scratch, or find it; returns where it lies, and its line."""
    place = work / f"dense-{seed}"
    if (place / "line.json").is_file():
        return place, json.loads((place / "line.json").read_text())
    place.mkdir(parents=True, exist_ok=True)
    processor = make_processor(SIDE, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    processor.save_pretrained(place)
    images = load_images(data, read_processing(place))
    model = build_image_model(PRESET, images.classes, seed)
    begin = time.process_time()
    done = tune(model, images.train, DENSE, work / f"train-{seed}", seed=seed, task="dense")
    seconds = time.process_time() - begin
    model.save_pretrained(place)
    found = accuracy(model, images.test).as_receipt()
    line = {"seed": seed, "arm": "dense", "dense": found, "steps": done.steps, "seconds": seconds}
    (place / "line.json").write_text(json.dumps(line))
    return place, line


def run_cell(job: Job, share: float, arm: str, place: Path) -> dict:
    """Run one arm of one seed; returns its line."""
    settings = replace(job.settings, keep=share, **ARMS[arm])
    own = replace(job, settings=settings, model=copy.deepcopy(job.model), clock=Clock())
    begin = time.process_time()
    chosen = choose_masks(own, settings.method, place, lambda text: None)
    seconds = time.process_time() - begin
    chosen = run_arm(own, chosen, place, lambda text: None)
    told = chosen.as_receipt(own)
    if chosen.prompt is not None:
        told["prompted"] = accuracy(
            chosen.model, own.images().test, prompt=chosen.prompt
        ).as_receipt()
    return {
        "share": share, "arm": arm, **told, "seconds": seconds,
        "widths": kept_counts(chosen.masks).tolist(),
    }  # fmt: skip


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.35, 0.2])
    parser.add_argument("--arms", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--table", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.table is not None:
        from table import print_tables

        texts = "\n".join(path.read_text().strip() for path in asked.table)
        print_tables([json.loads(line) for line in texts.splitlines()])
        return
    lines = [json.loads(line) for line in asked.out.read_text().splitlines()] if (
        asked.out.is_file()
    ) else []  # fmt: skip
    done = {(line["seed"], line.get("share"), line["arm"]) for line in lines}
    jobs: dict[int, Job] = {}
    for seed, share, arm in cells(asked.seeds, asked.budgets, asked.arms):
        if (seed, share, arm) in done:
            continue
        place, dense = dense_network(asked.data, asked.work, seed)
        if (seed, None, "dense") not in done:
            _write(asked.out, dense)
            done.add((seed, None, "dense"))
        if seed not in jobs:
            settings = replace(BASE, data=asked.data, seed=seed)
            jobs[seed] = open_job(open_source(place), settings, silent, Clock())
        cell = asked.work / f"{seed}-{share}-{arm.replace(' ', '-').replace(',', '')}"
        _write(asked.out, {"seed": seed, **run_cell(jobs[seed], share, arm, cell)})


def _write(out: Path, line: dict) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line)[:200], flush=True)


if __name__ == "__main__":
    main()
