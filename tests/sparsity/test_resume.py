"""Killed at any moment, `alpha-prune --resume` gives the bytes of a run that was left alone."""

import json
import os
import signal
import subprocess
import sys

import pytest

from compress.errors import RequestError

# A run that kills itself when the walk begins block number KILL, or at a step after the walk.
RUN = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import compress
from compress.checkpoints import workspace
from compress.sparsity import command

model, output, text, score, method, kill = sys.argv[1:]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(task, done, total, note=""):
    if task == "prune" and kill == str(done):
        die()

if kill == "score":
    command._receipt = die
elif kill == "commit":
    os_rename, seen = os.rename, []
    def rename(a, b):
        if str(b) == output:
            die()
        return os_rename(a, b)
    os.rename = rename
elif kill == "committed":
    workspace.Workspace.discard = die
compress.alpha_prune(model, output, sparsity=0.6, method=method, calib=text, samples=4, seqlen=32,
                     ppl=(score,), limit=2, resume=True if kill == "resume" else False,
                     progress=progress)
"""


def run(model, output, text, score, method, kill):
    """Exit code of a run in a process of its own."""
    argv = [sys.executable, "-c", RUN, *map(str, (model, output, text, score, method, kill))]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300)


def files(place):
    """The files of an output, less the receipt, which holds times."""
    return {p.name: p.read_bytes() for p in place.iterdir() if p.name != "receipt.json"}


@pytest.fixture(scope="module")
def alone(checkpoint, text, other_text, tmp_path_factory):
    """What runs that nobody disturbs write, by architecture and method."""
    made = {}

    def get(arch, method):
        if (arch, method) not in made:
            place = tmp_path_factory.mktemp("alone") / "out"
            done = run(checkpoint(arch), place, text, other_text, method, "never")
            assert done.returncode == 0, done.stderr
            made[arch, method] = files(place)
        return made[arch, method]

    return get


CASES = [
    ("llama", "wanda", "0"),
    ("llama", "wanda", "1"),
    ("llama", "sparsegpt", "3"),
    ("mixtral", "wanda", "2"),
    ("gpt2", "magnitude", "2"),
    ("llama", "wanda", "4"),
    ("llama", "wanda", "score"),
    ("llama", "wanda", "commit"),
    ("llama", "wanda", "committed"),
]


@pytest.mark.parametrize(("arch", "method", "kill"), CASES)
def test_a_killed_run_resumes_to_the_same_bytes(
    arch, method, kill, checkpoint, text, other_text, alone, tmp_path
):
    out = tmp_path / "out"
    killed = run(checkpoint(arch), out, text, other_text, method, kill)
    assert killed.returncode == -signal.SIGKILL
    assert out.exists() == (kill == "committed")
    assert (tmp_path / "out.partial" / "journal.json").is_file()
    done = run(checkpoint(arch), out, text, other_text, method, "resume")
    assert done.returncode == 0, done.stderr
    assert files(out) == alone(arch, method)
    assert not (tmp_path / "out.partial").exists()


def test_finished_blocks_are_not_pruned_again(checkpoint, prune, tmp_path):
    out = tmp_path / "out"

    def stop(task, done, total, note=""):
        if task == "prune" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(checkpoint(), out, progress=stop)
    parts = tmp_path / "out.partial" / "parts"
    before = {p.name: p.stat().st_mtime_ns for p in parts.glob("*layers*")}
    assert len(before) == 3
    kept = {}

    def look(task, done, total, note=""):
        kept.update({p.name: p.stat().st_mtime_ns for p in parts.glob("*layers*")})

    prune(checkpoint(), out, progress=look, resume=True)
    assert {name: kept[name] for name in before} == before


def test_a_resume_with_other_options_is_refused_and_names_them(checkpoint, prune, tmp_path):
    def stop(task, done, total, note=""):
        if task == "prune" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(checkpoint(), tmp_path / "out", progress=stop, allocation="uniform")
    with pytest.raises(RequestError, match=r"seed.*was 0.*is 1"):
        prune(checkpoint(), tmp_path / "out", resume=True, allocation="uniform", seed=1)
    journal = json.loads((tmp_path / "out.partial" / "journal.json").read_text())
    assert journal["fingerprint"]["options"]["seed"] == 0


def test_nothing_to_resume_is_an_error(checkpoint, prune, tmp_path):
    with pytest.raises(RequestError, match="nothing to resume"):
        prune(checkpoint(), tmp_path / "out", resume=True)
    assert os.listdir(tmp_path) == []
