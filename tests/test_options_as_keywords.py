"""Each option of a command is a keyword of its function; the package says that it is typed."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compress
from compress.channels.settings import PruneSettings
from compress.cli.main import COMMANDS
from compress.drought.settings import SideSettings
from compress.experts.settings import CondenseSettings
from compress.lowrank.scratch.settings import ScratchSettings
from compress.lowrank.settings import LowRankSettings
from compress.sparsity.settings import AlphaPruneSettings
from compress.study.settings import StudySettings
from compress.training.command import train
from compress.training.settings import TrainSettings

TERMINAL = {"as_json", "quiet", "debug", "config", "push_to_hub"}
"""Options about the terminal, files of options, and the upload once all is done."""
OTHERWISE = {
    "inspect": {
        "esd_exact": "exact", "no_cache": "cache",
        "depth": None, "data": None, "samples": None, "seqlen": None,  # inspect_depth's
    },
    "run": {"set_": "set", "listed": None},
    "train-side": {"out": None, "predict": None, "simulate": None},  # predict_side's
}  # fmt: skip
"""Options whose keyword has another name, or that another function serves (None)."""
SETTINGS = {
    "alpha-prune": (AlphaPruneSettings,),
    "calib-study": (StudySettings,),
    "cd-moe-condense": (CondenseSettings,),
    "lowrank-svd": (LowRankSettings, ScratchSettings),
    "pass-prune": (PruneSettings,),
    "train-meap": (TrainSettings,),
    "train-mixln": (TrainSettings,),
    "train-side": (SideSettings,),
    "train-spam": (TrainSettings,),
}
CALLED = sorted(COMMANDS.keys() - {"completion"})


def function_of(command):
    return compress.evaluate if command == "eval" else getattr(compress, command.replace("-", "_"))


@pytest.mark.parametrize("name", CALLED)
def test_every_option_is_a_keyword(name):
    command = importlib.import_module(COMMANDS[name].module).command
    function = function_of(name)
    taken = set(inspect.signature(function).parameters)
    if name in ("train-spam", "train-meap", "train-mixln"):
        taken |= set(inspect.signature(train).parameters)
    for settings in SETTINGS.get(name, ()):
        taken |= {field.name for field in dataclasses.fields(settings)}
    other = OTHERWISE.get(name, {})
    wanted = {other.get(p.name, p.name) for p in command.params if p.name not in TERMINAL}
    assert wanted - {None} - taken == set()


def test_the_package_says_that_it_is_typed():
    assert (Path(compress.__file__).parent / "py.typed").is_file()


def test_training_goes_on_from_a_model_in_memory_and_leaves_it_alone(demo_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compress.train_spam(
        model, tmp_path / "out", tokenizer=tokenizer, data="demo", steps=2, batch_size=2,
        seqlen=32, device="cpu",
    )  # fmt: skip
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    moved = [n for n, tensor in trained.items() if not torch.equal(tensor, before[n])]
    assert len(moved) > len(before) / 2
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


def test_a_tokenizer_in_memory_without_such_a_model_is_refused(demo_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    with pytest.raises(compress.errors.RequestError, match="goes with a model in memory"):
        compress.train_meap(demo_model, tmp_path / "out", tokenizer=tokenizer, data="demo")
    assert not list(tmp_path.iterdir())
