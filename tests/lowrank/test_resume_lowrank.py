"""Killed at any moment, `lowrank-svd --resume` gives the bytes of a run that was left alone."""

import os
import signal
import sys
import traceback

import pytest
import torch

import compress
from compress.errors import RequestError
from compress.lowrank import finishing
from compress.reports.receipt import Receipt


def run(call, kill):
    """Run `call(progress)` in a process of its own that SIGKILLs itself at `kill`.

    Args:
        kill: (task, block) whose start it is, "commit", or None.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    torch.set_num_threads(torch.get_num_threads())  # renew torch's pool, which a fork breaks

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    try:

        def progress(task, done, total, note=""):
            if (task, done) == kill:
                die()

        if kill == "commit":
            finishing._receipt = die
        call(progress)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


def files(place):
    """The files of an output, less the receipt and the card made of it, which hold times."""
    timed = ("receipt.json", "README.md")
    return {p.name: p.read_bytes() for p in place.iterdir() if p.name not in timed}


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("sequential", [("measure", 2), ("factor", 0), ("factor", 2), ("write", 1), "commit"]),
        ("whiten", [("measure", 1), ("spectra", 2), ("factor", 3), ("recover", 2), "commit"]),
    ],
)
def test_the_bytes_are_those_of_an_undisturbed_run(method, kills, checkpoint, text, tmp_path):
    options = {"method": method, "calib": str(text), "samples": 16, "seqlen": 16, "keep": 0.6}
    options |= {"share": ("qkv",), "recover": 4 if method == "whiten" else 0}

    def job(out, resume):
        return lambda progress: compress.lowrank_svd(
            checkpoint("qwen2"), out, progress=progress, resume=resume, **options
        )

    assert run(job(tmp_path / "alone", False), None) == 0
    out = tmp_path / "out"
    for number, kill in enumerate(kills):
        assert run(job(out, number > 0), kill) == signal.SIGKILL, kill
        assert not out.exists()
    assert run(job(out, True), None) == 0
    assert files(out) == files(tmp_path / "alone")
    told = [Receipt.read(place).extra["lowrank"] for place in (out, tmp_path / "alone")]
    assert told[0] == told[1]
    assert not (tmp_path / "out.partial").exists()


def test_a_resume_with_other_options_is_refused(checkpoint, text, tmp_path):
    options = {"calib": str(text), "samples": 4, "seqlen": 16, "method": "whiten"}

    def job(progress):
        compress.lowrank_svd(checkpoint(), tmp_path / "out", progress=progress, **options)

    assert run(job, ("factor", 1)) == signal.SIGKILL
    with pytest.raises(RequestError, match=r"can't resume: `options.keep`"):
        compress.lowrank_svd(checkpoint(), tmp_path / "out", resume=True, keep=0.5, **options)
