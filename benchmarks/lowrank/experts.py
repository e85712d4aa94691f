"""Experts as factors: what is kept, with and without a factor that gate and up share.

    python benchmarks/lowrank/experts.py

The shipped Qwen2-MoE, three draws of its calibration text, perplexity of its test text with the
dense model's beside; a table for README.md goes to experts.md beside this file.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import compress
from compress.data.registry import shipped

SEEDS, KEEPS = (0, 1, 2), (0.9, 0.8, 0.7)
ARMS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "all layers, `--share gate-up`": {"share": ("gate-up",)},
    "experts alone, `--share gate-up`": {"include": ("ffn",), "share": ("gate-up",)},
    "attention alone": {"include": ("attention",)},
}


def main() -> None:
    """Factor, score, write the table."""
    torch.set_num_threads(1)
    demo = shipped("demo/test.jsonl").parent
    lines = [
        "| chosen | share kept of them | of the model | perplexity | dense |",
        "|---" * 5 + "|",
    ]
    with tempfile.TemporaryDirectory() as place:
        for name, options in ARMS.items():
            for keep in KEEPS:
                found = [
                    compress.lowrank_svd(
                        shipped("tiny-moe"), Path(place) / "out", overwrite=True, keep=keep,
                        calib=str(demo / "calibration.jsonl"), samples=64, seqlen=128, seed=seed,
                        ppl=[str(demo / "test.jsonl")], **options,
                    ).receipt.as_dict()
                    for seed in SEEDS
                ]  # fmt: skip
                scores = [next(iter(f["after"]["perplexity"].values()))["value"] for f in found]
                before = next(iter(found[0]["before"]["perplexity"].values()))["value"]
                kept = found[0]["lowrank"]["kept_model"]
                lines.append(
                    f"| {name} | {keep:g} | {kept:.2f} | {statistics.fmean(scores):.2f} ± "
                    f"{statistics.stdev(scores):.2f} | {before:.2f} |"
                )
                print(lines[-1], flush=True)
    (Path(__file__).parent / "experts.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
