"""How sharp attention is after training with masks and without.

    python benchmarks/training/attention.py --place DIR

DIR is the grid's. For each seed that has both checkpoints (`meap/meap`, `clean/adam+clip`):
entropy of a query's attention over the entropy of even attention, ln n for n keys, a mean over
layers, heads and the queries from the 33rd on of 64 held-out windows of 128 tokens. 1 is even
attention, 0 a single key. Nothing is masked while measuring. Writes attention.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from arms import SEEDS
from torch import Tensor

WINDOWS, LENGTH, FIRST = 64, 128, 32
ARMS = {"masked": "meap-meap", "plain": "clean-adam+clip"}


def windows(tokenizer, text: Path) -> Tensor:
    """Held-out tokens: int64 [WINDOWS, LENGTH]."""
    ids: list[int] = []
    for line in text.read_text(encoding="utf-8").splitlines():
        ids += tokenizer(json.loads(line)["text"])["input_ids"]
        if len(ids) >= WINDOWS * LENGTH:
            break
    return torch.tensor(ids[: WINDOWS * LENGTH]).view(WINDOWS, LENGTH)


@torch.no_grad()
def evenness(place: Path, text: Path) -> float:
    """Mean entropy of attention, as a share of the even one's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    keys = torch.arange(1, LENGTH + 1, dtype=torch.float64)
    found = []
    for rows in windows(AutoTokenizer.from_pretrained(place), text).split(8):
        for attention in model(input_ids=rows, output_attentions=True).attentions:
            entropy = torch.special.entr(attention.double()).sum(-1)  # [rows, heads, queries]
            found.append((entropy / keys.log().clamp_min(1e-9))[:, :, FIRST:].mean())
    return round(float(torch.stack(found).mean()), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--place", type=Path, required=True, help="of the grid")
    place = parser.parse_args().place
    torch.set_num_threads(1)
    found = {}
    for seed in SEEDS:
        runs = {name: place / "runs" / f"{arm}_seed={seed}" for name, arm in ARMS.items()}
        if all((run / "model.safetensors").exists() for run in runs.values()):
            text = place / "text" / "openwebtext.held.jsonl"
            found[seed] = {name: evenness(run, text) for name, run in runs.items()}
            print(seed, found[seed], flush=True)
    output = Path(__file__).with_suffix(".json")
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
