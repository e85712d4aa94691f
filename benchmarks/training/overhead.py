"""What masks, SPAM, the spike monitor and this trainer cost, against the stock Trainer with AdamW.

    python benchmarks/training/overhead.py [--device cuda] [--rounds 9] [--output FILE]
    python benchmarks/training/overhead.py --quick      a tiny model, to see that it runs

Writes overhead.json, or overhead-DEVICE.json, beside this file.

On a CPU a Llama of 3 million weights (hidden 256, 4 layers, random), batch 4 x 64 tokens, on a GPU
one of 91 million and 16 x 512; float32, one thread; AdamW is torch's fused one in all. Every round
runs each arm for some steps in turn, in an order that rotates, so that a drift of the machine's
speed falls on all; a ratio is the median over rounds of the arm's time over that of the stock
Trainer, and of this one, in the same round. Timed from the second step on. Time on a CPU is that of
this thread, so that waiting for a shared core doesn't count; on a GPU that of the clock, up to
the last kernel. Differences below about 3 % are noise on a shared machine: the quartiles stand
beside each.
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
from typing import Any, NamedTuple

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from compress.training.byte_tokens import byte_tokenizer
from compress.training.data import Positions
from compress.training.objectives import MaskedNextTokenCollator, NextTokenCollator
from compress.training.optimizers import build_optimizer
from compress.training.spikes import SpikeMonitor
from compress.training.trainer import Trainer


class Size(NamedTuple):
    """A model and its batch."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    batch: int
    length: int


SIZES = {
    "quick": Size(32, 88, 2, 2, 2, 16),
    "cpu": Size(256, 688, 4, 4, 4, 64),
    "cuda": Size(768, 2048, 12, 12, 16, 512),
}


class Setting(NamedTuple):
    """What all arms share."""

    model: LlamaForCausalLM
    size: Size
    device: str
    steps: int
    place: str


class Rows:
    """Random rows, as packed text would give."""

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 259, (512, length), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.ids[row], "next": 5}


def arguments(shared: Setting) -> TrainingArguments:
    return TrainingArguments(
        shared.place, max_steps=shared.steps, per_device_train_batch_size=shared.size.batch,
        learning_rate=1e-3, logging_steps=10, save_strategy="no", report_to=[], disable_tqdm=True,
        use_cpu=shared.device == "cpu", remove_unused_columns=False,
        train_sampling_strategy="sequential", logging_nan_inf_filter=False,
    )  # fmt: skip


def stock(shared: Setting) -> float:
    """Seconds of the stock Trainer."""
    rows, model = Rows(shared.size.length), shared.model
    times = shared.steps * shared.size.batch // len(rows) + 1
    data = [{"input_ids": i, "labels": i} for i in rows.ids] * times
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    trainer = transformers.Trainer(
        model, arguments(shared), train_dataset=data, optimizers=(optimizer, None)
    )
    return timed(trainer, shared.device)


def ours(
    shared: Setting, *, optimizer: str = "adamw", masked: bool = False, watched: bool = False
) -> float:
    """Seconds of this package's Trainer."""
    tokenizer = byte_tokenizer()
    collate = MaskedNextTokenCollator(tokenizer) if masked else NextTokenCollator(tokenizer)
    trainer = Trainer(
        shared.model,
        arguments(shared),
        dataset=Positions(Rows(shared.size.length), shared.steps * shared.size.batch, 0),
        collate=collate,
        make_optimizer=lambda m: build_optimizer(optimizer, m, 1e-3),
        observers=(SpikeMonitor(),) if watched else (),
    )
    return timed(trainer, shared.device)


class Clock(transformers.TrainerCallback):
    """Seconds from the end of the first step to that of the last."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0
        self._began: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start at the first step, stop at the last."""
        if self._began is None:
            self._began = self._now()
        elif state.global_step == args.max_steps:
            self.seconds = self._now() - self._began

    def _now(self) -> float:
        if self.device == "cpu":
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def timed(trainer: transformers.Trainer, device: str) -> float:
    clock = Clock(device)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds


STOCK, OURS = "stock Trainer, AdamW", "this trainer, AdamW"
ARMS: dict[str, Any] = {
    STOCK: stock,
    OURS: ours,
    "MEAP, AdamW": partial(ours, masked=True),
    "AdamW, spikes watched": partial(ours, watched=True),
    "SPAM": partial(ours, optimizer="spam"),
    "Stable-SPAM": partial(ours, optimizer="stable-spam"),
}


def measure(shared: Setting, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each arm, by round."""
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(-1, rounds):  # the first warms up and isn't counted
        names = list(ARMS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent = ARMS[name](shared)
            if turn >= 0:
                seconds[name].append(spent / (shared.steps - 1))
    return seconds


def figures(own: list[float], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """An arm's time, and its ratios to both trainers with AdamW."""
    found: dict[str, Any] = {"milliseconds_a_step": round(1e3 * statistics.median(own), 2)}
    for label, base in (("stock", STOCK), ("this_trainer", OURS)):
        ratios = sorted(a / b for a, b in zip(own, seconds[base]))
        quarter = len(ratios) // 4
        found[f"ratio_to_{label}"] = round(statistics.median(ratios), 3)
        ends = [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)]
        found[f"quartiles_to_{label}"] = ends
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = torch.device(options.device).type
    size = SIZES["quick" if options.quick else kind]
    config = LlamaConfig(
        vocab_size=320, hidden_size=size.hidden, intermediate_size=size.mlp,
        num_hidden_layers=size.layers, num_attention_heads=size.heads,
        num_key_value_heads=size.heads, max_position_embeddings=2 * size.length,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(options.device)
    rounds, steps = (2, 4) if options.quick else (options.rounds, options.steps)
    with tempfile.TemporaryDirectory() as place:
        seconds = measure(Setting(model, size, kind, steps, place), rounds)
    found = {name: figures(own, seconds) for name, own in seconds.items()}
    for name, arm in found.items():
        print(f"{name:<24}{arm}")
    machine = torch.cuda.get_device_name() if kind == "cuda" else platform.machine()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {
        "parameters": model.num_parameters(), "batch": size.batch, "length": size.length,
        "rounds": rounds, "steps": steps, "threads": 1, "machine": machine, "versions": versions,
        "arms": found,
    }  # fmt: skip
    stem = "overhead" if kind == "cpu" else f"overhead-{kind}"
    if options.output or not options.quick:
        target = options.output or Path(__file__).with_name(f"{stem}.json")
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
