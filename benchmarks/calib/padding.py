"""Padding in the statistics: what public code does, attention masked alone, and masked in full.

    COMPRESS_ASSETS=ASSETS python benchmarks/calib/padding.py

Writes padding.jsonl and padding.md beside this file. GSM8K pairs, one a window (`single` of
arXiv:2410.07461), padded on the right to 128, 256 and 512 tokens with a token of its own, whose
embedding is a new random row, as the paper's code does it. Wanda at 50 %, uniform shares, one layer
after the other. Three ways:

- masked in full: `attention_mask` in the batch, which is all that a user of this package does;
- attention only: padding is hidden from attention by a mask [B, 1, T, T], statistics count it;
- nothing: no mask.

Scored on text that stories260k sampled itself (temperature 1, other seed than any calibration) and,
for the shipped model, on the test split of its corpus; the random row's logit is left out. The
pairs are those that fit 128 tokens, so all lengths hold the same real tokens. Beside it, how much
of the pruned set changes with the corpus: self-sampled text for OpenWebText, no padding in either.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress import alpha_prune
from compress.calibration.predict import token_losses
from compress.calibration.sampling import Sampler
from compress.calibration.sets import calibration_set
from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.source import Source, open_source
from compress.data.packing import prepare_calibration
from compress.data.registry import Sampling, shipped
from compress.numerics.counter import permutation

HERE = Path(__file__).parent
LENGTHS = (128, 256, 512)
WINDOWS, ROWS, SEEDS, SPARSITY = 96, 8, 3, 0.5
WAYS = ("masked in full", "attention only", "nothing")
SCORED = {"windows": 32, "length": 256}


class Subject(NamedTuple):
    """A model with an embedding for padding, and the text that it is scored on."""

    name: str
    source: Source
    padded: Path
    pad: int
    scored: list[dict[str, Tensor]]


def with_pad_row(source: Source, directory: Path) -> int:
    """Save a model with one more, random, embedding row; return its token."""
    model = AutoModelForCausalLM.from_pretrained(source.directory, dtype=torch.float32)
    rows = model.get_input_embeddings().weight.shape[0]
    spread = model.get_input_embeddings().weight.std()
    model.resize_token_embeddings(rows + 1, mean_resizing=False)
    noise = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] = noise * spread
    model.save_pretrained(directory)
    return rows


def subjects(assets: Path, scratch: Path) -> list[Subject]:
    """The two models."""
    found = []
    for name, place in (
        ("stories260k", assets / "models" / "stories260k"),
        ("shipped", shipped("tiny-llama")),
    ):
        source = open_source(place)
        pad = with_pad_row(source, scratch / name)
        size = {"samples": SCORED["windows"], "seqlen": SCORED["length"]}
        if name == "stories260k":
            options = Sampling(ramp=0, keep=1.0, distinct=0.0)
            sampler = Sampler(source, options, length=size["seqlen"], seed=1000)
            texts = (ids for group in range(9) for ids, _ in sampler.group(group))
            begin = source.config.bos_token_id
            scored = [
                {"input_ids": torch.tensor([[begin, *ids]])} for ids in texts if len(ids) > 63
            ]
            scored = scored[: size["samples"]]
        else:
            text = shipped("demo/test.jsonl")
            scored, _ = prepare_calibration(str(text), source.tokenizer(), **size)
        found.append(Subject(name, source, scratch / name, pad, scored))
    return found


def pairs(source: Source, assets: Path, scratch: Path) -> list[list[int]]:
    """GSM8K questions with answers as token ids, those that fit the shortest length."""
    registry = scratch / "registry.yaml"
    file = assets / "data" / "gsm8k_train_2000.jsonl"
    registry.write_text(
        f"schema: 1\ncorpora:\n  gsm8k: {{like: gsm8k, local: {{calibration: {file}}}}}\n"
    )
    tokenizer: Any = source.tokenizer()
    texts = [prompt + answer for prompt, answer in _examples(registry)]
    ids = tokenizer(texts, verbose=False)["input_ids"]
    return [own for own in ids if len(own) <= min(LENGTHS)]


def _examples(registry: Path) -> list[tuple[str, str]]:
    from compress.data.specs import load_examples

    return [(e.prompt, e.answer) for e in load_examples("gsm8k@icl", registry=registry)]


def batch(texts: Sequence[list[int]], length: int, pad: int, way: str) -> dict[str, Tensor]:
    """Padded windows, masked in one of the three ways."""
    rows = torch.full((len(texts), length), pad)
    real = torch.zeros(len(texts), length, dtype=torch.int64)
    for i, ids in enumerate(texts):
        rows[i, : len(ids)] = torch.tensor(ids)
        real[i, : len(ids)] = 1
    if way == "nothing":
        return {"input_ids": rows}
    if way == "masked in full":
        return {"input_ids": rows, "attention_mask": real}
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return {"input_ids": rows, "attention_mask": causal[None, None] & real.bool()[:, None, None]}


def pruned_by(subject: Subject, batches: Sequence[dict[str, Tensor]]) -> Any:
    """The model pruned with some batches."""
    result = alpha_prune(
        subject.padded,
        None,
        sparsity=SPARSITY,
        method="wanda",
        allocation="uniform",
        batches=batches,
        device="cpu",
    )
    return result.model


def zeros_of(model: Any) -> dict[str, Tensor]:
    """Where each matrix of the blocks is zero."""
    return {
        matrix.name: model.get_submodule(matrix.name).weight.detach() == 0
        for block in read_anatomy(model).blocks
        for matrix in block.matrices
    }


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The share of the pruned set of the first that the second keeps."""
    only = sum(int((first[name] & ~second[name]).sum()) for name in first)
    return only / sum(int(own.sum()) for own in first.values())


