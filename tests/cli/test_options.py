"""--config: any option from YAML, the command line wins, mistakes are named."""

import dataclasses
from pathlib import Path

import pytest

from compress.cli import alpha_prune
from compress.cli.main import COMMANDS, call
from compress.sparsity.settings import AlphaPruneSettings

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "options"


@pytest.fixture
def seen(monkeypatch):
    """What `alpha_prune` would have been called with."""
    calls = {}
    import compress.sparsity.command as target

    class Done:
        def as_dict(self):
            return {}

        def render(self):
            return ""

    def record(model, **given):
        calls.update(given, model=model)
        return Done()

    monkeypatch.setattr(target, "alpha_prune", record)
    return calls


def test_config_gives_options_and_the_command_line_wins(tmp_path, seen):
    file = tmp_path / "c.yaml"
    file.write_text("sparsity: 0.7\nmethod: magnitude\nppl: [a.txt, b.txt]\nmin-sparsity: 0.1\n")
    assert call(["alpha-prune", "m", "-o", "o", "--config", str(file), "--method", "wanda"]) == 0
    assert seen["sparsity"] == 0.7
    assert seen["method"] == "wanda"
    assert seen["ppl"] == ("a.txt", "b.txt")
    assert seen["min_sparsity"] == 0.1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "sparsty: 0.7\n",
            ["c.yaml:1:1: `sparsty` isn't an option of alpha-prune", "did you mean `sparsity`"],
        ),
        ("a: [1\n", ["isn't YAML"]),
        ("- 1\n", ["`name: value` lines"]),
        ("sparsity: lots\n", ["'lots' is not a valid float"]),
        (None, ["No such file"]),
    ],
)
def test_a_wrong_config_is_exit_code_2(text, words, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    assert call(["alpha-prune", "m", "-o", "o", "--config", str(file)]) == 2
    err = capsys.readouterr().err
    for word in words:
        assert word in err


def test_a_pattern_in_a_config_is_no_number_of_minutes(tmp_path, seen):
    file = tmp_path / "c.yaml"
    file.write_text("pattern: 2:4\nskip: ['*.k_proj']\ndamp: 1e-3\n")
    assert call(["alpha-prune", "m", "-o", "o", "--config", str(file)]) == 0
    assert seen["pattern"] == "2:4"
    assert seen["damp"] == 0.001


def test_every_option_of_the_settings_has_a_switch():
    switches = {p.name for p in alpha_prune.command.params}
    assert {f.name for f in dataclasses.fields(AlphaPruneSettings)} <= switches


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_setting_is_one_that_the_command_takes(file, seen):
    command = next(name for name in COMMANDS if file.stem.startswith(name))
    assert call([command, "m", "-o", "o", "--config", str(file)]) == 0
    fields = {f.name for f in dataclasses.fields(AlphaPruneSettings)}
    AlphaPruneSettings(**{k: v for k, v in seen.items() if k in fields}).check(("alpha_peak",))
