"""What magnitude pruning does to the shipped tiny Llama, without calibration.

    python benchmarks/tiny_llama/damage.py [--model DIR] [--json FILE]

Every linear layer of every block loses the same share of its weights, the smallest ones. Prints the
perplexity on calib_data/demo/test.jsonl (windows of 128 tokens) and the accuracy on every shipped
task through lm-eval. "First spared" leaves the first block whole and takes the same number of zeros
from the others: what a plan that only spares that block would gain.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.data.registry import shipped
from compress.evaluation.perplexity import perplexity
from compress.evaluation.tasks import TaskSet
from compress.sparsity.masks import magnitude_mask

TASKS = ("tiny_arithmetic", "tiny_commonsense", "tiny_entailment", "tiny_story")
SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8)


@torch.no_grad()
def prune(model: torch.nn.Module, sparsity: float, *, spare_first: bool) -> None:
    """Zero the smallest weights of every linear layer of the blocks, in place."""
    blocks = list(model.model.layers)
    for number, block in enumerate(blocks):
        share = sparsity
        if spare_first:
            share = 0.0 if number == 0 else sparsity * len(blocks) / (len(blocks) - 1)
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight[~magnitude_mask(module.weight, share)] = 0


def measure(path: Path, tasks: TaskSet, sparsity: float, *, spare_first: bool) -> dict[str, float]:
    """Perplexity and accuracies in per cent after pruning."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    prune(model, sparsity, spare_first=spare_first)
    lines = shipped("demo/test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    found = {"ppl": perplexity(model, tokenizer, texts, seqlen=128, batch_size=16).value}
    scores = tasks.run(model, tokenizer, batch_size=64)
    return {**found, **{name: 100 * scores[name].acc for name in TASKS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: the shipped one")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    path = options.model or shipped("tiny-llama")
    tasks, rows = TaskSet(TASKS), []
    print(f"| zeros | ppl | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 2) + "|", sep="\n")
    for sparsity in SPARSITIES:
        for spare_first in (False, True):
            if spare_first and not 0 < sparsity < 7 / 8:
                continue
            found = measure(path, tasks, sparsity, spare_first=spare_first)
            rows.append({"sparsity": sparsity, "first_spared": spare_first, **found})
            name = f"{100 * sparsity:.0f} %{', first spared' * spare_first}"
            numbers = " | ".join(f"{found[task]:.1f}" for task in TASKS)
            print(f"| {name} | {found['ppl']:.2f} | {numbers} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
