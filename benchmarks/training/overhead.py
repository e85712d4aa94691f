"""What masks, SPAM, the spike monitor and this trainer cost, against the stock Trainer with AdamW.

    python benchmarks/training/overhead.py [--rounds 9]     writes overhead.json beside this file

A Llama of 3 million weights (hidden 256, 4 layers, random), batch 4 x 64 tokens, float32, one
thread; AdamW is torch's fused one in all. Every round runs each arm for some steps in turn, in an
order that rotates, so that a drift of the machine's speed falls on all; a ratio is the median over
rounds of the arm's time over that of the stock Trainer, and of this one, in the same round. Time is
that of this thread, so that waiting for a shared core doesn't count. Differences below about 3 %
are noise on a shared machine: the quartiles stand beside each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from compress.training.byte_tokens import byte_tokenizer
from compress.training.data import Positions
from compress.training.objectives import MaskedNextTokenCollator, NextTokenCollator
from compress.training.optimizers import build_optimizer
from compress.training.spikes import SpikeMonitor
from compress.training.trainer import Trainer

LENGTH, BATCH = 64, 4


class Rows:
    """Random rows, as packed text would give."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 259, (512, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.ids[row], "next": 5}


def arguments(place: str, steps: int) -> TrainingArguments:
    return TrainingArguments(
        place, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-3,
        logging_steps=10, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False, train_sampling_strategy="sequential",
        logging_nan_inf_filter=False,
    )  # fmt: skip


def stock(model: LlamaForCausalLM, steps: int, place: str) -> float:
    """Seconds of the stock Trainer."""
    rows = Rows()
    data = [{"input_ids": i, "labels": i} for i in rows.ids] * (steps * BATCH // len(rows) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    trainer = transformers.Trainer(
        model, arguments(place, steps), train_dataset=data, optimizers=(optimizer, None)
    )
    return timed(trainer)


def ours(
    model: LlamaForCausalLM,
    steps: int,
    place: str,
    *,
    optimizer: str = "adamw",
    masked: bool = False,
    watched: bool = False,
) -> float:
    """Seconds of this package's Trainer."""
    tokenizer = byte_tokenizer()
    collate = MaskedNextTokenCollator(tokenizer) if masked else NextTokenCollator(tokenizer)
    trainer = Trainer(
        model,
        arguments(place, steps),
        dataset=Positions(Rows(), steps * BATCH, 0),
        collate=collate,
        make_optimizer=lambda m: build_optimizer(optimizer, m, 1e-3),
        observers=(SpikeMonitor(),) if watched else (),
    )
    return timed(trainer)


def timed(trainer: transformers.Trainer) -> float:
    trainer.remove_callback(transformers.PrinterCallback)
    start = time.thread_time()
    trainer.train()
    return time.thread_time() - start


STOCK, OURS = "stock Trainer, AdamW", "this trainer, AdamW"
ARMS: dict[str, Any] = {
    STOCK: stock,
    OURS: ours,
    "MEAP, AdamW": partial(ours, masked=True),
    "AdamW, spikes watched": partial(ours, watched=True),
    "SPAM": partial(ours, optimizer="spam"),
    "Stable-SPAM": partial(ours, optimizer="stable-spam"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(-1, options.rounds):  # the first warms up and isn't counted
            names = list(ARMS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                spent = ARMS[name](model, options.steps, place)
                if turn >= 0:
                    seconds[name].append(spent / options.steps)
    found = {}
    for name, own in seconds.items():
        found[name] = {"milliseconds_a_step": round(1e3 * statistics.median(own), 2)}
        for label, base in (("stock", STOCK), ("this_trainer", OURS)):
            ratios = sorted(a / b for a, b in zip(own, seconds[base]))
            quarter = len(ratios) // 4
            found[name][f"ratio_to_{label}"] = round(statistics.median(ratios), 3)
            ends = [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)]
            found[name][f"quartiles_to_{label}"] = ends
        print(f"{name:<24}{found[name]}", flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {
        "parameters": model.num_parameters(), "rounds": options.rounds, "steps": options.steps,
        "threads": 1, "machine": platform.machine(), "versions": versions, "arms": found,
    }  # fmt: skip
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
