"""Time of a training step, low rank over full rank, of Conformers of several sizes.

    python benchmarks/lowrank/speech_steps.py [--sizes tiny,visual,small] [--rounds 9]

Steps of all arms take turns (dense, a, b, c, dense, …), and each is divided by the dense one of its
round, so that other work on the machine hits all alike; thread CPU time, one thread. Inputs are
random: only shapes matter. `visual` is the tiny model with 24 synthetic visual features beside the
40 log-mel ones. Writes speech_steps.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ParakeetForCTC

import compress  # noqa: F401
from compress.checkpoints.anatomy import read_anatomy
from compress.lowrank.modules import choose
from compress.lowrank.scratch.factors import factor_model, start_weights
from compress.lowrank.scratch.schedules import uniform_ranks
from compress.lowrank.scratch.sizes import SPEECH, speech_config

HERE = Path(__file__).resolve().parent
SIZES = {  # preset, recordings, frames, features beside the log-mel ones
    "tiny": ("conformer-tiny", 16, 90, 0),
    "visual": ("conformer-tiny", 16, 90, 24),
    "small": ("conformer-small", 4, 400, 0),
    "base": ("conformer-base", 2, 400, 0),
}
ARMS = {
    "full": None,
    "attention 12%": (["attention"], 0.12),
    "ffn 25%": (["ffn"], 0.25),
    "ffn 50%": (["ffn"], 0.5),
    "all 25%": (["all"], 0.25),
    "all 12%": (["all"], 0.12),
}


def make_step(size: str, arm: tuple[list[str], float] | None) -> tuple[Callable[[], None], int]:
    """Return a function that does one training step, and the model's parameters."""
    preset, batch, frames, visual = SIZES[size]
    config = speech_config(SPEECH[preset])
    config.encoder_config.num_mel_bins += visual
    config.vocab_size, config.pad_token_id = 11, 10
    torch.manual_seed(0)
    model = ParakeetForCTC(config)
    start_weights(model, 0)
    if arm is not None:
        chosen = choose(model, read_anatomy(model), arm[0], ())
        ranks = uniform_ranks([min(m.shape) for m in chosen.matrices], arm[1])
        factor_model(model, dict(zip((m.name for m in chosen.matrices), ranks)), "gaussian", 0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    features = torch.randn(batch, frames, config.encoder_config.num_mel_bins)
    mask = torch.ones(batch, frames, dtype=torch.bool)
    labels = torch.randint(0, 10, (batch, 2))

    def step() -> None:
        optimizer.zero_grad()
        model(input_features=features, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def main() -> None:
    """Time the sizes asked for, and write what was found."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--sizes", default="tiny,visual,small")
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--output", type=Path, default=HERE / "speech_steps.json")
    asked = ask.parse_args()
    torch.set_num_threads(1)
    found = json.loads(asked.output.read_text()) if asked.output.is_file() else {}
    for size in asked.sizes.split(","):
        steps = {name: make_step(size, arm) for name, arm in ARMS.items()}
        spent: dict[str, list[float]] = {name: [] for name in steps}
        for _, (step, _) in steps.items():
            step()  # allocations and the optimizer's state
        for _ in range(asked.rounds):
            for name, (step, _) in steps.items():
                began = time.thread_time()
                step()
                spent[name].append(time.thread_time() - began)
        found[size] = {
            name: {
                "parameters": steps[name][1],
                "seconds": statistics.median(spent[name]),
                "ratio": statistics.quantiles(
                    [a / b for a, b in zip(spent[name], spent["full"])], n=4
                ),
            }
            for name in steps
        }
        asked.output.write_text(json.dumps(found, indent=1) + "\n")
        print(size, json.dumps(found[size]), flush=True)


if __name__ == "__main__":
    main()
