"""The group of all commands, its help screen, and the one place where errors become exit codes.

Imports click alone: a command's file is imported when that command runs, torch and rich later
still, so `compress --help` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import click

from compress import __version__, launcher
from compress.errors import CompressError, near_names

TAGLINE = "make checkpoints smaller, and train ones that stay healthy"
START = """\
Start:  compress demo                     (no network, about 2 minutes)
Then:   compress alpha-prune MODEL -o OUT --sparsity 0.6 --ppl wikitext2"""


_PATIENCE = 5.0  # seconds by which one process may be ahead of another


class Entry(NamedTuple):
    """One line of the help screen and where its command lives."""

    section: str
    summary: str
    module: str
    shared: bool = False
    """Whether the processes of a launcher share its work; else the first does it all."""
    shared_with: str | None = None
    """The option with which they do, where it depends on one."""


COMMANDS: dict[str, Entry] = {
    "alpha-prune": Entry(
        "Make smaller",
        "zero weights, layer by layer, by the shape of their spectra",
        "compress.cli.alpha_prune",
        shared=True,
    ),
    "cd-moe-condense": Entry(
        "Make smaller",
        "mixture-of-experts layers become small dense ones",
        "compress.cli.cd_moe_condense",
    ),
    "lowrank-svd": Entry(
        "Make smaller",
        "layers become two thin ones; or train such a model",
        "compress.cli.lowrank_svd",
        shared_with="--from-scratch",
    ),
    "pass-prune": Entry(
        "Make smaller",
        "channels, heads and MLP units leave vision networks",
        "compress.cli.pass_prune",
    ),
    "train-spam": Entry(
        "Train",
        "SPAM, Stable-SPAM and baselines: an Adam that survives spikes",
        "compress.cli.train_spam",
        shared=True,
    ),
    "train-meap": Entry(
        "Train",
        "next-token prediction on partly masked input",
        "compress.cli.train_meap",
        shared=True,
    ),
    "train-mixln": Entry(
        "Train",
        "norms placed so that deep layers stay useful",
        "compress.cli.train_mixln",
        shared=True,
    ),
    "train-side": Entry(
        "Train",
        "drought severity and impact from texts and measurements",
        "compress.cli.train_side",
    ),
    "calib-study": Entry(
        "Measure", "which calibration data prunes best", "compress.cli.calib_study"
    ),
    "inspect": Entry(
        "Measure",
        "spectra, anatomy and size of a checkpoint; changes nothing",
        "compress.cli.inspect",
        shared=True,
    ),
    "eval": Entry(
        "Measure",
        "perplexity, tasks, speed, memory; one model or several",
        "compress.cli.evaluate",
    ),
    "report": Entry("Measure", "tables from receipts, one or many", "compress.cli.report"),
    "run": Entry("Work", "a recipe: steps, grids, resume", "compress.cli.run"),
    "export": Entry("Work", "an edited checkpoint in stock form", "compress.cli.export"),
    "demo": Entry(
        "Work", "the main job on what the package ships; no network", "compress.cli.demo"
    ),
    "completion": Entry(
        "Work", "bash, zsh, fish: completes commands and options", "compress.cli.completion"
    ),
    "doctor": Entry("Work", "what this machine has, and what to install", "compress.cli.doctor"),
}


class Commands(click.Group):
    """Commands by name from COMMANDS, imported only when one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help screen."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's file and return its click command."""
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else importlib.import_module(entry.module).command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names, or say which name is near."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise CommandUnknown(f"`{args[0]}` isn't a command", near_names(args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The screen of sections, one line a command; nothing is imported for it."""
        formatter.write(f"compress {__version__}: {TAGLINE}\n")
        width = max(map(len, COMMANDS)) + 2
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            formatter.write(f"\n{section}\n")
            for name, entry in COMMANDS.items():
                if entry.section == section:
                    formatter.write(f"  {name:<{width}}{entry.summary}\n")
        formatter.write(f"\n{START}\n\ncompress COMMAND --help tells the rest.\n")


