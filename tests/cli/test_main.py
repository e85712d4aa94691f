"""The command line as a script sees it: help, exit codes, one-line errors, what is imported."""

import subprocess
import sys

import pytest

from compress.cli.main import COMMANDS, call

HEAVY = {"torch", "transformers", "rich", "numpy", "datasets", "yaml", "matplotlib"}


def imported_by(*argv: str) -> set[str]:
    """Top-level packages that a fresh process has imported after running this command line."""
    code = (
        "import sys; from compress.cli.main import call; call(sys.argv[1:]);"
        "print('\\n' + ' '.join({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    return set(done.stderr.split("\n")[-2].split())


@pytest.mark.parametrize("argv", [(), ("--help",), ("--version",)], ids=str)
def test_the_help_screen_imports_nothing_heavy(argv):
    assert not imported_by(*argv) & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_help_imports_nothing_heavy(name):
    assert not imported_by(name, "--help") & HEAVY


def test_help_lists_every_command_in_its_section(capsys):
    assert call(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in COMMANDS.items():
        row = next(i for i, line in enumerate(lines) if line.startswith(f"  {name} "))
        section = next(line for line in reversed(lines[:row]) if line and line[0] != " ")
        assert section == entry.section
        assert entry.summary in lines[row]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_help_fits_80_columns(name, capsys):
    assert call([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert f"Usage: compress {name}" in out


@pytest.mark.parametrize(
    ("argv", "error", "hint"),
    [
        (["alpha-prun"], "`alpha-prun` isn't a command", "did you mean `alpha-prune`?"),
        (["alpha-prune", "m", "--sparsty", "1"], "no such option `--sparsty`", "`--sparsity`"),
        (["alpha-prune"], "missing argument 'MODEL'", "--help"),
        (["alpha-prune", "m", "--samples", "many"], "'many' is not a valid integer", "--help"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(argv, error, hint, capsys):
    assert call(argv) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1] == ""
    assert lines[2].startswith("hint: ")
    assert hint in captured.err


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (OSError(28, "No space left on device"), 3, "disk is full"),
        (MemoryError(), 3, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 3, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted; continue with: compress doctor -o out --resume"),
        (ZeroDivisionError("division by zero"), 3, "unexpected ZeroDivisionError"),
    ],
    ids=lambda value: getattr(type(value), "__name__", None),
)
def test_failures_of_the_machine_have_their_codes(raised, code, words, capsys, monkeypatch):
    from compress.cli import doctor

    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(doctor.command, "invoke", fail)
    monkeypatch.setattr(doctor.command, "parse_args", lambda ctx, args: args)
    assert call(["doctor", "-o", "out"]) == code
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch):
    from compress.cli import doctor

    monkeypatch.setattr(doctor.command, "invoke", lambda ctx: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(["doctor", "--debug"])
