"""What one decomposition costs: exact against randomised, and whitening against a forward pass.

    python benchmarks/lowrank/decomposition.py [--small]

Prints a table and writes decomposition.json beside this file. Layers are 4096 × 4096 and
4096 × 11008 (with --small 1024 × 1024 and 1024 × 2752), Gaussian with a spectrum that falls like
1/sqrt(i), inputs of a Gram matrix with a power-law spectrum; ranks an eighth, a quarter and half of
the smaller side. Exact is `compress.lowrank.truncate` (float64); randomised takes 1.2 r directions
and two power iterations on W G Wᵀ in float64, its loss free by tr(W G Wᵀ) − Σσ². One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from compress.lowrank.truncate import loss, projected, size_of_output, truncate

HERE = Path(__file__).parent
OVERSAMPLING, ITERATIONS = 1.2, 2


def layer(out: int, into: int) -> tuple[Tensor, Tensor]:
    """A weight [out, into] and the Gram matrix of its inputs."""
    draw = torch.Generator().manual_seed(out + into)
    weight = torch.randn(out, into, generator=draw)
    weight *= torch.arange(1, into + 1).rsqrt()[torch.randperm(into, generator=draw)]
    scales = torch.arange(1, into + 1, dtype=torch.float32).rsqrt()
    inputs = torch.randn(2 * into, into, generator=draw) * scales
    return weight, inputs.T @ inputs


def randomised(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors by a randomised range finder (Halko et al., arXiv:0909.4061)."""
    w, g = weight.double(), gram.double()
    size = min(int(OVERSAMPLING * rank), min(w.shape))
    start = torch.randn(w.shape[1], size, generator=torch.Generator().manual_seed(0)).double()
    basis = torch.linalg.qr(w @ (g @ start)).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(w @ (g @ (w.T @ basis))).Q
    inner = basis.T @ w
    vectors = torch.linalg.eigh(inner @ g @ inner.T).eigenvectors.flip(1)
    return projected(weight, basis @ vectors, rank)


def seconds(call: Callable[[], object]) -> tuple[float, object]:
    """Processor time of the faster of two calls (others may use the machine), and its result."""
    times, result = [], None
    for _ in range(2):
        start = time.process_time()
        result = call()
        times.append(time.process_time() - start)
    return min(times), result


def measure(out: int, into: int) -> list[dict]:
    """The rows of one layer."""
    weight, gram = layer(out, into)
    whole = size_of_output(weight, gram)
    rows = []
    exact_time, _ = seconds(lambda: truncate(weight, gram, 8))
    for part in (8, 4, 2):
        rank = min(out, into) // part
        best = loss(weight, *truncate(weight, gram, rank), gram)
        spent, factors = seconds(lambda rank=rank: randomised(weight, gram, rank))
        found = loss(weight, *factors, gram)
        rows.append(
            {
                "out": out, "in": into, "rank": rank,
                "exact_s": exact_time, "randomised_s": spent,
                "times_faster": exact_time / spent,
                "excess_error": (found / best) ** 0.5 - 1,
                "relative_error": (best / whole) ** 0.5,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def whitening(out: int, into: int, tokens: int = 2048) -> dict:
    """A Gram matrix and its decomposition, against the layer's own forward pass."""
    weight, gram = layer(out, into)
    x = torch.randn(tokens, into)
    forward, _ = seconds(lambda: x @ weight.T)
    summing, _ = seconds(lambda: x.T @ x)
    decomposing, _ = seconds(lambda: truncate(weight, gram, 8))
    row = {"out": out, "in": into, "tokens": tokens, "forward_s": forward, "gram_s": summing}
    row |= {"decomposition_s": decomposing, "gram_over_forward": summing / forward}
    row["decomposition_over_forward_of_262144_tokens"] = decomposing / (forward * 128)
    print(row, flush=True)
    return row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a quarter of the size, 64 times less")
    side = 1024 if parser.parse_args().small else 4096
    torch.set_num_threads(1)
    shapes = [(side, side), (side, side * 43 // 16)]
    found = {
        "torch": torch.__version__,
        "decomposition": [row for shape in shapes for row in measure(*shape)],
        "whitening": [whitening(*shape) for shape in shapes],
    }
    name = "decomposition-small.json" if side == 1024 else "decomposition.json"
    (HERE / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