@torch.inference_mode()
def perplexity_of(model: Any, subject: Subject) -> float:
    """Of the scored text, without the random row's logit."""
    total = count = 0.0
    for window in subject.scored:
        logits = model(**window).logits[..., : subject.pad]
        sums, counts = token_losses(logits, window)
        total, count = total + float(sums.sum()), count + float(counts.sum())
    return math.exp(total / count)


def run(subject: Subject, assets: Path, scratch: Path, seed: int) -> list[dict[str, Any]]:
    """All lengths and ways of one model and seed."""
    usable = pairs(subject.source, assets, scratch)
    chosen = [usable[i] for i in permutation(seed, 0, len(usable))[:WINDOWS]]
    real = sum(map(len, chosen))
    lines = []
    for length in LENGTHS:
        reference = None
        for way in WAYS:
            groups = [chosen[i : i + ROWS] for i in range(0, WINDOWS, ROWS)]
            model = pruned_by(subject, [batch(own, length, subject.pad, way) for own in groups])
            own = zeros_of(model)
            reference = own if reference is None else reference
            lines.append(
                {
                    "model": subject.name,
                    "seed": seed,
                    "length": length,
                    "way": way,
                    "padding": 1 - real / (length * WINDOWS),
                    "perplexity": perplexity_of(model, subject),
                    "differs": differing(reference, own),
                }
            )
    return [*lines, swapped(subject, assets, seed)]


def swapped(subject: Subject, assets: Path, seed: int) -> dict[str, Any]:
    """How much of the pruned set changes with the corpus alone."""
    sets = [
        calibration_set(
            subject.source, name, samples=WINDOWS, seqlen=128, seed=seed, batch_size=ROWS
        )[0]
        for name in ("self", str(assets / "data" / "openwebtext_docs.jsonl"))
    ]
    first, second = (pruned_by(subject, batches) for batches in sets)
    return {
        "model": subject.name,
        "seed": seed,
        "way": "another corpus",
        "differs": differing(zeros_of(first), zeros_of(second)),
        "perplexity": [perplexity_of(model, subject) for model in (first, second)],
    }


def table(lines: Sequence[dict[str, Any]], dense: dict[str, float]) -> str:
    """The table of calib.md's form, mean and standard deviation over seeds."""
    text = []
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model]
        seeds = len({line["seed"] for line in own})
        text += [
            f"**{model}**, dense {dense[model]:.3f}, {seeds} seeds, perplexity ± SD over seeds "
            "(share of the pruned set that differs)",
            "",
            "| tokens a window (share of padding) | " + " | ".join(WAYS) + " |",
            "|---" * (len(WAYS) + 1) + "|",
        ]
        for length in LENGTHS:
            cells = []
            for way in WAYS:
                at = [e for e in own if e.get("length") == length and e["way"] == way]
                values = [e["perplexity"] for e in at]
                cell = f"{statistics.mean(values):.3f}"
                if len(values) > 1:
                    cell += f" ± {statistics.stdev(values):.3f}"
                if way != WAYS[0]:
                    cell += f" ({100 * statistics.mean(e['differs'] for e in at):.1f} %)"
                cells.append(cell)
            share = statistics.mean(e["padding"] for e in own if e.get("length") == length)
            text.append(f"| {length} ({share:.2f}) | " + " | ".join(cells) + " |")
        swaps = [e for e in own if e["way"] == "another corpus"]
        change = 100 * statistics.mean(e["differs"] for e in swaps)
        both = [statistics.mean(e["perplexity"][i] for e in swaps) for i in (0, 1)]
        text += [
            "",
            f"OpenWebText for self-sampled text, no padding: {change:.1f} % of the pruned set "
            f"differs, perplexity {both[0]:.3f} (self-sampled) and {both[1]:.3f}.",
            "",
        ]
    return "\n".join(text)


def main() -> None:
    """Run what isn't there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE)
    output = parser.parse_args().output
    assets = Path(os.environ["COMPRESS_ASSETS"])
    log = output / "padding.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(line["model"], line["seed"]) for line in lines}
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        models = subjects(assets, scratch)
        dense = {}
        for subject in models:
            model = AutoModelForCausalLM.from_pretrained(subject.padded, dtype=torch.float32)
            dense[subject.name] = perplexity_of(model, subject)
        for subject in models:
            for seed in range(SEEDS):
                if (subject.name, seed) in done:
                    continue
                found = run(subject, assets, scratch, seed)
                lines += found
                with log.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in found)
                print(subject.name, seed, *(f"{x['perplexity']}" for x in found), flush=True)
    (output / "padding.md").write_text(table(lines, dense))


if __name__ == "__main__":
    main()
