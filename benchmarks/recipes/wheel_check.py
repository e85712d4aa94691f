"""Build the wheel, install it alone, and run the demo and a shipped recipe from an empty directory.

    python benchmarks/recipes/wheel_check.py [--wheel FILE] [--recipe NAME]

The wheel goes into a new virtual environment with `pip install --no-deps`; its dependencies are
those of the Python that runs this script, by a .pth file, so nothing large is downloaded. Prints
the wheel's size and what each step took; exits with 1 where one failed.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 20e6  # bytes


def build(place: Path) -> Path:
    """Return the wheel of this checkout."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(place), str(ROOT)], check=True)
    (wheel,) = place.glob("compress-*.whl")
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """Return the `bin` of a new environment that holds the wheel; dependencies are borrowed."""
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    # The borrowed packages may hold this checkout itself; the wheel is to lie before it.
    subprocess.run([*pip, "--ignore-installed", str(wheel)], check=True)
    return place / "bin"


def timed(name: str, argv: list[str], place: Path) -> None:
    """Run a command in `place` and print what it took."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    begun = time.monotonic()
    done = subprocess.run(
        argv, cwd=place, env={**kept, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    seconds = time.monotonic() - begun
    if done.returncode:
        sys.exit(f"{name} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    print(f"{name:<36} {seconds:6.1f} s", flush=True)


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--recipe", default="prune-recover-evaluate")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wheel-") as made:
        place = Path(made)
        wheel = given.wheel or build(place / "dist")
        size = wheel.stat().st_size
        print(f"{wheel.name:<36} {size / 1e6:6.2f} MB", flush=True)
        if size > LARGEST:
            sys.exit("the wheel is above 20 MB")
        binaries = install(wheel.absolute(), place / "env")
        work = place / "work"
        work.mkdir()
        code = "import compress; print(compress.__file__)"
        found = subprocess.run(
            [str(binaries / "python"), "-c", code], cwd=work, capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        if str(place / "env") not in found.stdout:
            sys.exit(f"not the wheel's package: {found.stdout}{found.stderr}")
        compress = str(binaries / "compress")
        timed("compress demo", [compress, "demo"], work)
        run = [compress, "run", given.recipe, "-o", "out", "--set", "quick=true"]
        timed(f"compress run {given.recipe}", run, work)


if __name__ == "__main__":
    main()
