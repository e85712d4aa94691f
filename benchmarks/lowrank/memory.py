"""Peak memory of `compress lowrank-svd` against the size of the model: one block, not all of them.

    python benchmarks/lowrank/memory.py [--layers 6 24]

Random Llamas of one width and different depth are factored, each in a process of its own that
samples its anonymous memory (RssAnon; weight files that are only mapped don't count), from the
moment at which the libraries are loaded. If one block is held at a time, the peak hardly grows with
the depth; the bytes of a block's weights and Gram matrices and of the whole model stand beside it.
Writes memory.json. Random weights say nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
WIDTH, WIDE, TOKENS = 768, 2048, 8 * 256

CODE = """
import json, sys, torch
sys.path.insert(0, sys.argv[3])
import compress
from compress.lowrank import command
from peak import Peak, anonymous_bytes
torch.set_num_threads(1)
torch.ones(8).sum()
draw = torch.Generator().manual_seed(0)
batches = [{"input_ids": torch.randint(0, 500, (1, 256), generator=draw)} for _ in range(8)]
start = anonymous_bytes()
with Peak() as peak:
    compress.lowrank_svd(sys.argv[1], sys.argv[2], batches=batches, keep=0.6, method=sys.argv[4])
print(json.dumps({"peak_bytes": peak.value - start}))
"""


def write_model(place: Path, layers: int) -> int:
    """Write a random Llama; its bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=WIDE, num_hidden_layers=layers,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=256,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return sum(f.stat().st_size for f in place.glob("*.safetensors"))


def main() -> None:
    """Measure each method at each depth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--methods", nargs="+", default=["svd", "whiten", "sequential"])
    options = parser.parse_args()
    attention = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 3
    block = 4 * (attention + 3 * WIDTH * WIDE)
    grams = 4 * (3 * WIDTH**2 + WIDE**2)
    lines = []
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "model"
            size = write_model(source, layers)
            for method in options.methods:
                argv = [sys.executable, "-c", CODE, source, Path(scratch) / method]
                argv += [HERE.parent / "prune", method]
                found = subprocess.run(
                    [str(a) for a in argv], check=True, capture_output=True, text=True
                )
                peak = json.loads(found.stdout.splitlines()[-1])["peak_bytes"]
                lines.append({"layers": layers, "method": method, "model_bytes": size,
                              "peak_bytes": peak})  # fmt: skip
                print(lines[-1], flush=True)
    facts = {"block_bytes": block, "gram_bytes_of_a_block": grams, "tokens": TOKENS}
    (HERE / "memory.json").write_text(json.dumps({**facts, "runs": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
