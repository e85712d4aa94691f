"""SPAM beside Adam in fine-tuning: GSM8K after the grid's pre-training.

    python benchmarks/training/fine_tune.py --place DIR [--only spam]

DIR is the grid's. Each run goes on from the checkpoint of `clean/adam+clip` of its seed: 100 steps
of 8 samples, scored by the loss on answers of the test set. An optimizer's learning rate is the
better of two on the seed of the sweeps, which no table shows. A finished run is a line in
fine_tune.jsonl; the script goes on where it stopped. SPAM's reset is brought to the length of the
run, as in the grid.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from arms import ADAM, FREE, SEEDS, SPAM, SWEEP_SEED

LINES = Path(__file__).with_suffix(".jsonl")
STEPS, RATES = 100, (5e-4, 1e-3)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": FREE,
    "adam+clip": ADAM,
    "spam": {**SPAM, "reset_every": 25, "reset_warmup": 8, "settle": 3},
}


def base(place: Path, seed: int) -> Path:
    """The checkpoint that a seed goes on from."""
    arm = "sweep-adam_lr=0.002" if seed == SWEEP_SEED else "clean-adam+clip"
    return place / "runs" / f"{arm}_seed={seed}"


def perform(place: Path, optimizer: str, seed: int, lr: float) -> dict[str, Any]:
    """One run."""
    import torch

    import compress

    torch.set_num_threads(1)
    text = place / "text"
    result = compress.train_spam(
        str(base(place, seed)), place / "runs" / f"fine-tune-by-{optimizer}",
        data=[str(text / "gsm8k.jsonl")], sft="question:answer",
        valid=[str(text / "gsm8k.held.jsonl")], steps=STEPS, batch_size=8, seqlen=256, lr=lr,
        spikes=False, seed=seed, device="cpu", eval_every=STEPS, save_every=STEPS, overwrite=True,
        **OPTIMIZERS[optimizer],
    )  # fmt: skip
    training = result.as_dict()["training"]
    return {
        "optimizer": optimizer, "seed": seed, "lr": lr,
        "answer_loss": round(training["valid"]["valid"]["value"], 5),
        "train_loss": round(training["loss"]["value"], 5),
    }  # fmt: skip


def read() -> list[dict[str, Any]]:
    """The finished runs."""
    if not LINES.exists():
        return []
    return [json.loads(text) for text in LINES.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--place", type=Path, required=True, help="of the grid")
    parser.add_argument("--only", choices=OPTIMIZERS, help="one optimizer")
    options = parser.parse_args()
    place = options.place

    def need(optimizer: str, seed: int, lr: float) -> None:
        if any((x["optimizer"], x["seed"], x["lr"]) == (optimizer, seed, lr) for x in read()):
            return
        line = perform(place, optimizer, seed, lr)
        with LINES.open("a", encoding="utf-8") as file:
            print(json.dumps(line), file=file)
        print(line, flush=True)

    for optimizer in [options.only] if options.only else OPTIMIZERS:
        for lr in RATES:
            need(optimizer, SWEEP_SEED, lr)
        tried = {x["lr"]: x["answer_loss"] for x in read()
                 if (x["optimizer"], x["seed"]) == (optimizer, SWEEP_SEED)}  # fmt: skip
        best = min(tried, key=lambda lr: tried[lr] if math.isfinite(tried[lr]) else math.inf)
        for seed in SEEDS:
            need(optimizer, seed, best)


if __name__ == "__main__":
    main()
