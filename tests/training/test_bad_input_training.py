"""Every bad request: one line, exit code 2, nothing written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from compress.cli import main
from compress.cli.main import COMMANDS, Entry

NAMES = ("train-spam", "train-meap", "train-mixln")


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    for name in NAMES:
        module = f"compress.cli.{name.replace('-', '_')}"
        monkeypatch.setitem(COMMANDS, name, Entry("Train", "trains", module))


@pytest.fixture
def refused(config, text, tmp_path, capsys):
    """Run a command that must be refused; returns the line on stderr."""

    def run(*arguments, command="train-spam", model=config, data=text, length=("--steps", "2")):
        place = tmp_path / "deep" / "out"
        named = [] if model is None else [str(model)]
        given = [] if data is None else ["--data", str(data)]
        line = [command, *named, "-o", str(place), *given, *length, "--device", "cpu",
                "--seqlen", "24", "--batch-size", "4", "--optimizer", "adamw"]  # fmt: skip
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        code = main.call([*line, *map(str, arguments)])
        said = capsys.readouterr().err
        assert code == 2, said
        assert said.startswith("error: ")
        assert "Traceback" not in said
        assert len(said.split("\n\nhint: ")[0].splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
        return said

    return run


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("train-meap", ["--mask-ratio", "1"], "`--mask-ratio 1` is outside [0, 1)"),
        ("train-meap", ["--mask-ratio", "-0.2"], "`--mask-ratio -0.2` is outside [0, 1)"),
        ("train-meap", ["--mask-token", "</s>"], "`--mask-token </s>` is the tokenizer's eos"),
        ("train-mixln", ["--post-fraction", "1.2"], "`--post-fraction 1.2` is outside [0, 1]"),
        ("train-mixln", ["--post-fraction", "-1"], "`--post-fraction -1` is outside [0, 1]"),
        ("train-spam", ["--density", "0"], "`--density 0` is outside (0, 1]"),
        ("train-spam", ["--density", "1.5"], "`--density 1.5` is outside (0, 1]"),
        ("train-spam", ["--lr", "0"], "`--lr 0` isn't a positive number"),
        ("train-spam", ["--lr", "-0.1"], "`--lr -0.1` isn't a positive number"),
        ("train-spam", ["--optimizer", "adamw", "--density", "0.5"], "`--density` can't act"),
        ("train-spam", ["--optimizer", "spam", "--gamma1", "0.5"], "`--gamma1` can't act"),
        ("train-spam", ["--norm", "pre", "--post-fraction", "0.5"], "`--post-fraction` can't act"),
        ("train-spam", ["--mask-ratio", "0.1"], "`--mask-ratio` can't act"),
        ("train-spam", ["--tokens", "100"], "`--steps` and `--tokens`"),
        ("train-spam", ["--optimizer", "spamm"], "`--optimizer spamm` isn't known"),
        ("train-spam", ["--norm", "mixed"], "`--norm mixed` isn't known"),
        ("train-spam", ["--preset", "llama-9m"], "a model and `--preset` are both named"),
        ("train-spam", ["--seqlen", "65"], "`--seqlen 65` is above the model's limit of 64"),
        ("train-spam", ["--precision", "fp16"], "`--precision fp16` needs a GPU"),
        ("train-spam", ["--fsdp"], "`--fsdp` needs GPUs"),
        ("train-spam", ["--micro-batch", "3"], "`--micro-batch 3` doesn't divide"),
        ("train-spam", ["--tokenizer", "/nowhere"], "`--tokenizer /nowhere` can't be used"),
        ("train-spam", ["--device", "gpu9"], "`--device gpu9`"),
        ("train-spam", ["--dtype", "int3"], "`--dtype int3`"),
        ("train-spam", ["--ppl", "nosuchtext"], "nosuchtext"),
        ("train-spam", ["--valid", "nosuchtext"], "nosuchtext"),
        ("train-spam", ["--eval-seqlen", "99"], "`--eval-seqlen 99` is above the model's limit"),
        ("train-spam", ["--steps", "many"], "--steps"),
        ("train-spam", ["--no-such-option"], "no such option"),
    ],
)
def test_options(command, arguments, said, refused):
    assert said in refused(*arguments, command=command)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no text"), (" \n\n", "holds no text"), ("short", "and one sequence takes 25")],
)
@pytest.mark.parametrize("option", ["--data", "--valid"])
def test_text_that_is_too_short(option, content, said, refused, tmp_path):
    place = tmp_path / "short.txt"
    place.write_text(content)
    if option == "--data":
        message = refused(data=place)
    else:
        message = refused("--valid", place)
    assert said in message or "0 tokens" in message
    assert "short.txt" in message


def test_text_that_is_broken_further_on(refused, tmp_path):
    place = tmp_path / "broken.jsonl"
    place.write_text('{"text": "fine words here"}\n' * 200 + "{\n")
    assert "broken.jsonl:201: not JSON" in refused(data=place)


def test_no_text_no_length_no_model(refused):
    assert "no training text" in refused(data=None)
    assert "no length of the run" in refused(length=())
    assert "no model" in refused(model=None)


def test_models_that_can_not_be_trained(refused, config, tmp_path):
    assert "no such directory" in refused(model=tmp_path / "nowhere")
    broken = tmp_path / "broken.json"
    broken.write_text('{"model_type": "lama"}')
    assert "unknown model_type `lama`" in refused("--tokenizer", config, model=broken)
    broken.write_text('{"hidden_size": 3}')
    assert "names no model_type" in refused("--tokenizer", config, model=broken)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(config / "config.json", bare / "config.json")
    assert "has no tokenizer" in refused(model=bare)
    bert = tiny_models.make_checkpoint("bert", tmp_path / "bert")
    assert "no causal language model" in refused(model=bert)
    odd = tmp_path / "odd"
    shutil.copytree(config, odd)
    fields = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**fields, "hidden_size": 30}))
    assert "odd" in refused(model=odd)
    (odd / "config.json").write_text(json.dumps({**fields, "vocab_size": 50}))
    assert "has vocab_size 50, and the tokenizer" in refused(model=odd)


def test_weights_that_are_not_finite(refused, tmp_path):
    source = tiny_models.make_checkpoint("llama", tmp_path / "source")
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    assert "`model.norm.weight`" in refused(model=source)


def test_options_that_a_trained_model_does_not_take(refused, tmp_path):
    source = tiny_models.make_checkpoint("llama", tmp_path / "source")
    assert "`--embed-std` can't act" in refused("--embed-std", "1", model=source)
    assert "`--init scaled` can't act" in refused("--init", "scaled", model=source)


def test_norms_that_can_not_be_placed(refused, tmp_path):
    parallel = tiny_models.make_checkpoint("gpt_neox", tmp_path / "neox")  # parallel residual
    assert "neox" in refused(model=parallel, command="train-mixln").lower()
    phi = tiny_models.make_checkpoint("phi", tmp_path / "phi")
    assert "phi" in refused(model=phi, command="train-mixln").lower()


def test_documents_that_can_not_be_kept_apart(refused, tmp_path):
    source = tiny_models.make_checkpoint("opt", tmp_path / "opt")
    assert "`--separate-documents` can't act" in refused("--separate-documents", model=source)


def test_samples_without_what_is_asked(refused, questions, text):
    assert "column `x`" in refused("--sft", "x:a", data=questions)
    assert "column `z`" in refused("--sft", "q:z", data=questions)
    assert "names the column" in refused("--sft", "q:a", data=f"{questions}:q")


def test_prompts_that_fill_every_sequence(refused, tmp_path):
    place = tmp_path / "long.jsonl"
    place.write_text(json.dumps({"q": "w" * 300, "a": "yes"}) + "\n")
    assert "no prompt shorter than a sequence of 24" in refused("--sft", "q:a", data=place)


def test_no_output(config, text, capsys):
    code = main.call(["train-spam", str(config), "--data", str(text), "--steps", "2"])
    assert code == 2
    assert "no output directory" in capsys.readouterr().err


def test_the_model_itself_as_output(config, text, capsys):
    code = main.call(
        ["train-spam", str(config), "-o", str(config), "--data", str(text), "--steps", "2"]
    )
    assert code == 2
    assert "is the source model's directory" in capsys.readouterr().err


def test_nothing_to_resume(refused):
    assert "nothing to resume" in refused("--resume")


def test_a_run_that_fails_says_three_and_how_to_resume(config, text, tmp_path, capsys, monkeypatch):
    from compress.training import trainer

    real = trainer.Trainer.compute_loss
    monkeypatch.setattr(
        trainer.Trainer, "compute_loss", lambda self, *a, **k: real(self, *a, **k) * torch.inf
    )
    line = ["train-spam", str(config), "-o", str(tmp_path / "out"), "--data", str(text), "--steps",
            "2", "--device", "cpu", "--seqlen", "24", "--batch-size", "4",
            "--optimizer", "adamw"]  # fmt: skip
    assert main.call(line) == 3
    said = capsys.readouterr().err
    assert "the loss isn't finite in step 1" in said
    assert "--resume --skip-nonfinite 1" in said
    assert not (tmp_path / "out").exists()
