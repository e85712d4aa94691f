"""The peer's side of llm_compressor.py: one pruning job with llm-compressor, timed in its process.

    PEER_PYTHON llm_compressor_peer.py MODEL IDS.pt METHOD SPARSITY BATCH OUT

Runs in an environment that has llmcompressor; prints one JSON line.
"""

import json
import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from peak import Peak, anonymous_bytes
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    path, ids_file, method, sparsity, batch, out = sys.argv[1:]
    ids = torch.load(ids_file, weights_only=True)
    rows = Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": [[1] * len(r) for r in ids]}
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    modifiers = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}
    base = anonymous_bytes()
    with Peak() as peak:
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=rows,
            recipe=modifiers[method](
                sparsity=float(sparsity), targets=["Linear"], ignore=["lm_head"]
            ),
            num_calibration_samples=len(ids),
            max_seq_length=ids.shape[1],
            batch_size=int(batch),
            shuffle_calibration_samples=False,
        )
        model.save_pretrained(out)
        seconds = time.perf_counter() - start
    tokenizer.save_pretrained(out)
    zeros = sum(
        int((p == 0).sum()) for n, p in model.named_parameters() if "layers" in n and p.ndim == 2
    )
    total = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2)
    print(json.dumps({"seconds": seconds, "peak": peak.value - base, "zeros": zeros / total}))


if __name__ == "__main__":
    main()
