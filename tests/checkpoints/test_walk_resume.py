from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from walk_methods import NormScaler, same_tensors, stored

from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from tiny_models import BLOCKS, make_batch, make_checkpoint

TESTS = Path(__file__).resolve().parent.parent
WORKER = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from tiny_models import make_batch
from walk_methods import NormScaler
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
root, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
source = open_source(root / "in")
writer = open_writer(root / "parts", source)
print("begin", flush=True)
def told(task, done, total, note=""):
    print(done, flush=True)
    if not resume:
        sys.stdin.readline()
walk(source, [make_batch(2, 16), make_batch(3, 16, seed=1, padded=True)], NormScaler(), writer,
     resume=resume, progress=told)
writer.join(root / "out")
print("end", flush=True)
"""


def batches() -> list[dict]:
    return [make_batch(2, 16), make_batch(3, 16, seed=1, padded=True)]


def uninterrupted(root: Path, source) -> dict[str, torch.Tensor]:
    writer = open_writer(root / "whole", source)
    walk(source, batches(), NormScaler(), writer)
    writer.join(root / "want")
    return stored(root / "want")


@pytest.mark.parametrize(("arch", "seed"), [("llama", 0), ("mixtral", 1), ("gpt2", 2)])
def test_killed_at_any_moment_and_resumed_the_bytes_are_the_same(arch, seed, tmp_path):
    """SIGKILL three times in one run, each a random time after a random block has begun."""
    draw = random.Random(seed)
    source = open_source(make_checkpoint(arch, tmp_path / "in"))
    want = uninterrupted(tmp_path, source)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    process = subprocess.Popen(
        [*command, "first"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stop = draw.randrange(1, BLOCKS)
    for line in process.stdout:
        if line.strip() == str(stop):
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(draw.random() * 0.02)
            os.kill(process.pid, signal.SIGKILL)
            break
        if line.strip() != "begin":
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    finished = open_writer(tmp_path / "parts", source).parts()
    assert {f"{p}.{i}" for p in {n.rpartition(".")[0] for n in finished} for i in range(stop)} <= (
        finished
    )
    subprocess.run([*command, "resume"], check=True, env=environment, capture_output=True)
    assert same_tensors(stored(tmp_path / "out"), want)
    for file in (tmp_path / "want").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "qwen2_moe", "bert", "phi"])
@pytest.mark.parametrize("propagate", ["edited", "dense"])
def test_resumed_after_each_block(arch, propagate, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path / "in", dtype=torch.bfloat16))
    writer = open_writer(tmp_path / "parts", source)
    whole = walk(source, batches(), NormScaler(), writer, propagate=propagate)
    writer.join(tmp_path / "want")
    blocks = sorted(part for part in writer.parts() if part)
    for kept in range(BLOCKS):
        writer = open_writer(tmp_path / "parts", source)
        for block in [*blocks[kept:], ""]:
            writer.remove(block)
        report = walk(source, batches(), NormScaler(), writer, propagate=propagate, resume=True)
        assert report.resumed == kept
        assert sorted(report.untouched) == sorted(whole.untouched)
        writer.join(tmp_path / f"out{kept}")
        assert same_tensors(stored(tmp_path / f"out{kept}"), stored(tmp_path / "want"))


def test_without_resume_old_parts_are_removed(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    writer = open_writer(tmp_path / "parts", source)
    writer.write("foreign", {"model.norm.weight": torch.ones(32)})
    walk(source, [], NormScaler(), writer)
    assert "foreign" not in writer.parts()


def test_a_finished_walk_resumes_to_nothing(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    writer = open_writer(tmp_path / "parts", source)
    walk(source, batches(), NormScaler(), writer)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "parts").iterdir()}
    report = walk(source, batches(), NormScaler(), writer, resume=True)
    assert report.resumed == BLOCKS
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "parts").iterdir()}
