"""How much faster is a network with fewer multiply-adds, and what does rounding widths change?

Each network is built from its config with random weights (time doesn't depend on them), cut to a
share of its multiply-adds by L1 with isomorphic ranking, once with widths as they fall and once
rounded to multiples of 8 and 16 within the same budget, and timed against the dense one in turns
(on the CPU with one thread by that thread's own time, so that others' work doesn't count).
A line per network and cut is appended to OUT; networks that are there are left out, so a killed
run goes on.

    python benchmarks/channels/speed.py speed.jsonl [--networks resnet-50,vit-s] [--device cpu]
    python benchmarks/channels/speed.py speed.jsonl --table
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from compress.channels.budget import bounds, keep_for_budget, kept
from compress.channels.costs import counted_macs, measure_costs
from compress.channels.criteria import weight_scores
from compress.channels.cutting import cut
from compress.channels.groups import find_groups
from compress.channels.measuring import time_networks
from compress.reports import formats as fmt

NETWORKS: dict[str, tuple[Any, Any, int]] = {
    "resnet-18": (
        ResNetForImageClassification,
        ResNetConfig(
            hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
            num_labels=1000,
        ),
        224,
    ),
    "resnet-50": (ResNetForImageClassification, ResNetConfig(num_labels=1000), 224),
    "regnet-y-800mf": (
        RegNetForImageClassification,
        RegNetConfig(
            hidden_sizes=[64, 128, 320, 784], depths=[1, 3, 8, 2], groups_width=16, num_labels=1000
        ),
        224,
    ),
    "mobilenet-v2": (MobileNetV2ForImageClassification, MobileNetV2Config(num_labels=1000), 224),
    "convnext-t": (ConvNextForImageClassification, ConvNextConfig(num_labels=1000), 224),
    "vit-s": (
        ViTForImageClassification,
        ViTConfig(
            hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000
        ),
        224,
    ),
}  # fmt: skip
SHARES = (0.75, 0.5, 0.25)
ROUND = (1, 8, 16)


def networks_of(name: str, device: str) -> tuple[list[Any], list[dict[str, Any]], torch.Tensor]:
    """Return the dense network and its cuts, what each is, and an example."""
    kind, config, side = NETWORKS[name]
    torch.manual_seed(0)
    dense = kind(config).eval().to(device)
    example = torch.randn(1, 3, side, side, device=device)
    groups = find_groups(dense, example)
    costs = measure_costs(dense, example, groups)
    scores = weight_scores(dense, groups, "l1")
    whole = float(costs.macs_of(costs.widths))
    models, about = [dense], [{"keep": 1.0, "round_to": 0}]
    for share in SHARES:
        for step in ROUND:
            masks = keep_for_budget(
                scores, groups, costs.macs_of, share * whole, scope="isomorphic",
                limits=bounds(groups, round_to=step), fill=True,
            )  # fmt: skip
            network = copy.deepcopy(dense)
            cut(network, groups, masks)
            counts = kept(masks).tolist()
            channels = [
                n * g.writers[0].span for n, g in zip(counts, groups, strict=True)
                if g.kind in ("channels", "mlp")
            ]  # fmt: skip
            odd = sum(width % 8 != 0 for width in channels) / max(1, len(channels))
            models.append(network)
            about.append({"keep": share, "round_to": step, "odd_widths": odd})
    for model, entry in zip(models, about, strict=True):
        entry["macs"] = counted_macs(model, example)
    return models, about, example


def run(name: str, out: Path, device: str, batches: tuple[int, ...], rounds: int) -> None:
    """Time one network and append its lines."""
    models, about, example = networks_of(name, device)
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    found = time_networks(models, example, batches=batches, rounds=rounds, clock=clock)
    machine = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    lines = []
    for entry, latency in zip(about, found, strict=True):
        line = {"network": name, "device": machine, "threads": torch.get_num_threads(), **entry}
        line["macs_ratio"] = about[0]["macs"] / entry["macs"]
        for size, timing in latency.timings.items():
            line[f"batch_{size}_s"], line[f"batch_{size}_iqr_s"] = timing
            line[f"batch_{size}_speedup"] = found[0].timings[size].median / timing.median
        lines.append(json.dumps(line))
    with out.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def table(out: Path) -> str:
    """The lines as a table: a row per network and share, a column per rounding."""
    lines = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    sizes = sorted(int(key.split("_")[1]) for key in lines[0] if key.endswith("_speedup"))
    rows = []
    for name in dict.fromkeys(line["network"] for line in lines):
        for share in SHARES:
            cells = [name, f"{share:.2f}"]
            for step in ROUND:
                line = next(
                    x for x in lines
                    if (x["network"], x["keep"], x["round_to"]) == (name, share, step)
                )  # fmt: skip
                cells.append(f"{line['macs_ratio']:.2f}")
                cells += [f"{line[f'batch_{size}_speedup']:.2f}" for size in sizes]
            rows.append(cells)
    head = [f"{step if step > 1 else 'none'}: {what}" for step in ROUND
            for what in ("MACs", *(f"b{size}" for size in sizes))]  # fmt: skip
    text = "| network | keep | " + " | ".join(head) + " |\n"
    text += "|---|---|" + "---|" * len(head) + "\n"
    text += "\n".join("| " + " | ".join(row) + " |" for row in rows)
    shares = [
        line[f"batch_{size}_iqr_s"] / line[f"batch_{size}_s"] for line in lines for size in sizes
    ]
    return (
        text + f"\n\nquartile distance over median, median of all: {statistics.median(shares):.2f}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        print(fmt.fit_encoding(table(asked.out)))
        return
    done = set()
    if asked.out.is_file():
        done = {json.loads(text)["network"] for text in asked.out.read_text().splitlines()}
    batches = tuple(int(size) for size in asked.batches.split(","))
    for name in asked.networks.split(","):
        if name not in done:
            run(name, asked.out, asked.device, batches, asked.rounds)
            print(name, "done", flush=True)


if __name__ == "__main__":
    main()
