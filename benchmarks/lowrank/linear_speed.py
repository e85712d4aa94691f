"""Factored against dense linear layers, by rank and by the number of tokens.

    python benchmarks/lowrank/linear_speed.py [--side 1024] [--dtype float32]

Prints a table and writes linear_speed.json beside this file. Calls are interleaved (dense,
factored, dense, …); medians and quartiles of the ratio of each pair. `to_bound` is the time of the
factored layer over the dense layer's time multiplied by the share of operations kept: 1 where all
that is saved in operations is saved in time. One thread, whose processor time is taken, so that a
busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from compress.checkpoints.edits.lowrank import LowRank

HERE = Path(__file__).parent
TOKENS = (1, 16, 64, 256, 512, 1024)
SHARES = (0.125, 0.25, 0.375, 0.5)
_SECONDS = 0.5  # of timing for each cell


def pair(dense: nn.Module, thin: nn.Module, x: torch.Tensor) -> list[tuple[float, float]]:
    """Seconds of both layers, in turn."""
    times = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < 6:
        own = []
        for module in (dense, thin):
            start = time.thread_time()
            module(x)
            own.append(time.thread_time() - start)
        times.append((own[0], own[1]))
    return times[1:]


@torch.inference_mode()
def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    side, dtype = given.side, getattr(torch, given.dtype)
    rows = []
    for out, into in ((side, side), (4 * side, side)):
        dense = nn.Linear(into, out, bias=False, dtype=dtype)
        for share in SHARES:
            rank = int(share * min(out, into))
            thin = LowRank(
                nn.Linear(into, rank, bias=False, dtype=dtype),
                nn.Linear(rank, out, bias=False, dtype=dtype),
            )
            kept = rank * (out + into) / (out * into)
            for tokens in TOKENS:
                times = pair(dense, thin, torch.randn(tokens, into, dtype=dtype))
                ratios = sorted(b / a for a, b in times)
                quarter = len(ratios) // 4
                row = {
                    "out": out, "in": into, "rank": rank, "kept": round(kept, 4), "tokens": tokens,
                    "dense_us": 1e6 * statistics.median(a for a, _ in times),
                    "factored_us": 1e6 * statistics.median(b for _, b in times),
                    "factored_over_dense": statistics.median(ratios),
                    "quartiles": [ratios[quarter], ratios[-quarter - 1]],
                    "to_bound": statistics.median(ratios) / kept,
                }  # fmt: skip
                rows.append(row)
                print(row, flush=True)
    text = {"torch": torch.__version__, "dtype": given.dtype, "rows": rows}
    (HERE / "linear_speed.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
