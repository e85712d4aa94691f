"""Spectra of a 30M-parameter Llama's matrices: ours against WeightWatcher.analyze(), in pairs.

python benchmarks/spectra/against_weightwatcher.py --threads 1 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--blocks", type=int, default=8)
options = parser.parse_args()
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(options.threads)

import torch  # noqa: E402

from compress.spectra.decompose import Wanted, decompose  # noqa: E402
from compress.spectra.metrics import DEFAULT_METRICS, measure_batch  # noqa: E402

torch.set_num_threads(options.threads)
HIDDEN, MLP = 512, 1376
SHAPES = {
    "q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN),
    "gate": (MLP, HIDDEN), "up": (MLP, HIDDEN), "down": (HIDDEN, MLP),
}  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    """Gaussian matrices; in every other block with a power-law tail added."""
    draw = torch.Generator().manual_seed(0)
    out = {}
    for block in range(options.blocks):
        for role, (rows, columns) in SHAPES.items():
            weight = torch.randn(rows, columns, generator=draw) * 0.02
            if block % 2:
                sizes = torch.arange(1, 65) ** -0.7 * 0.1
                left = torch.randn(rows, 64, generator=draw) * sizes
                weight += left @ torch.randn(64, columns, generator=draw)
            out[f"{role}{block}"] = weight
    return out


def ours(matrices, metrics):
    found = decompose(list(matrices.items()), Wanted(metrics))
    stack = torch.stack([part.eigenvalues for part in found])
    return measure_batch(stack, metrics).values["alpha_ks"].tolist()


def theirs(watcher, model):
    with contextlib.redirect_stdout(io.StringIO()):
        details = watcher.WeightWatcher(model=model).analyze()
    return details.set_index("name")["alpha"].to_dict()


def timed(function, *arguments):
    wall, cpu = time.perf_counter(), time.process_time()
    value = function(*arguments)
    return value, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    matrices = weights()
    model = torch.nn.Module()
    for name, weight in matrices.items():
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        model.add_module(name, linear)
    arms = {
        "weightwatcher": lambda: theirs(weightwatcher, model),
        "alpha_ks": lambda: ours(matrices, ("alpha_ks",)),
        "all defaults": lambda: ours(matrices, DEFAULT_METRICS),
    }
    seconds = {name: ([], []) for name in arms}
    for _ in range(options.rounds):
        for name, arm in arms.items():
            value, wall, cpu = timed(arm)
            seconds[name][0].append(wall)
            seconds[name][1].append(cpu)
            if name == "weightwatcher":
                expected = value
            elif name == "alpha_ks":
                alphas = dict(zip(matrices, value))
    apart = {n: (alphas[n], expected[n]) for n in matrices if abs(alphas[n] - expected[n]) > 1e-4}
    median = {n: [statistics.median(v) for v in of] for n, of in seconds.items()}
    base = median["weightwatcher"]
    for name, (wall, cpu) in median.items():
        ratio = {"wall_ratio": base[0] / wall, "cpu_ratio": base[1] / cpu}
        print(
            json.dumps({"arm": name, "threads": options.threads, "wall": wall, "cpu": cpu} | ratio)
        )
    print(f"{len(matrices) - len(apart)} of {len(matrices)} alphas agree to 1e-4; apart: {apart}")


if __name__ == "__main__":
    main()
