"""Our side of llm_compressor.py: one pruning walk, or one dense pass, timed in its process.

python llm_compressor_ours.py MODEL IDS.pt METHOD SPARSITY BATCH OUT    prints one JSON line
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from peak import Peak, anonymous_bytes
from transformers import AutoModelForCausalLM

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.sparsity.pruner import STREAM, Pruner, Target


def dense_pass(path: str, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Time one forward pass of the blocks: no head, as the walk needs none."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    base = anonymous_bytes()
    with torch.no_grad(), Peak() as peak:
        start = time.perf_counter()
        for batch in batches:
            model.model(**batch, use_cache=False)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak.value - base}


def prune(path: str, batches, method: str, sparsity: float, out: Path) -> dict[str, float]:
    """Time reading, pruning and writing."""
    base = anonymous_bytes()
    with Peak() as peak, tempfile.TemporaryDirectory() as parts:
        start = time.perf_counter()
        source = open_source(path)
        matrices = read_anatomy(skeleton(source)).matrices
        sizes = {m.name: m.shape[0] * m.shape[1] for m in matrices}
        zeros = {name: round(sparsity * size) for name, size in sizes.items()}
        pruner = Pruner({name: Target(count) for name, count in zeros.items()}, method)
        writer = open_writer(parts, source)
        report = walk(source, batches, pruner, writer, streams=(STREAM,))
        writer.join(out)
        shutil.copyfile(source.directory / "config.json", out / "config.json")
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak": peak.value - base,
        "zeros": sum(zeros.values()) / sum(sizes.values()),
        "passes": report.passes,
    }


def main() -> None:
    path, ids_file, method, sparsity, batch, out = sys.argv[1:]
    ids = torch.load(ids_file, weights_only=True)
    batches = [{"input_ids": rows} for rows in ids.split(int(batch))]
    if method == "dense":
        print(json.dumps(dense_pass(path, batches)))
    else:
        print(json.dumps(prune(path, batches, method, float(sparsity), Path(out))))


if __name__ == "__main__":
    main()
