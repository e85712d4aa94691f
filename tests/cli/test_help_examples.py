"""The examples in every command's help: their options exist, and the cheap ones are run."""

import importlib
import re
import shlex

import pytest

from compress.cli.main import COMMANDS, call
from compress.data.registry import shipped

DOORS = {name: importlib.import_module(entry.module).command for name, entry in COMMANDS.items()}
REDIRECTS = {">", ">>", "|"}
# What runs in seconds, with a model that is here in place of the example's.
RUN = {
    "inspect": {"./llama-1b": "tiny-llama"},
    "completion": {},
    "eval": {"./llama-1b-s60": "tiny-llama", "./llama-1b": "tiny-llama", "wiki.txt": "demo"},
}
MORE = {"eval": ["--limit", "1", "--eval-seqlen", "32"]}


def examples(name):
    """The example lines of a command's help, without the program's name."""
    for paragraph in re.split(r"\n\s*\n", DOORS[name].help or ""):
        found = re.match(r"\s*Examples?: compress (.*)", " ".join(paragraph.split()))
        if found:
            words = shlex.split(found[1])
            end = next((i for i, word in enumerate(words) if word in REDIRECTS), len(words))
            yield words[:end]


def test_every_command_that_takes_something_shows_an_example():
    without = {name for name in COMMANDS if not list(examples(name))}
    assert without <= {"demo", "doctor"}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_a_line_that_the_command_takes(name):
    for command, *words in examples(name):
        assert command == name
        context = DOORS[name].make_context(name, list(words))
        assert context.params


@pytest.mark.parametrize("name", RUN)
def test_a_cheap_example_runs(name, capsys):
    (_, *words), *_ = examples(name)
    here = {old: str(shipped(new)) if new != "demo" else new for old, new in RUN[name].items()}
    assert set(here) <= set(words)
    assert call([name, *(here.get(w, w) for w in words), *MORE.get(name, [])]) == 0
    assert capsys.readouterr().out
