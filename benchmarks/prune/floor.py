"""The walk against its floor: pruning time over the time of one dense forward pass.

    python benchmarks/prune/floor.py            writes benchmarks/prune/floor.json
    python benchmarks/prune/floor.py --device cuda --size 1b --dtype bfloat16 --output 1b.json

A Llama of 30 million weights (hidden 512, 8 layers, random weights), or one of a billion, in
float32 or another dtype on the CPU or a GPU; 64 x 512 random tokens. A calibrated sequential pruner
must run every block twice, to collect and with the pruned weights: the floor is 2 dense passes.
SparseGPT adds a Gram matrix and a solve a matrix. Each round times the dense pass and every method
in turn, so that a drift of the machine's speed falls on all of them; medians over the rounds are
reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.sparsity.pruner import STREAM, Pruner, Target

# hidden size, layers, heads, width of the feed-forward part
SIZES = {"tiny": (64, 2, 4, 176), "30m": (512, 8, 8, 1408), "1b": (2048, 16, 32, 5632)}


def make_model(place: Path, size: str, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    hidden, layers, heads, wide = SIZES[size]
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=wide,
        max_position_embeddings=512,
    )
    with torch.device(device):  # drawing a billion numbers takes a CPU long
        model = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(place)


def clock(device: str) -> float:
    """Seconds now, once the device is done with what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def dense_pass(model: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of one forward pass of the blocks over all batches (no head: the walk has none)."""
    device = str(model.device)
    start = clock(device)
    with torch.no_grad():
        for batch in batches:
            model.model(**{k: v.to(device) for k, v in batch.items()}, use_cache=False)
    return clock(device) - start


def prune(source, batches, method: str, scratch: Path, device: str) -> tuple[float, float]:
    """Seconds of the whole walk, reading and writing included, and the passes it made."""
    matrices = read_anatomy(skeleton(source)).matrices
    targets = {m.name: Target(m.numel // 2) for m in matrices}
    writer = open_writer(scratch / method, source)
    start = clock(device)
    report = walk(
        source,
        [] if method == "magnitude" else batches,
        Pruner(targets, method),
        writer,
        device=device,
        streams=(STREAM,),
    )
    return clock(device) - start, report.passes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="30m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quick", action="store_true", help="a tiny model: proves the script")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("floor.json"))
    options = parser.parse_args()
    if options.quick:
        options.size, options.samples, options.seqlen, options.rounds = "tiny", 4, 32, 1
    device = options.device
    torch.set_num_threads(options.threads)
    ids = torch.randint(0, 8192, (options.samples, options.seqlen))
    batches = [{"input_ids": part} for part in ids.split(options.batch_size)]
    times: dict[str, list[float]] = {}
    passes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "model"
        make_model(place, options.size, getattr(torch, options.dtype), device)
        source = open_source(place)
        model = source.load().to(device)
        dense_pass(model, batches[:1])
        for number in range(options.rounds):
            times.setdefault("dense pass", []).append(dense_pass(model, batches))
            for method in ("magnitude", "wanda", "sparsegpt"):
                seconds, made = prune(source, batches, method, Path(scratch) / str(number), device)
                times.setdefault(method, []).append(seconds)
                passes[method] = made
                shutil.rmtree(Path(scratch) / str(number))
    dense = times["dense pass"]
    result = {
        "machine": {
            "processor": platform.processor(),
            "threads": options.threads,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        },
        "size": options.size,
        "dtype": options.dtype,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "tokens": options.samples * options.seqlen,
        "rows": [
            {
                "what": what,
                "seconds_median": round(statistics.median(values), 4),
                "dense_passes": round(statistics.median(v / d for v, d in zip(values, dense)), 2),
                "block_passes": round(passes.get(what, 1.0), 2),
            }
            for what, values in times.items()
        ],
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in result["rows"]:
        print(f"{row['what']:<12} {row['seconds_median']:>8.2f} s   {row['dense_passes']:>6.2f} x")


if __name__ == "__main__":
    main()
