"""What 2:4 zeros give on a GPU: prefill and decoding, dense and in torch's semi-structured form.

    python benchmarks/prune/semi_structured.py --output semi_structured.json

A Llama of a billion weights (random, bfloat16), pruned 2:4 by magnitude. Both forms are timed in
turn in every round, by the same loops as `compress eval --speed`; medians and their ratio. Without
a GPU nothing can be converted: --quick then only proves the script, on a tiny model and the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from floor import SIZES, make_model

import compress
from compress.checkpoints.semi_structured import to_semi_structured
from compress.evaluation.speed import measure_speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,16", help="rows at once")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.quick:
        options.size, options.rounds, options.batches = "tiny", 1, "1"
    on_gpu = options.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        make_model(place / "model", options.size, torch.bfloat16, options.device)
        given = {"method": "magnitude", "pattern": "2:4", "device": options.device}
        compress.alpha_prune(place / "model", place / "pruned", **given)
        arms = {"dense": compress.load(place / "pruned").to(options.device)}
        converted = "no GPU: not converted"
        if on_gpu:
            arms["2:4"] = compress.load(place / "pruned").to(options.device)
            converted = str(to_semi_structured(arms["2:4"]))
        print(converted, flush=True)
        rows = []
        for batch in map(int, options.batches.split(",")):
            rows += timed(arms, batch, options.rounds, 16 if options.quick else 384)
            print(rows[-1], flush=True)
    name = torch.cuda.get_device_name() if on_gpu else options.device
    result = {"torch": torch.__version__, "device": name, "size": options.size}
    result |= {"rounds": options.rounds, "converted": converted, "rows": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def timed(arms, batch: int, rounds: int, prompt: int) -> list[dict]:
    """Median tokens a second of each arm, and the median of the ratios of a round."""
    found = {name: ([], []) for name in arms}
    for number in range(rounds + 1):  # the first warms up and isn't counted
        for name, model in arms.items():
            speed = measure_speed(model, prompt=prompt, new=prompt // 6, batch_size=batch)
            if number:
                found[name][0].append(speed.prefill_tokens_per_s)
                found[name][1].append(speed.decode_tokens_per_s)
    rows = []
    for name, pace in found.items():
        row = {"arm": name, "batch": batch}
        for kind, own, base in zip(("prefill", "decode"), pace, found["dense"]):
            row[f"{kind}_tokens_per_s"] = statistics.median(own)
            row[f"{kind}_ratio"] = statistics.median(a / b for a, b in zip(own, base))
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
