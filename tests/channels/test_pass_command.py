"""PASS behind its door: from scratch, with a new head, killed and resumed, in two processes."""

import json

import image_sets
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from teams import in_ranks
from transformers import AutoModelForImageClassification, TrainerCallback

from compress.channels import searching, tuning
from compress.cli.main import call
from compress.data.images.prompting import read_prompt
from compress.training import looping

QUICK = ["--mask-epochs", "2", "--mask-lr", "0.02", "--hidden", "8", "--batch-size", "50",
         "--calib-samples", "100", "--round-to", "2", "--augment", "crop"]  # fmt: skip

TUNED = ["--finetune-epochs", "1", "--distill", "0.5"]


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    monkeypatch.setattr("compress.channels.measuring._ROUNDS", 2)
    monkeypatch.setattr("compress.channels.measuring._SECONDS", 1e-4)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return str(image_sets.digit_splits(tmp_path_factory.mktemp("digits") / "d", 200, 50, 100))


@pytest.fixture(scope="module")
def dense(digits, tmp_path_factory):
    """A trained network as `--preset` leaves it."""
    from compress.channels.scratch import train_preset
    from compress.data.images import Augmentation

    place = tmp_path_factory.mktemp("dense") / "net"
    how = tuning.TuneSettings(epochs=8, lr=0.1, batch_size=50, warmup=0.1)
    return train_preset(
        "resnet-8-slim", digits, place, settings=how, image_size=8,
        augmentation=Augmentation(flip=False),
    )  # fmt: skip


def _command(model, out, digits, *more):
    return ["pass-prune", *([str(model)] if model else []), "-o", str(out), "--data", digits,
            "--keep", "0.5", "--quiet", *QUICK, *more]  # fmt: skip


def _receipt(place):
    return json.loads((place / "receipt.json").read_text())


def test_from_scratch_to_half_the_network(digits, tmp_path):
    out = tmp_path / "half"
    more = ["--preset", "resnet-8-slim", "--image-size", "8", "--dense-epochs", "6"]
    assert call(_command(None, out, digits, *more, "--finetune-epochs", "1")) == 0
    receipt, before = _receipt(out), _receipt(tmp_path / "half-dense")
    assert receipt["after"]["macs"] <= 0.5 * receipt["before"]["macs"]
    dense = before["after"]["accuracy"][digits]["top1"]
    assert receipt["before"]["accuracy"][digits]["top1"] == dense
    told = receipt["channels"]["methods"]
    assert set(told) == {"pass", "l1"}  # the row without search
    assert {"cut", "repaired", "tuned"} <= set(told["pass"])
    assert len(told["pass"]["search"]["validation"]) == 2
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.id2label[3] == "digit3"
    prompt = read_prompt(out)
    assert prompt is not None
    assert prompt.needed is False
    assert (out / "prompt.png").is_file()
    assert call(_command(None, out, digits, *more, "--overwrite")) == 0  # the dense one is kept


def test_the_prompt_can_stay(dense, digits, tmp_path):
    more = ["--keep-prompt", "--finetune-epochs", "1", "--no-recurrence", "--start", "l1"]
    assert call(_command(dense, tmp_path / "out", digits, *more)) == 0
    receipt = _receipt(tmp_path / "out")
    assert f"{digits} with prompt" in receipt["after"]["accuracy"]
    assert read_prompt(tmp_path / "out").needed
    assert receipt["channels"]["methods"]["pass"]["search"]["validation"][0]["epoch"] == 0


def test_a_new_head_for_other_classes(dense, tmp_path):
    place = tmp_path / "two"
    names = ["even" if n % 2 == 0 else "odd" for n in range(10)]
    image_sets.write_folders(place, 200, names=names)
    command = _command(dense, tmp_path / "out", str(place), "--head-epochs", "4")
    assert call(command) == 2  # ten outputs, two classes
    assert call([*command, "--new-head"]) == 0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "even", 1: "odd"}
    assert _receipt(tmp_path / "out")["before"]["accuracy"][str(place)]["top1"] > 0.6


@pytest.fixture(scope="module")
def whole(dense, digits, tmp_path_factory):
    """What an uninterrupted run makes."""
    place = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.channels.measuring._ROUNDS", 2)
        assert call(_command(dense, place, digits, *TUNED)) == 0
    return place


@pytest.mark.parametrize(("stage", "step"), [("searching", 5), ("tuning", 3)])
def test_a_killed_command_resumes_to_the_same_bytes(
    dense, digits, whole, tmp_path, monkeypatch, stage, step
):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

    real = looping.loop
    module = {"searching": searching, "tuning": tuning}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(
            module,
            "loop",
            lambda *args, callbacks=(), **options: real(
                *args, callbacks=(*callbacks, Kill()), **options
            ),
        )
        assert call(_command(dense, tmp_path / "a", digits, *TUNED)) == 130
    assert not (tmp_path / "a").exists()
    assert call(_command(dense, tmp_path / "a", digits, *TUNED, "--resume")) == 0
    for name in ("model.safetensors", "plan.json", "config.json", "prompt.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (whole / name).read_bytes(), name


def test_plans_of_l1_know_no_batch_size(dense, digits):
    from compress.channels.command import pass_prune

    options = {"data": digits, "keep": 0.5, "method": "l1", "round_to": 2, "dry_run": True}
    digests = {pass_prune(dense, batch_size=size, **options).plan.digest() for size in (16, 50)}
    assert len(digests) == 1


def test_two_processes_make_what_one_makes(dense, digits, tmp_path):
    more = ["--micro-batch", "25", "--device", "cpu"]
    assert call(_command(dense, tmp_path / "one", digits, *more)) == 0

    def run():
        AcceleratorState._reset_state(reset_partial_state=True)  # that of a lone process
        return call(_command(dense, tmp_path / "two", digits, *more))

    ended = in_ranks(2, run, tmp_path / "said")
    assert [e.code for e in ended] == [0, 0], ended
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    same = [(tmp_path / n / "plan.json").read_bytes() for n in ("one", "two")]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--preset", "resnet-8"], "trains a network, and"),
        (["--stats", "median"], "`--stats median`"),
        (["--start", "magic"], "`--start magic`"),
        (["--augment", "blur"], "`--augment blur`"),
        (["--precision", "bfloat16"], "`--precision bfloat16`"),
        (["--prompt-share", "1"], "needs its prompt"),
        (["--prompt-size", "5"], "too wide for images of 8 pixels"),
        (["--image-size", "2"], "smaller than the network's stride"),
    ],
)
def test_bad_requests_are_one_line(dense, digits, tmp_path, capsys, more, said):
    assert call(_command(dense, tmp_path / "out", digits, *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_without_a_model(digits, tmp_path, capsys):
    assert call(_command(None, tmp_path / "out", digits)) == 2
    assert "--preset NAME" in capsys.readouterr().err
