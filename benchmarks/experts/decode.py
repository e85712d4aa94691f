"""Decoding speed and memory of a condensed mixture of experts against the original, in one run.

    python benchmarks/experts/decode.py --place DIR --output decode.json [MODEL ...]

A randomly initialised Qwen2-MoE, large enough that its layers and not their launches take the time
(four layers of 24 experts of 384 beside a shared one of 768, hidden 512; 0.25 GB in float32), and
any MODEL named, have all their expert layers condensed, with as many experts as a token is routed
to (SR) and with the shared one alone (S). Original and condensed models then decode in turns in one
process, at batch 1 and 16; thread time on a CPU, one thread. The original runs as transformers does
by default: grouped products of the experts that are needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from curve import decode_ms
from transformers import AutoModelForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

import compress
from compress.checkpoints.source import open_source
from compress.evaluation.speed import peak_memory

ROUNDS, TOKENS = 7, 12


def write_model(place: Path) -> None:
    """Write the random model."""
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=2048, hidden_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, intermediate_size=768, moe_intermediate_size=384,
        shared_expert_intermediate_size=768, num_experts=24, num_experts_per_tok=4,
        max_position_embeddings=512, tie_word_embeddings=True, norm_topk_prob=True,
    )  # fmt: skip
    Qwen2MoeForCausalLM(config).save_pretrained(place)


def batches(vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens: which experts are kept doesn't matter to the speed."""
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(4, vocabulary, (2, 64), generator=draw)}]


def compare(models: dict[str, Any], rows: int) -> dict[str, dict[str, float]]:
    """Return milliseconds a token, quartiles of the ratio to the original, and bytes, by model."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    peaks = dict.fromkeys(models, 0)
    for _ in range(ROUNDS):
        for name, model in models.items():
            with peak_memory() as memory:
                taken[name].append(decode_ms(model, rows, TOKENS))
            peaks[name] = max(peaks[name], memory.growth)
    found = {}
    for name, model in models.items():
        ratios = [a / b for a, b in zip(taken["original"], taken[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        found[name] = {
            "ms": statistics.median(taken[name]), "times": middle, "low": low, "high": high,
            "weights": held, "peak": held + peaks[name],
        }  # fmt: skip
    return found


def main() -> None:
    """Make the models that aren't there, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.place.mkdir(parents=True, exist_ok=True)
    random = options.place / "random-moe"
    if not random.is_dir():
        write_model(random)
    results = {}
    for path in (*options.models, random):
        paths = {"original": path}
        for name, experts in (("SR", None), ("S", 0)):
            paths[name] = options.place / f"{path.name}-{name}"
            if not paths[name].is_dir():
                config = open_source(path).config
                compress.cd_moe_condense(
                    path, paths[name], layers="all", experts=experts, refit="none", dtype="float32",
                    batches=batches(config.vocab_size),
                )  # fmt: skip
        models = {
            name: AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).eval()
            for name, p in paths.items()
        }
        results[path.name] = {str(rows): compare(models, rows) for rows in (1, 16)}
        del models
        options.output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
