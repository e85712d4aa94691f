"""alpha-prune beside llm-compressor: time, memory and perplexity of the same job in one run.

    python -m venv PEER; PEER/bin/pip install torch==2.13.0 llmcompressor
    python benchmarks/prune/llm_compressor.py --peer PEER/bin/python --model DIR --text HELD.jsonl

DIR is a Llama of about 30 million parameters (benchmarks/real_text/train_llama.py --size 30m). Both
tools get the same 64 x 512 calibration tokens, the same batch size and threads, a model directory,
and must leave a saved checkpoint; a process each, timed from reading the model to the files
written, imports excluded. Rounds are interleaved, medians reported. Memory is the peak of anonymous
memory above what the imports hold. The dense forward pass of the same tokens is timed in every
round; the floor of a sequential pruner is two of them. Uniform shares on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
METHODS = ("wanda", "sparsegpt")


def calibration(model: Path, text: Path, samples: int, seqlen: int) -> torch.Tensor:
    """Token windows [samples, seqlen] of a text, drawn as alpha-prune draws them."""
    from transformers import AutoTokenizer

    from compress.data.packing import prepare_calibration

    batches, _ = prepare_calibration(
        str(text), AutoTokenizer.from_pretrained(model), samples=samples, seqlen=seqlen, seed=0,
        batch_size=1, held_out=(),
    )  # fmt: skip
    return torch.cat([batch["input_ids"] for batch in batches])


def child(command: list[str], threads: int) -> dict[str, Any]:
    """Run a process that prints a JSON line last."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def loss(path: Path, tokenizer_of: Path, text: Path) -> float:
    """Held-out loss of a checkpoint, in nats a token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from compress.evaluation.perplexity import perplexity

    model = AutoModelForCausalLM.from_pretrained(path).float().eval()
    texts = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    found = perplexity(
        model, AutoTokenizer.from_pretrained(tokenizer_of), texts, seqlen=512, limit=24
    )
    return found.losses.mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="python of an environment with llmcompressor")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="JSON lines to score on")
    parser.add_argument("--calib", type=Path, required=True, help="JSON lines to calibrate on")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "llm_compressor.json")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        ids = scratch / "ids.pt"
        torch.save(calibration(options.model, options.calib, options.samples, options.seqlen), ids)
        ours, peer = str(HERE / "llm_compressor_ours.py"), str(HERE / "llm_compressor_peer.py")
        for round_ in range(options.rounds):
            common = [str(options.model), str(ids)]
            found.setdefault("dense pass", []).append(
                child([sys.executable, ours, *common, "dense", "0", str(options.batch), "-"],
                      options.threads)
            )  # fmt: skip
            for method in METHODS:
                for tool, python, script in (
                    ("compress", sys.executable, ours),
                    ("llm-compressor", options.peer, peer),
                ):
                    out = scratch / f"{tool}-{method}-{round_}"
                    job = [*common, method, str(options.sparsity), str(options.batch), str(out)]
                    line = child([python, script, *job], options.threads)
                    if round_ == 0:
                        line["loss"] = loss(out, options.model, options.text)
                    found.setdefault(f"{tool} {method}", []).append(line)
                    print(tool, method, line, file=sys.stderr)
        dense_loss = loss(options.model, options.model, options.text)
    dense = statistics.median(line["seconds"] for line in found["dense pass"])
    table = {
        name: {
            "seconds": statistics.median(line["seconds"] for line in lines),
            "dense_passes": statistics.median(line["seconds"] for line in lines) / dense,
            "peak_bytes": max(line["peak"] for line in lines),
            "zeros": lines[0].get("zeros"),
            "loss": lines[0].get("loss", dense_loss),
        }
        for name, lines in found.items()
    }
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    for key in ("peer", "model", "text", "calib", "output"):
        settings.pop(key)
    options.output.write_text(json.dumps({"settings": settings, "results": table}, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
