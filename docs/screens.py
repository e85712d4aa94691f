"""Run the commands that the pages show, and keep what they print and draw.

    python docs/screens.py [NAME…]

Writes `docs/screens/NAME.txt` and pictures beside it. Runs what the package ships, so the figures
are of tiny models; each run takes seconds. The pages include the files: nothing in them is typed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


class Screen(NamedTuple):
    """One capture.

    Attributes:
        commands: run in turn in one directory; all but the last silently.
        pictures: file there -> name under docs/screens.
        until: text of a bar; the last command is captured in a terminal (of tmux) in the middle of
            its run, once half of that bar is full.
    """

    commands: tuple[str, ...]
    pictures: Mapping[str, str] = MappingProxyType({})
    until: str = ""


PRUNED = (
    "compress alpha-prune calib_data/tiny-llama -o OUT --sparsity 0.6 --metric alpha_mid "
    "--calib demo --samples 32 --seqlen 128 --ppl demo --limit 32"
)
MAGNITUDE = (
    "compress alpha-prune calib_data/tiny-llama -o pruned --method magnitude --sparsity 0.5 "
    "--allocation uniform"
)
SCREENS = {
    "help": Screen(("compress --help",)),
    "alpha-prune": Screen((PRUNED,)),
    "report": Screen(
        (
            PRUNED.replace("OUT", "alpha"),
            PRUNED.replace("OUT", "uniform").replace("--metric alpha_mid", "--allocation uniform"),
            "compress report uniform alpha --png shares.png",
        ),
        {"shares.png": "shares.png"},
    ),
    "inspect": Screen(
        ("compress inspect calib_data/tiny-llama --plot alpha_mid --png spectra.png",),
        {"spectra.png": "spectra.png"},
    ),
    "depth": Screen(
        ("compress inspect calib_data/tiny-llama --depth --data demo --samples 16 --seqlen 128",)
    ),
    "cd-moe-condense": Screen(
        (
            "compress cd-moe-condense calib_data/tiny-moe -o OUT --layers 2 --calib demo "
            "--samples 64 --seqlen 128 --batch-size 8 --ppl demo --limit 32",
        ),
        {"OUT/experts.png": "experts.png"},
    ),
    "lowrank-svd": Screen(
        (
            "compress lowrank-svd calib_data/tiny-llama -o OUT --keep 0.7 --calib demo "
            "--samples 64 --seqlen 128 --ppl demo --limit 32",
        )
    ),
    "export": Screen(
        (
            MAGNITUDE,
            "compress export pruned -o packed --to bitmask",
        )
    ),
    "eval": Screen(
        (
            MAGNITUDE,
            "compress eval pruned --against calib_data/tiny-llama --ppl demo --limit 32 "
            "--tasks tiny_commonsense,tiny_arithmetic,tiny_entailment",
        )
    ),
    "distances": Screen(
        (
            MAGNITUDE,
            "compress eval pruned --against calib_data/tiny-llama --distances --seqlen 128",
        )
    ),
    "pass-prune": Screen(
        (
            "compress pass-prune calib_data/tiny-resnet -o OUT --data calib_data/shapes --keep 0.5 "
            "--mask-epochs 3 --mask-lr 1e-2 --finetune-epochs 2 --lr 0.02 --augment flip "
            "--baselines random,l1,taylor --round-to 1",
        )
    ),
    "train-side": Screen(
        (
            "compress train-side --simulate made",
            "compress train-side --series made/simulated_series.csv --dry-run",
        )
    ),
    "train-spam": Screen(
        (
            "compress train-spam calib_data/tiny-llama -o OUT --data demo --steps 30 "
            "--seqlen 128 --batch-size 8 --spikes",
        ),
        {"OUT/loss.png": "loss.png"},
    ),
    "failing": Screen(
        (
            "compress train-spam calib_data/tiny-llama -o OUT --data demo --steps 30 "
            "--seqlen 128 --batch-size 8 --lr 1e18 --optimizer adamw --max-grad-norm 0",
        )
    ),
    "running": Screen(
        (
            "compress alpha-prune calib_data/tiny-llama -o OUT --sparsity 0.6 --method sparsegpt "
            "--calib demo --samples 128 --seqlen 256 --allocation uniform",
        ),
        until="prune",
    ),
    "wrong": Screen(("compress alpha-prune calib_data/tiny-lama -o OUT --sparsty 0.6",)),
}


def capture(screen: Screen) -> str:
    """Run a screen's commands; return the last one with what it printed."""
    environment = {**os.environ, "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "calib_data").symlink_to(ROOT / "calib_data")
        for command in screen.commands[: -1 if screen.until else None]:
            argv = [sys.executable, "-m", *shlex.split(command)]
            done = subprocess.run(
                argv, cwd=place, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if screen.until:
            return midway(screen, Path(place), environment)
        for source, name in screen.pictures.items():
            shutil.copyfile(Path(place) / source, HERE / "screens" / name)
        said = done.stdout.replace(f"{place}/", "").replace(str(ROOT), ".")
    shown = screen.commands[-1]
    code = "" if done.returncode == 0 else f"\n[exit code {done.returncode}]\n"
    return f"$ {shown}\n{said.rstrip()}\n{code}"


def midway(screen: Screen, place: Path, environment: Mapping[str, str]) -> str:
    """Run the last command in a terminal of 80 columns; return it as it stands half-way.

    Raises:
        RuntimeError: the bar never was half full.
    """
    tmux = ["tmux", "-L", f"screens-{os.getpid()}"]
    argv = [sys.executable, "-m", *shlex.split(screen.commands[-1])]
    bar = re.compile(rf"{screen.until}.* (\d+)/(\d+)")
    start = [*tmux, "new-session", "-d", "-x", "80", "-y", "24", shlex.join(argv)]
    subprocess.run(start, cwd=place, env={**environment, "TERM": "xterm-256color"}, check=True)
    try:
        for _ in range(1200):
            time.sleep(0.05)
            pane = subprocess.run(
                [*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=False
            ).stdout
            found = bar.search(pane)
            if found and int(found[1]) * 2 >= int(found[2]) > int(found[1]):
                return f"$ {screen.commands[-1]}\n{pane.rstrip()}\n"
        raise RuntimeError(f"no bar {screen.until!r} that is half full in:\n{pane}")
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, check=False)


def main() -> None:
    """Capture the screens that are asked for, all by default."""
    (HERE / "screens").mkdir(exist_ok=True)
    for name in sys.argv[1:] or SCREENS:
        (HERE / "screens" / f"{name}.txt").write_text(capture(SCREENS[name]), encoding="utf-8")
        print(name, flush=True)


if __name__ == "__main__":
    main()
