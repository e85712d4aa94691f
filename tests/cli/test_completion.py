"""`compress completion`: the shells' scripts, and what they are answered."""

import os
import subprocess
import sys

import pytest

from compress.cli.main import COMMANDS, call


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell, capsys):
    assert call(["completion", shell]) == 0
    assert f"_COMPRESS_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_another_shell_is_refused(capsys):
    assert call(["completion", "bsh"]) == 2
    assert "did you mean `bash`?" in capsys.readouterr().err


def answered(*words):
    """What bash is told for the last word."""
    env = {"COMP_WORDS": " ".join(["compress", *words]), "COMP_CWORD": str(len(words))}
    code = "from compress.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env, "_COMPRESS_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
    )
    return [line.split(",", 1)[1] for line in done.stdout.splitlines()]


def test_commands_options_and_recipes_are_completed():
    assert set(answered("")) == set(COMMANDS)
    assert answered("alpha-prune", "m", "--sparsi") == ["--sparsity"]
    assert "owl-comparison" in answered("run", "owl")


def test_bash_takes_the_script(tmp_path):
    source = subprocess.run(
        [sys.executable, "-m", "compress", "completion", "bash"], capture_output=True, text=True
    ).stdout
    done = subprocess.run(
        ["bash", "-c", f"{source}\ncomplete -p compress"], capture_output=True, text=True
    )
    if "4.4" in done.stderr:
        pytest.skip("this bash is older than 4.4")
    assert "_compress_completion compress" in done.stdout, done.stderr
