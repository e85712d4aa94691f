"""Low rank from scratch on spoken digits: error rates by arm, seed and held-out speaker.

    python benchmarks/lowrank/speech.py [--seeds 3] [--arms full,…] [--part 0/2]

Reads $COMPRESS_ASSETS/speech/recordings. A line a run goes to speech.jsonl beside this file; runs
that have one are not done again, and a killed run goes on from its last checkpoint. All arms of a
seed share W0, the order of the recordings and the held-out speaker, so they are compared in pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

from digits import SPEAKERS, make_sets

import compress  # noqa: F401
from compress.checkpoints.caches import cache_directory
from compress.lowrank.scratch import train_from_scratch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "speech.jsonl"
TRAIN, TEST = 1600, 200
ARMS: dict[str, dict] = {  # in the order in which they are run, all seeds of one first
    "full": {"dense": True},
    "all 25%": {"rank_ratio": 0.25},
    "attention 12%": {"include": ["attention"], "rank_ratio": 0.12},
    "ffn 12%": {"include": ["ffn"], "rank_ratio": 0.12},
    "all 25% gaussian": {"rank_ratio": 0.25, "factor_init": "gaussian"},
    "all 25% linear-up": {"rank_ratio": 0.25, "rank_schedule": "linear-up"},
    "all 25% linear-down": {"rank_ratio": 0.25, "rank_schedule": "linear-down"},
    "ffn 50%": {"include": ["ffn"], "rank_ratio": 0.5},
    "all 12%": {"rank_ratio": 0.12},
    "all 12% gaussian": {"rank_ratio": 0.12, "factor_init": "gaussian"},
    "attention 12% gaussian": {
        "include": ["attention"],
        "rank_ratio": 0.12,
        "factor_init": "gaussian",
    },
    "all 12% svd-scaled": {"rank_ratio": 0.12, "factor_init": "svd-scaled"},
    "all 12% orthogonal": {"rank_ratio": 0.12, "factor_init": "orthogonal"},
    "all 12% frobenius": {"rank_ratio": 0.12, "factor_decay": "frobenius"},
}


def done(path: Path) -> set[tuple[int, str]]:
    """Return the (seed, arm) that have a line."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {(row["seed"], row["arm"]) for row in map(json.loads, lines)}


def run(seed: int, arm: str, steps: int, work: Path, recordings: Path) -> dict:
    """Train one arm on one seed and score it on the held-out speaker."""
    sets = work / f"seed-{seed}"
    make_sets(recordings, sets, seed, TRAIN, TEST)
    out = work / "runs" / f"{seed} {arm}".replace(" ", "-").replace("%", "")
    began, spent = time.perf_counter(), time.process_time()
    tests = [str(sets / name) for name in ("test12", "test3")]
    receipt = train_from_scratch(
        None,
        out,
        preset="conformer-tiny",
        tokenizer="word",
        data=str(sets / "train"),
        wer=tests,
        steps=steps,
        batch_size=16,
        lr=1e-3,
        seed=seed,
        spikes=False,
        device="cpu",
        save_every=max(steps // 6, 1),
        overwrite=True,
        resume=out.with_name(f"{out.name}.partial").is_dir(),
        **ARMS[arm],
    ).as_dict()
    row = {
        "seed": seed,
        "arm": arm,
        "speaker": SPEAKERS[seed % len(SPEAKERS)],
        "steps": steps,
        "parameters": receipt["after"]["parameters"],
        "loss": receipt["training"]["loss"]["value"],
        **{
            f"{unit} {Path(spec).name}": [entry["value"], entry["stderr"]]
            for unit in ("wer", "cer")
            for spec, entry in receipt["after"][unit].items()
        },
        "cpu_seconds": round(time.process_time() - spent, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }
    shutil.rmtree(out)
    return row


def main() -> None:
    """Do the runs that have no line yet."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--arms", default=",".join(ARMS))
    ask.add_argument("--steps", type=int, default=400)
    ask.add_argument("--part", default="0/1", help="i/n: every n-th run, from the i-th")
    ask.add_argument("--work", type=Path, default=cache_directory() / "speech-digits")
    ask.add_argument("--results", type=Path, default=RESULTS)
    asked = ask.parse_args()
    recordings = Path(os.environ["COMPRESS_ASSETS"]) / "speech" / "recordings"
    part, parts = map(int, asked.part.split("/"))
    cells = [(seed, arm) for arm in asked.arms.split(",") for seed in range(asked.seeds)]
    for seed, arm in cells[part::parts]:
        if (seed, arm) in done(asked.results):
            continue
        row = run(seed, arm, asked.steps, asked.work, recordings)
        with asked.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
