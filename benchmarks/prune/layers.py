"""Do blocks differ, and does the shape of their spectra tell which can lose weights?

    COMPRESS_ASSETS=ASSETS python benchmarks/prune/layers.py --small DIR

For every block of the models of `quality.py`: the mean exponent of its matrices (alpha_peak), and
how much the held-out loss rises when the smallest 70 % of the weights of each row of that block
alone are set to zero, by quarters of the scored windows. With it Spearman's rank correlation of the
two: AlphaPruning cuts most where the exponent is large, so it expects a negative one. Writes
layers.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from quality import Subject, subjects
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.evaluation.perplexity import perplexity
from compress.spectra.measure import measure_spectra

CUT, WINDOWS, SEQLEN, PARTS = 0.7, 24, 256, 4


def exponents(path: Path) -> dict[str, float]:
    """Block -> mean alpha_peak of its matrices."""
    source = open_source(path)
    anatomy = read_anatomy(skeleton(source))
    found: dict[str, list[float]] = {}
    for row in measure_spectra(source, anatomy, metrics=["alpha_peak"], precise=True):
        found.setdefault(row.block, []).append(row.metrics["alpha_peak"])
    return {block: sum(some) / len(some) for block, some in found.items()}


@torch.no_grad()
def cut(block: torch.nn.Module) -> dict[torch.nn.Linear, torch.Tensor]:
    """Zero the smallest weights of every row; returns what stood there."""
    kept = {}
    for module in block.modules():
        if isinstance(module, torch.nn.Linear):
            kept[module] = module.weight.clone()
            size = module.weight.abs()
            limit = size.kthvalue(round(CUT * size.shape[1]), dim=1, keepdim=True).values
            module.weight.mul_(size > limit)
    return kept


@torch.no_grad()
def measure(subject: Subject) -> dict[str, Any]:
    """Exponents and rises of one model."""
    model = AutoModelForCausalLM.from_pretrained(subject.path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(subject.path)
    lines = subject.scored.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    limit = min(SEQLEN, model.config.max_position_embeddings)

    def losses() -> torch.Tensor:
        scored = perplexity(model, tokenizer, texts, seqlen=limit, limit=WINDOWS, batch_size=8)
        return torch.as_tensor(scored.losses)

    alpha = exponents(subject.path)
    dense = losses()
    rises = []
    for name in alpha:
        kept = cut(model.get_submodule(name))
        moved = losses() - dense
        rises.append([round(float(part.mean()), 5) for part in moved.chunk(PARTS)])
        for module, weight in kept.items():
            module.weight.copy_(weight)
    means = [sum(rise) / len(rise) for rise in rises]
    return {
        "blocks": list(alpha),
        "alpha": [round(value, 4) for value in alpha.values()],
        "rises": {str(part): [rise[part] for rise in rises] for part in range(PARTS)},
        "spearman": round(float(spearmanr(list(alpha.values()), means).statistic), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", type=Path, help="a model of real_text/train_llama.py")
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for subject in subjects(parser.parse_args().small, Path(scratch)):
            found[subject.name] = measure(subject)
            print(subject.name, found[subject.name], flush=True)
    output = Path(__file__).with_suffix(".json")
    content = {"cut": CUT, "windows": WINDOWS, "models": found}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
