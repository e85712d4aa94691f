"""Condense a mixture of experts that is larger than the memory it may take.

    python benchmarks/experts/memory.py --place DIR [--gigabytes 6] [--layers 12]

Writes a randomly initialised Qwen2-MoE in bfloat16 under DIR (one tensor file a layer, never the
whole model in memory), then runs `compress cd-moe-condense` on it in a process of its own, whose
anonymous memory (RssAnon of /proc) is sampled from start to end. RLIMIT_DATA is no way to enforce a
bound: it counts the private file mappings of safetensors too, touched or not. Random weights say
nothing about quality; the figure is the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2MoeConfig

HIDDEN, WIDTH, SHARED, EXPERTS = 1024, 1024, 2048, 72


def write_model(place: Path, gigabytes: float, layers: int) -> None:
    """Write a checkpoint of about so many bytes, a layer at a time."""
    each = gigabytes * 1e9 / layers / 2  # parameters a layer
    width = int(each / (3 * HIDDEN * EXPERTS)) // 64 * 64
    config = Qwen2MoeConfig(
        vocab_size=2048, hidden_size=HIDDEN, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, intermediate_size=SHARED, moe_intermediate_size=width,
        shared_expert_intermediate_size=SHARED, num_experts=EXPERTS, num_experts_per_tok=4,
        max_position_embeddings=512, tie_word_embeddings=True, dtype="bfloat16",
        architectures=["Qwen2MoeForCausalLM"],
    )  # fmt: skip
    place.mkdir(parents=True)
    config.save_pretrained(place)
    draw = torch.Generator().manual_seed(0)

    def matrix(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=draw)

    placed: dict[str, str] = {}

    def keep(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, place / file, metadata={"format": "pt"})
        placed.update(dict.fromkeys(tensors, file))

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    keep(
        "model-rest.safetensors",
        {"model.embed_tokens.weight": matrix(2048, HIDDEN), "model.norm.weight": ones},
    )
    for i in range(layers):
        at = f"model.layers.{i}"
        tensors = {
            f"{at}.input_layernorm.weight": ones.clone(),
            f"{at}.post_attention_layernorm.weight": ones.clone(),
            f"{at}.mlp.gate.weight": matrix(EXPERTS, HIDDEN),
            f"{at}.mlp.shared_expert_gate.weight": matrix(1, HIDDEN),
        }
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 4), ("v", HIDDEN // 4)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = matrix(rows, HIDDEN)
            tensors[f"{at}.self_attn.{name}_proj.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
        tensors[f"{at}.self_attn.o_proj.weight"] = matrix(HIDDEN, HIDDEN)
        mlps = {f"experts.{e}": width for e in range(EXPERTS)} | {"shared_expert": SHARED}
        for mlp, wide in mlps.items():
            tensors[f"{at}.mlp.{mlp}.gate_proj.weight"] = matrix(wide, HIDDEN)
            tensors[f"{at}.mlp.{mlp}.up_proj.weight"] = matrix(wide, HIDDEN)
            tensors[f"{at}.mlp.{mlp}.down_proj.weight"] = matrix(HIDDEN, wide)
        keep(f"model-{i:03d}.safetensors", tensors)
    index = {"metadata": {}, "weight_map": placed}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process; 0 once it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


CODE = """
import sys, torch, compress
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
tokens = [torch.randint(4, 2000, (2, 256), generator=draw) for _ in range(int(sys.argv[3]))]
batches = [{"input_ids": rows} for rows in tokens]
done = compress.cd_moe_condense(sys.argv[1], sys.argv[2], batches=batches, layers=3, experts=2,
                                layer_search="single", search_samples=1, overwrite=True)
print(done.render())
"""


def main() -> None:
    """Write the model if it isn't there, condense it, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batches", type=int, default=4, help="of 2 x 256 tokens")
    options = parser.parse_args()
    source = options.place / "model"
    if not source.exists():
        write_model(source, options.gigabytes, options.layers)
    size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    start, peak = time.monotonic(), 0
    argv = [sys.executable, "-c", CODE, str(source), str(options.place / "out")]
    run = subprocess.Popen([*argv, str(options.batches)])
    while run.poll() is None:
        peak = max(peak, anonymous(run.pid))
        time.sleep(0.02)
    print(
        json.dumps(
            {
                "bytes": size,
                "peak_anonymous_bytes": peak,
                "seconds": round(time.monotonic() - start, 1),
                "tokens": options.batches * 512,
                "code": run.returncode,
            }
        )
    )


if __name__ == "__main__":
    main()
