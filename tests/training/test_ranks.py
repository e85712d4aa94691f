"""Training in several processes: the same sums as in one, one voice, one end."""

import json
import os
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from teams import die, in_ranks

from compress.cli.main import call
from compress.training import optimizers, preparing
from compress.training import trainer as module
from compress.training.display import read_metrics


def losses(place):
    return [e["loss"] for e in read_metrics(place / "metrics.jsonl") if "loss" in e]


def weights(place):
    return load_file(place / "model.safetensors")


def training(place):
    return json.loads((place / "receipt.json").read_text())["training"]


@pytest.fixture
def command(config, text):
    """Makes a command line of a run of 6 steps of 4 sequences."""

    def make(out, *more):
        given = ["train-spam", str(config), "-o", str(out), "--data", str(text), "--steps", "6"]
        given += ["--batch-size", "4", "--seqlen", "24", "--lr", "0.01", "--log-every", "1"]
        return [*given, "--save-every", "2", "--device", "cpu", *more]

    return make


def run(argv):
    """The command in a process that torchrun has started."""
    AcceleratorState._reset_state(reset_partial_state=True)  # that of a lone process
    return call(argv)


def test_two_processes_are_one_with_twice_the_accumulation(command, text, tmp_path):
    more = ["--micro-batch", "2", "--objective", "meap", "--optimizer", "adamw"]
    more += ["--valid", str(text.with_name("valid.txt")), "--eval-every", "3"]
    assert call(command(tmp_path / "one", "--quiet", *more)) == 0
    argv = command(tmp_path / "two", "--json", *more)
    ended = in_ranks(2, lambda: run(argv), tmp_path / "said")
    assert [e.code for e in ended] == [0, 0], ended
    assert json.loads(ended[0].out)["training"]["processes"] == 2
    assert ended[1].out + ended[1].err == ""
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    receipts = [training(tmp_path / name) for name in ("one", "two")]
    assert [r["processes"] for r in receipts] == [1, 2]
    assert [r["accumulation"] for r in receipts] == [2, 1]
    assert receipts[0]["valid"] == receipts[1]["valid"]


@pytest.mark.parametrize("optimizer", ["adamw", "spam", "stable-spam"])
def test_in_double_precision_only_the_order_of_sums_differs(
    command, tmp_path, monkeypatch, optimizer
):
    """4 sequences at once in one process, 2 and 2 in two: other sums, the same numbers."""
    build = preparing.build_model
    monkeypatch.setattr(preparing, "build_model", lambda *args: build(*args).double())
    monkeypatch.setattr(optimizers, "_check_state_once", lambda *args: None)  # it knows float32's
    more = ["--optimizer", optimizer, "--quiet"]
    assert call(command(tmp_path / "one", "--micro-batch", "4", *more)) == 0
    argv = command(tmp_path / "two", "--micro-batch", "2", *more)
    assert [e.code for e in in_ranks(2, lambda: run(argv), tmp_path / "said")] == [0, 0]
    assert training(tmp_path / "two")["processes"] == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        assert value.dtype == torch.float64
        assert (two[name] - value).norm() <= 1e-10 * value.norm(), name
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def test_a_killed_process_ends_the_other_and_both_resume(command, tmp_path):
    more = ["--micro-batch", "2", "--optimizer", "spam", "--quiet"]
    assert call(command(tmp_path / "one", *more)) == 0
    stop = tmp_path / "when"

    def killed():
        samples = module.Trainer.get_batch_samples

        def fatal(self, *args):
            if os.environ["RANK"] == "1" and self.state.global_step == 4:
                stop.write_text(str(time.monotonic()))
                die()
            return samples(self, *args)

        module.Trainer.get_batch_samples = fatal
        return run(command(tmp_path / "out", *more))

    first, second = in_ranks(2, killed, tmp_path / "said")
    assert (first.code, second.code) == (3, -9)
    assert first.at - float(stop.read_text()) < 20
    assert first.err.startswith("error: rank 1 ended without a word")
    assert first.err.count("error:") == 1
    assert not (tmp_path / "out").exists()
    argv = command(tmp_path / "out", "--resume", *more)
    assert [e.code for e in in_ranks(2, lambda: run(argv), tmp_path / "again")] == [0, 0]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "out")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert losses(tmp_path / "out") == losses(tmp_path / "one")


def test_a_wrong_request_is_told_once_and_ends_both(command, tmp_path):
    argv = command(tmp_path / "out", "--batch-size", "3")
    first, second = in_ranks(2, lambda: run(argv), tmp_path / "said")
    assert (first.code, second.code) == (2, 2)
    assert first.err.startswith("error: `--batch-size 3` can't be shared by 2 processes")
    assert second.err == ""
    assert not (tmp_path / "out.partial").exists()
