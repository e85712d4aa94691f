"""Spectra of a whole model on one device: seconds of the decompositions and of the metrics.

    python benchmarks/spectra/on_device.py --device cuda --output spectra.json

The 56 matrices of a Llama of 30 million weights, and with --large the 112 of one of a billion
(Gaussian). Matrices of equal shape are decomposed in one call on CUDA. Every round measures each
arm once; the first round warms up and isn't counted. With a GPU the CPU measures the small model
too, and the largest relative difference of eigenvalues and metrics is stated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from compress.spectra.decompose import Wanted, decompose
from compress.spectra.metrics import DEFAULT_METRICS, measure_batch

# blocks, hidden size, width of the feed-forward part
SIZES = {"tiny": (2, 64, 176), "30m": (8, 512, 1408), "1b": (16, 2048, 5632)}


def weights(size: str, device: str) -> list[list[tuple[str, torch.Tensor]]]:
    """The matrices of every block."""
    blocks, hidden, wide = SIZES[size]
    shapes = dict.fromkeys("qkvo", (hidden, hidden))
    shapes |= {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    draw = torch.Generator().manual_seed(0)
    one = [(name, torch.randn(*shape, generator=draw) * 0.02) for name, shape in shapes.items()]
    return [[(f"{name}{b}", (w * (1 + b)).to(device)) for name, w in one] for b in range(blocks)]


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(blocks, device: str):
    """Seconds of decompositions and of metrics; eigenvalues and metrics by name."""
    spent, values, metrics = [0.0, 0.0], {}, {}
    for block in blocks:
        start = clock(device)
        found = decompose(block, Wanted(DEFAULT_METRICS))
        middle = clock(device)
        stack = torch.stack([part.eigenvalues for part in found])
        for name, column in measure_batch(stack, DEFAULT_METRICS).values.items():
            metrics.setdefault(name, []).append(column.cpu())
        spent = [spent[0] + middle - start, spent[1] + clock(device) - middle]
        values |= {name: part.eigenvalues.cpu() for (name, _), part in zip(block, found)}
    return spent, values, {name: torch.cat(columns) for name, columns in metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tiny model: proves the script")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = ["tiny"] if options.quick else ["30m", "1b"] if options.large else ["30m"]
    on_gpu = options.device.startswith("cuda")
    rows, apart = [], {}
    for size in sizes:
        kept = {}
        for device in (options.device, *(["cpu"] if on_gpu and size != "1b" else [])):
            blocks = weights(size, device)
            rounds = [measure(blocks, device) for _ in range(options.rounds + 1)][1:]
            seconds = [statistics.median(r[0][i] for r in rounds) for i in range(2)]
            rows.append(
                {
                    "size": size, "device": device, "matrices": sum(map(len, blocks)),
                    "decompose_seconds": seconds[0], "metrics_seconds": seconds[1],
                }
            )  # fmt: skip
            kept[device] = rounds[0][1:]
            print(rows[-1], flush=True)
        if len(kept) > 1:
            (values, metrics), (cpu_values, cpu_metrics) = kept[options.device], kept["cpu"]
            worst = max(
                float((values[n] - cpu_values[n]).abs().max() / cpu_values[n].max()) for n in values
            )
            apart[size] = {"eigenvalues": worst} | {
                n: float(((metrics[n] - c).abs() / c.abs().clamp(min=1e-12)).nanquantile(0.99))
                for n, c in cpu_metrics.items()
            }
            print("apart, relative (metrics: 99 % of matrices):", apart[size], flush=True)
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    result = {"torch": torch.__version__, "device": name, "threads": options.threads}
    result |= {"rounds": options.rounds, "rows": rows, "apart": apart}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
