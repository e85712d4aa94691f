"""Which solver is worth its time: error of a layer's output and seconds, for every method.

    python benchmarks/prune/solvers.py          writes benchmarks/prune/solvers.json and .md

Layers: real inputs of calib_data/tiny-llama (and, with COMPRESS_ASSETS, of stories260k), and drawn
ones with correlated inputs of decaying variance, 512 x 512 and 2048 x 2048. Statistics come from
one half of the rows, the error ||X (W - W')ᵀ||² / ||X Wᵀ||² from the other. Three seeds draw the
calibration text or the layer; the error stated is that of their mean. 2048 x 2048 runs once, at
0.7, without the refits that would take minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import compress
from compress.calibration.statistics import ColumnMoments, ColumnNorms, Gram
from compress.checkpoints.source import open_source
from compress.data.packing import prepare_calibration
from compress.sparsity.methods import METHODS, Layer, prune_layer

ROOT = Path(__file__).resolve().parents[2]
SPARSITIES = (0.5, 0.6, 0.7, 0.8)
REFITS = ("none", "exact", "cg")
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


class Case(NamedTuple):
    """A layer to prune: its weight, rows to calibrate on and rows to judge by."""

    group: str
    weight: Tensor
    seen: Tensor
    judged: Tensor


def drawn(width: int, seed: int) -> Case:
    """A square layer whose inputs are correlated, of standard deviations from 1 to 0.03."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=g) / width**0.5
    mix *= torch.logspace(0, -1.5, width)[:, None]
    weight = torch.randn(width, width, generator=g)
    rows = torch.randn(8 * width, width, generator=g) @ mix
    return Case(f"drawn {width} x {width}", weight, rows[: 4 * width], rows[4 * width :])


def of_model(group: str, path: Path, text: str, seed: int) -> Iterator[Case]:
    """Four layers of the middle block on windows of a text."""
    source = open_source(path)
    tokenizer = source.tokenizer()
    batches, _ = prepare_calibration(
        text, tokenizer, samples=48, seqlen=128, seed=seed, batch_size=1
    )
    model = compress.load(path, dtype=torch.float32)
    block = model.config.num_hidden_layers // 2
    found: dict[str, list[Tensor]] = {}
    for name in MODULES:
        module = model.get_submodule(f"model.layers.{block}.{name}")
        keep = found.setdefault(name, [])
        module.register_forward_pre_hook(lambda _, args, keep=keep: keep.append(args[0][0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for name, inputs in found.items():
        weight = model.get_submodule(f"model.layers.{block}.{name}").weight.detach()
        half = len(inputs) // 2
        yield Case(group, weight, torch.cat(inputs[:half]), torch.cat(inputs[half:]))


def collected(rows: Tensor) -> dict[Any, Any]:
    """The statistics that methods may ask for."""
    found = {}
    for kind in (ColumnNorms, ColumnMoments, Gram):
        made = kind("layer")
        made.add(rows)
        found[kind] = made.value()
    return found


def run(case: Case, sparsity: float, method: str, refit: str, known: dict[Any, Any]) -> list[float]:
    """The relative error on the judged rows, and seconds."""
    count = round(sparsity * case.weight.numel())
    layer = Layer("layer", case.weight, count, None, 0.01, 128)
    start = time.process_time()
    pruned = prune_layer(layer, method, refit, known)
    seconds = time.process_time() - start
    weight = pruned.weight if pruned.weight is not None else case.weight * pruned.mask
    off = (case.judged @ (weight - case.weight).T).double().square().sum()
    size = (case.judged @ case.weight.T).double().square().sum()
    return [float(off / size), seconds]


def measure(cases: dict[int, list[Case]], large: Case) -> list[dict[str, Any]]:
    """A row per group, sparsity, method and refit."""
    found: dict[tuple[str, float, str, str], dict[int, list[list[float]]]] = {}
    for seed, layers in cases.items():
        for case in layers:
            known = collected(case.seen)
            for sparsity in SPARSITIES:
                for method in METHODS:
                    for refit in REFITS:
                        key = (case.group, sparsity, method, refit)
                        result = run(case, sparsity, method, refit, known)
                        found.setdefault(key, {}).setdefault(seed, []).append(result)
    known = collected(large.seen)
    for method in METHODS:
        for refit in ("none", "cg"):
            key = (large.group, 0.7, method, refit)
            found[key] = {0: [run(large, 0.7, method, refit, known)]}
    return [summed(key, seeds) for key, seeds in found.items()]


def summed(key: tuple[str, float, str, str], seeds: dict[int, list[list[float]]]) -> dict[str, Any]:
    """Mean over a group's layers for each seed, then mean and standard error over seeds."""
    errors = [statistics.fmean(e for e, _ in layers) for layers in seeds.values()]
    seconds = [statistics.fmean(s for _, s in layers) for layers in seeds.values()]
    many = len(errors) > 1
    return {
        "layers": key[0],
        "sparsity": key[1],
        "method": key[2],
        "refit": key[3],
        "error": statistics.fmean(errors),
        "stderr": statistics.stdev(errors) / len(errors) ** 0.5 if many else None,
        "seconds": statistics.fmean(seconds),
        "seeds": len(errors),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table per group of layers, errors by sparsity, CPU seconds of a layer at 0.7."""
    parts = []
    for group in dict.fromkeys(row["layers"] for row in rows):
        own = [row for row in rows if row["layers"] == group]
        shown = sorted({row["sparsity"] for row in own})
        parts.append(f"\n### {group}, {own[0]['seeds']} seed{'s' * (own[0]['seeds'] > 1)}\n")
        parts.append("| method | refit | " + " | ".join(map(str, shown)) + " | s at 0.7 |")
        parts.append("|---" * (len(shown) + 3) + "|")
        for method, refit in dict.fromkeys((row["method"], row["refit"]) for row in own):
            line = {r["sparsity"]: r for r in own if (r["method"], r["refit"]) == (method, refit)}
            cells = [
                f"{line[s]['error']:.4f}"
                + (f" ± {line[s]['stderr']:.4f}" if line[s]["stderr"] is not None else "")
                for s in shown
            ]
            parts.append(
                f"| {method} | {refit} | " + " | ".join(cells) + f" | {line[0.7]['seconds']:.3f} |"
            )
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--large", type=int, default=2048, help="width of the large layer")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    assets = os.environ.get("COMPRESS_ASSETS")
    cases: dict[int, list[Case]] = {}
    for seed in range(3):
        cases[seed] = [
            drawn(512, seed),
            *of_model("tiny-llama", ROOT / "calib_data" / "tiny-llama", "demo", seed),
        ]
        if assets:
            path = Path(assets) / "models" / "stories260k"
            cases[seed] += of_model("stories260k", path, "demo", seed)
    rows = measure(cases, drawn(given.large, 0))
    about = {
        "command": "python benchmarks/prune/solvers.py",
        "torch": torch.__version__,
        "processor": platform.machine(),
        "threads": 1,
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    text = json.dumps({"about": about, "rows": rows}, indent=1)
    (given.out / "solvers.json").write_text(text + "\n", encoding="utf-8")
    (given.out / "solvers.md").write_text(
        "# Error of a layer's output, relative, and CPU seconds\n\n"
        f"`{about['command']}`, one thread, torch {about['torch']}, "
        f"{about['cpu_seconds']} CPU seconds in all. Mean ± standard error over the seeds; the "
        "seconds are without the statistics of the inputs.\n" + table(rows),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
