"""Memory is one block, not the model: measured in a process of its own, as anonymous bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
WORKER = f"""
import gc, json, sys, tempfile, threading, time
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from compress.checkpoints.gathering import memory_in_use
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from walk_methods import Halver

class Quiet(Halver):
    def observe(self, matrix, inputs, keep):
        pass

def save(root, blocks, width):
    config = LlamaConfig(vocab_size=256, hidden_size=width, num_hidden_layers=blocks,
                         num_attention_heads=4, num_key_value_heads=4, intermediate_size=4 * width,
                         tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    model.save_pretrained(root)
    size = lambda module: sum(p.numel() * 4 for p in module.parameters())
    return size(model), size(model.model.layers[0])

def run(root, join):
    source = open_source(root)
    writer = open_writer(Path(tempfile.mkdtemp(dir=sys.argv[1])), source)
    tokens = [torch.randint(0, 256, (2, 32)) for _ in range(4)]
    walk(source, [{{"input_ids": each}} for each in tokens], Quiet(), writer)
    if join:
        writer.join(Path(sys.argv[1]) / "out")

root = Path(sys.argv[1])
save(root / "small", 2, 64)
run(root / "small", True)  # what a first run imports and caches is no part of the measure
model, block = save(root / "large", 24, 256)
gc.collect()
device, peak, done = torch.device("cpu"), 0, False
before = memory_in_use(device)

def watch():
    global peak
    while not done:
        peak = max(peak, memory_in_use(device))
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
run(root / "large", True)
done = True
watcher.join()
print(json.dumps({{"model": model, "block": block, "peak": peak - before}}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_anonymous_memory_is_a_small_multiple_of_one_block(tmp_path):
    """Walk and join of a model of 24 blocks stay within 2.5 blocks, a tenth of the model.

    One block is loaded at a time; the rest is activations (0.25 MB here) and slack of the
    allocator. What lies outside the blocks stays memory-mapped.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MALLOC_TRIM_THRESHOLD_": "65536",  # glibc gives freed memory back at once
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    assert measured["model"] > 24 * measured["block"]
    assert measured["peak"] < 2.5 * measured["block"], measured
