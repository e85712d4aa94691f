"""Several processes give the bytes of one, say one thing, and end together."""

import json
import os
import subprocess
import sys
import time

import pytest
from teams import die, in_ranks

from compress.cli import main
from compress.cli.main import call
from compress.sparsity.pruner import Pruner

TIMES = ("argv", "cost", "versions", "device")


def files(place):
    """The bytes of an output; of the receipt what doesn't depend on time."""
    found = {p.name: p.read_bytes() for p in place.iterdir()}
    receipt = json.loads(found.pop("receipt.json"))
    return found | {"receipt": {k: v for k, v in receipt.items() if k not in TIMES}}


@pytest.fixture
def command(checkpoint, text):
    """Makes a command line; 7 samples are shared unevenly by 2 and 4 processes."""

    def make(out, arch="llama", method="wanda", *more):
        given = ["alpha-prune", str(checkpoint(arch)), "-o", str(out), "--calib", str(text)]
        given += ["--samples", "7", "--seqlen", "24", "--method", method]
        return [*given, *more]

    return make


CASES = {
    "wanda 2": (2, "llama", "wanda"),
    "wanda 4": (4, "llama", "wanda"),
    "sparsegpt 4": (4, "llama", "sparsegpt", "--propagate", "true-sequential"),
    "experts 2": (2, "qwen2_moe", "sparsegpt", "--batch-size", "2"),
    "owl 4": (4, "gpt2", "wanda", "--allocation", "owl"),
    "atp 2": (2, "llama", "wanda", "--allocation", "atp", "--atp-candidates", "2"),
    "refit 4": (4, "mixtral", "wanda", "--refit", "block", "--refit-steps", "12"),
    "permuted 2": (2, "llama", "ria", "--pattern", "2:4", "--channel-permutation"),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_give_the_bytes_of_one_process(command, tmp_path, case):
    count, arch, method, *more = CASES[case]
    assert call(command(tmp_path / "one", arch, method, "--quiet", *more)) == 0
    many = command(tmp_path / "many", arch, method, "--json", *more)
    ended = in_ranks(count, lambda: call(many), tmp_path / "said")
    assert [e.code for e in ended] == [0] * count, ended
    assert json.loads(ended[0].out)["cost"]["ranks"] == count
    assert [e.out + e.err for e in ended[1:]] == [""] * (count - 1)  # the first speaks for all
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_torchrun_starts_them(command, tmp_path):
    assert call(command(tmp_path / "one", "llama", "wanda", "--quiet")) == 0
    many = command(tmp_path / "many", "llama", "wanda", "--json")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "compress", *many],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cost"]["ranks"] == 2
    assert files(tmp_path / "many") == files(tmp_path / "one")


def at_block(index, what):
    """Replace the end of a block in this process."""
    finish, seen = Pruner.finish, []

    def then(self, block, weights):
        seen.append(block.name)
        what() if len(seen) == index + 1 else None
        finish(self, block, weights)

    Pruner.finish = then


@pytest.mark.parametrize(("count", "killed", "again"), [(2, 1, 4), (4, 0, 1)])
def test_a_killed_rank_ends_all_and_any_number_goes_on(command, tmp_path, count, killed, again):
    stop, argv = tmp_path / "when", command(tmp_path / "out")

    def run():
        if os.environ["RANK"] == str(killed):
            at_block(2, lambda: (stop.write_text(str(time.monotonic())), die()))
        return call(argv)

    ended = in_ranks(count, run, tmp_path / "said")
    assert ended.pop(killed).code == -9
    assert [e.code for e in ended] == [3] * (count - 1)
    assert max(e.at for e in ended) - float(stop.read_text()) < 20
    said = "".join(e.err for e in ended)
    assert said.count("error:") == 1
    assert said.startswith(f"error: rank {killed} ended without a word")
    assert "hint: run again with --resume" in said
    assert not (tmp_path / "out").exists()

    resumed = lambda: call([*argv, "--resume", "--quiet"])
    codes = [e.code for e in in_ranks(again, resumed, tmp_path / "again")] if again > 1 else []
    assert codes == [0] * again if again > 1 else resumed() == 0
    assert call(command(tmp_path / "one", "llama", "wanda", "--quiet")) == 0
    assert files(tmp_path / "out") == files(tmp_path / "one")


def test_a_death_ends_a_rank_that_is_deep_in_a_computation(command, tmp_path):
    argv = command(tmp_path / "out")

    def run():
        busy = os.environ["RANK"] == "0"
        at_block(1, lambda: time.sleep(60) if busy else die())
        return call(argv)

    begun = time.monotonic()
    first, second = in_ranks(2, run, tmp_path / "said")
    assert (first.code, second.code) == (3, -9)
    assert first.at - begun < 40
    assert first.err.count("error: rank 1 ended without a word") == 1


def test_an_error_of_one_rank_is_told_once(command, tmp_path):
    argv = command(tmp_path / "out")

    def run():
        def fail():
            raise MemoryError

        if os.environ["RANK"] == "1":
            at_block(1, fail)
        return call(argv)

    first, second = in_ranks(2, run, tmp_path / "said")
    assert (first.code, second.code) == (3, 3)
    assert first.err.startswith("error: rank 1: ")
    assert "MemoryError" in first.err
    assert second.err == ""


@pytest.mark.parametrize("wrong", [["--samples", "0"], ["--skip", "nothing.*"], ["--sample"]])
def test_a_wrong_request_is_told_once(command, tmp_path, monkeypatch, wrong):
    """Found before they meet, after, and by the command line itself."""
    monkeypatch.setattr(main, "_PATIENCE", 1.0)  # without a launcher nobody cuts it short
    out = tmp_path / "out"
    argv = command(out, "llama", "wanda", *wrong)
    ended = in_ranks(2, lambda: call(argv), tmp_path / "said")
    assert [e.code for e in ended] == [2, 2]
    assert ended[0].err.count("error:") == 1
    assert ended[1].err == ""
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


def test_commands_that_share_nothing_are_left_to_the_first(checkpoint, tmp_path):
    ended = in_ranks(2, lambda: call(["inspect", "--help"]), tmp_path / "said")
    assert [e.code for e in ended] == [0, 0]
    assert ended[0].out.startswith("Usage")
    assert ended[1].out == ""
