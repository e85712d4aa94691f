"""Killed at any moment, `alpha-prune --resume` gives the bytes of a run that was left alone."""

import json
import os
import signal
import sys
import traceback

import pytest
import torch

import compress
from compress.checkpoints import workspace
from compress.errors import RequestError
from compress.sparsity import finishing


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def run(call, kill):
    """Run `call(progress, resume)` in a process of its own that SIGKILLs itself at `kill`.

    Args:
        kill: the block whose pruning begins ("0", "1", …), "score" (all blocks are done),
            "commit" (the result is complete), "committed" (OUT is there), or None.

    Returns:
        The process's wait status: 0, or the signal that ended it.
    """
    child = os.fork()  # a fork, since a fresh interpreter takes seconds to import torch
    if child:
        return os.waitpid(child, 0)[1]
    torch.set_num_threads(torch.get_num_threads())  # renew torch's pool, which a fork breaks
    try:

        def progress(task, done, total, note=""):
            if task == "prune" and kill == str(done):
                die()

        if kill == "score":
            finishing._receipt = die
        elif kill == "commit":
            rename = os.rename
            os.rename = lambda a, b: die() if str(b).endswith("out") else rename(a, b)
        elif kill == "committed":
            workspace.Workspace.discard = die
        call(progress)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


def files(place):
    """The files of an output, less the receipt, which holds times."""
    return {p.name: p.read_bytes() for p in place.iterdir() if p.name != "receipt.json"}


@pytest.fixture
def job(checkpoint, text, other_text):
    """A call of alpha_prune, to be run or killed."""

    def make(arch, method, out, resume=False):
        options = {"method": method, "calib": str(text), "samples": 4, "seqlen": 32}
        options |= {"ppl": (str(other_text),), "limit": 2, "sparsity": 0.6, "resume": resume}
        path = checkpoint(arch)
        return lambda progress: compress.alpha_prune(path, out, progress=progress, **options)

    return make


@pytest.fixture(scope="module")
def alone():
    """What undisturbed runs wrote, by architecture and method."""
    return {}


@pytest.mark.parametrize(
    ("arch", "method", "kill"),
    [
        ("llama", "wanda", "0"),
        ("llama", "wanda", "1"),
        ("llama", "sparsegpt", "3"),
        ("mixtral", "wanda", "2"),
        ("gpt2", "magnitude", "2"),
        ("llama", "wanda", "score"),
        ("llama", "wanda", "commit"),
        ("llama", "wanda", "committed"),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(arch, method, kill, job, alone, tmp_path):
    if (arch, method) not in alone:
        assert run(job(arch, method, tmp_path / "alone"), None) == 0
        alone[arch, method] = files(tmp_path / "alone")
    out = tmp_path / "out"
    assert run(job(arch, method, out), kill) == signal.SIGKILL
    assert out.exists() == (kill == "committed")
    assert (tmp_path / "out.partial" / "journal.json").is_file()
    assert run(job(arch, method, out, resume=True), None) == 0
    assert files(out) == alone[arch, method]
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
    with pytest.raises(RequestError, match=r"damp.*was 0\.01.*is 0\.1"):
        prune(checkpoint(), tmp_path / "out", resume=True, allocation="uniform", damp=0.1)
    journal = json.loads((tmp_path / "out.partial" / "journal.json").read_text())
    assert journal["fingerprint"]["options"]["damp"] == 0.01


@pytest.mark.parametrize("allocation", ["alpha", "atp", "dlp"])
def test_a_resumed_run_neither_measures_nor_searches_again(allocation, checkpoint, prune, tmp_path):
    given = {"allocation": allocation, "pattern": "mixed:8"}
    seen = []

    def stop(task, done, total, note=""):
        seen.append(task)
        if task == "prune" and done == 2:
            raise KeyboardInterrupt

    alone = prune(checkpoint(), tmp_path / "alone", **given)
    with pytest.raises(KeyboardInterrupt):
        prune(checkpoint(), tmp_path / "out", progress=stop, **given)
    measured = {*seen} & {"spectra", "atp 1/2", "scores"}
    assert measured
    seen.clear()
    done = prune(
        checkpoint(), tmp_path / "out", resume=True, progress=lambda t, *_: seen.append(t), **given
    )
    assert not {*seen} & measured
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert done.receipt.notes == alone.receipt.notes  # what planning had to say is told again
    assert done.plan == alone.plan


def test_a_plan_that_was_kept_for_other_options_is_not_used(checkpoint, prune, tmp_path):
    def stop(task, done, total, note=""):
        if task == "prune" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(checkpoint(), tmp_path / "out", progress=stop)
    with pytest.raises(RequestError, match=r"sparsity.*was 0\.6.*is 0\.7"):
        prune(checkpoint(), tmp_path / "out", resume=True, sparsity=0.7)
    (tmp_path / "out.partial" / "planned.json").write_text('{"basis": ')  # a damaged file costs
    prune(checkpoint(), tmp_path / "out", resume=True)  # nothing but time
    prune(checkpoint(), tmp_path / "alone")
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_nothing_to_resume_is_an_error(checkpoint, prune, tmp_path):
    with pytest.raises(RequestError, match="nothing to resume"):
        prune(checkpoint(), tmp_path / "out", resume=True)
    assert os.listdir(tmp_path) == []
