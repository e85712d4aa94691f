"""Spectra of a 30M-parameter Llama's matrices: ours against WeightWatcher.analyze(), in turns.

python benchmarks/spectra/against_weightwatcher.py --threads 1 --rounds 5 [--model DIR]

Without --model: a fresh Llama of that size, every other block with a power-law tail. All arms of a
round get the same matrices from memory; a ratio is that of one round, and its median and range over
the rounds are printed. The first round is not counted. Floors: bare calls, in a plain loop.
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
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--blocks", type=int, default=8)
parser.add_argument("--model", type=Path, help="a checkpoint directory with model.safetensors")
parser.add_argument("--floors", action="store_true", help="bare decompositions too")
options = parser.parse_args()
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(options.threads)

import numpy as np  # noqa: E402
import scipy.linalg  # noqa: E402
import torch  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from compress.numerics import gram_eigenvalues  # noqa: E402
from compress.spectra.decompose import Wanted, decompose  # noqa: E402
from compress.spectra.metrics import DEFAULT_METRICS, measure_batch  # noqa: E402

torch.set_num_threads(options.threads)
HIDDEN, MLP = 512, 1376
SHAPES = {
    "q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN),
    "gate": (MLP, HIDDEN), "up": (MLP, HIDDEN), "down": (HIDDEN, MLP),
}  # fmt: skip
BLOCK = len(SHAPES)


def trained() -> dict[str, torch.Tensor]:
    """The matrices of a checkpoint's blocks, block by block."""
    from safetensors.torch import load_file

    tensors = load_file(options.model / "model.safetensors")
    out = {
        name.replace(".", "-"): weight.clone()
        for name, weight in sorted(tensors.items())
        if weight.dim() == 2 and ".layers." in name
    }
    return dict(list(out.items())[: options.blocks * BLOCK])


def fresh() -> dict[str, torch.Tensor]:
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


def ours(matrices, metrics, precise=False):
    """As `measure_spectra` goes: a block at a time, then all spectra of a length together."""
    items, wanted = list(matrices.items()), Wanted(tuple(metrics), precise=precise)
    lots = [items[left : left + BLOCK] for left in range(0, len(items), BLOCK)]
    found = [part.eigenvalues for lot in lots for part in decompose(lot, wanted)]
    return measure_batch(torch.stack(found), metrics).values["alpha_ks"].tolist()


def theirs(watcher, model, threads):
    with threadpool_limits(threads), contextlib.redirect_stdout(io.StringIO()):
        details = watcher.WeightWatcher(model=model).analyze()
    return details.set_index("name")["alpha"].to_dict()


def timed(function):
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return value, time.perf_counter() - wall, time.process_time() - cpu


def floors(matrices):
    arrays = [w.numpy() if w.shape[0] <= w.shape[1] else w.numpy().T for w in matrices.values()]

    def bare(dtype):
        for a in arrays:
            scipy.linalg.eigvalsh((b := a.astype(dtype)) @ b.T, driver="ev", check_finite=False)

    return {
        "bare SVD, float64, scipy's": lambda: [
            scipy.linalg.svd(a.astype(np.float64), compute_uv=False) for a in arrays
        ],
        "bare Gram + eigvalsh, float64, scipy's": lambda: bare(np.float64),
        "bare Gram + eigvalsh, float32, scipy's": lambda: bare(np.float32),
        "gram_eigenvalues, double": lambda: [gram_eigenvalues(w) for w in matrices.values()],
        "gram_eigenvalues, single": lambda: [
            gram_eigenvalues(w, single=True) for w in matrices.values()
        ],
    }


def main() -> None:
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    matrices = fresh() if options.model is None else trained()
    model = torch.nn.Module()
    for name, weight in matrices.items():
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        model.add_module(name, linear)
    arms = {
        "WeightWatcher.analyze()": lambda: theirs(weightwatcher, model, options.threads),
        "ours, alpha_ks": lambda: ours(matrices, ("alpha_ks",)),
        "ours, alpha_ks, double": lambda: ours(matrices, ("alpha_ks",), True),
        "ours, all default metrics": lambda: ours(matrices, DEFAULT_METRICS),
        "ours, all, double": lambda: ours(matrices, DEFAULT_METRICS, True),
    }
    if options.threads > 1:
        arms |= {"WeightWatcher, one BLAS thread": lambda: theirs(weightwatcher, model, 1)}
    if options.floors:
        arms |= floors(matrices)
    names = list(arms)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(options.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            value, wall, cpu = timed(arms[name])
            if turn:
                seconds[name].append((wall, cpu))
            if name == names[0]:
                expected = value
            elif name == "ours, alpha_ks":
                alphas = dict(zip(matrices, value, strict=True))
    base = seconds[names[0]]
    if options.threads > 1:  # whichever of its two ways took less wall time in that round
        base = [min(both) for both in zip(base, seconds["WeightWatcher, one BLAS thread"])]
    print(f"{len(matrices)} matrices, {options.threads} threads, {options.rounds} rounds")
    for name, of in seconds.items():
        row = {"arm": name}
        for i, clock in enumerate(("wall", "cpu")):
            ratios = [b[i] / a[i] for a, b in zip(of, base, strict=True)]
            row[f"{clock}_s"] = round(statistics.median(a[i] for a in of), 3)
            row[f"{clock}_times_faster"] = round(statistics.median(ratios), 2)
            row[f"{clock}_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
        print(json.dumps(row))
    apart = {n: abs(alphas[n] - expected[n]) for n in matrices}
    far = {n: (alphas[n], expected[n]) for n, gap in apart.items() if gap > 1e-4}
    print(f"{len(matrices) - len(far)} of {len(matrices)} alphas agree to 1e-4; apart: {far}")
    print(
        f"largest difference of the others {max(g for n, g in apart.items() if n not in far):.1e}"
    )


if __name__ == "__main__":
    main()