class CommandUnknown(CompressError):
    """A command name that doesn't exist."""

    code = 2


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="compress %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Make checkpoints smaller, and train ones that stay healthy."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with CONTRACT's codes: 0, 2, 3 or 130."""
    sys.exit(call(sys.argv[1:] if argv is None else argv))


def call(argv: Sequence[str]) -> int:
    """Run one command line; return its exit code, the error (if any) told on stderr."""
    # transformers and datasets print advice on stderr and poll the network for version hints;
    # a script's stderr holds our one line.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = "--debug" in argv
    if launcher.world_size() > 1 and not _shared(argv):
        if launcher.rank():
            return 0
        launcher.go_alone()
    try:
        code = cli.main(args=list(argv), prog_name="compress", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.Abort) as error:
        return _told(error, _interrupted(argv), 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing to tell, nowhere to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        text, code = _explain(error)
        return _told(error, text, code)


def _shared(argv: Sequence[str]) -> bool:
    """Whether several processes have anything to share in this command line."""
    entry = COMMANDS.get(argv[0]) if argv else None
    alone = {"--help", "-h", "--depth"}  # inspect --depth runs the whole model at once
    if entry is None or alone & set(argv):
        return False
    return entry.shared or entry.shared_with in argv


def _interrupted(argv: Sequence[str]) -> str:
    again = [a for a in argv if a != "--resume"]
    resumable = "-o" in argv or argv[:1] == ["run"] or any(a.startswith("--output") for a in argv)
    hint = f"; continue with: compress {' '.join(again)} --resume" if resumable else ""
    return f"interrupted{hint}"


def _explain(error: Exception) -> tuple[str, int]:
    """Return `error` as one line with its hint, and the exit code."""
    if isinstance(error, CompressError):
        return _text(error.message, error.hint), error.code
    if isinstance(error, click.NoSuchOption):
        near = ", ".join(f"`{name}`" for name in error.possibilities or ())
        hint = f"did you mean {near}?" if near else "`--help` lists the options"
        return _text(f"no such option `{error.option_name}`", hint), 2
    if isinstance(error, click.ClickException):
        message = _lower_first(error.format_message().rstrip("."))
        return _text(message, "`--help` lists the options"), 2
    if _is_disk_full(error):
        message = "the disk is full; the output was not written"
        hint = "free some space, then run the same command again with `--resume`"
    elif _is_out_of_memory(error):
        message = "out of memory; the output was not written"
        hint = (
            "fewer `--samples`, a shorter `--seqlen` or another `--device`; what was finished is "
            "kept: add `--resume`"
        )
    else:
        message = f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        hint = "run it again with `--debug` to see where; this is a bug worth reporting"
    return _text(message, hint), 3


def _text(message: str, hint: str | None) -> str:
    return f"error: {message}" + (f"\n\nhint: {hint}" if hint else "")


def _told(error: BaseException, text: str, code: int) -> int:
    """Print an error and return its code; of several processes the first prints."""
    if launcher.rank() and not getattr(error, "untold", False):
        if not getattr(error, "reported", False):
            _linger()
    else:
        print(text, file=sys.stderr)
    return code


def _linger() -> None:
    """Leave the first process the time to speak: launchers end all as soon as one has failed."""
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    until = time.monotonic() + _PATIENCE
    while not ended and time.monotonic() < until:
        time.sleep(0.05)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _chain(error: BaseException | None) -> list[BaseException]:
    out: list[BaseException] = []
    while error is not None and error not in out:
        out.append(error)
        error = error.__cause__ or error.__context__
    return out


def _is_disk_full(error: BaseException) -> bool:
    # safetensors reports a full disk in words, not as an OSError with its number.
    return any(
        (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT))
        or "No space left on device" in str(e)
        for e in _chain(error)
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError is told by name, so that torch need not be imported here.
    return any(
        isinstance(e, MemoryError)
        or type(e).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(e)
        for e in _chain(error)
    )
