"""Every shipped recipe in its quick form: does it run, how long does it take, what does it find?

    python benchmarks/recipes/quick.py PLACE [--anew] [NAME …]
    python benchmarks/recipes/quick.py PLACE --table > benchmarks/recipes/quick.md

PLACE/NAME is a recipe's run, PLACE/NAME.json its line. Run it again and it goes on with those that
have none. The exit code is 1 if a recipe failed. Steps share one process that has torch imported;
its start is in the time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from compress.recipes.listing import shipped_list

SLOW = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--anew", action="store_true", help="run those that have a line too")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    given = parser.parse_intermixed_args()
    names = given.names or [r["name"] for r in shipped_list().recipes if r["quick"]]
    given.place.mkdir(parents=True, exist_ok=True)
    if not given.table:
        for name in names:
            line = given.place / f"{name}.json"
            if given.anew or not line.is_file() or json.loads(line.read_text())["code"]:
                found = run(name, given.place, given.anew)
                line.write_text(json.dumps(found) + "\n")
                told = "ok" if found["code"] == 0 else found["error"]
                print(f"{name:<28} {found['seconds']:6.1f} s  {told}", flush=True)
    lines = [json.loads((given.place / f"{n}.json").read_text()) for n in names]
    if given.table:
        print(table(lines))
    return int(any(line["code"] for line in lines))


def run(name: str, place: Path, anew: bool) -> dict:
    """One recipe, as a user starts it."""
    argv = ["run", name, "--set", "quick=true", "-o", str(place / name), "--json", "--overwrite"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "compress", *argv, *(["--no-cache"] if anew else [])],
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    found = {"name": name, "code": done.returncode, "seconds": round(seconds, 1)}
    found["cpus"], found["load"] = os.cpu_count(), round(os.getloadavg()[0], 1)
    if done.returncode:
        return {**found, "error": " ".join(done.stderr.split())[-300:]}
    told = json.loads(done.stdout)
    steps = told["steps"]
    return {
        **found,
        "cells": told["cells"],
        "steps": len(steps),
        "cached": sum(s.get("cached", False) for s in steps),
        "steps_seconds": round(sum(s.get("seconds", 0) for s in steps), 1),
        "rows": [row(r) for r in told.get("table", {}).get("runs", [])],
        "versions": told["versions"],
    }


def row(run: dict) -> dict:
    """A row's name and its first measure."""
    after = run.get("after") or {}
    for spec, score in (after.get("perplexity") or {}).items():
        return {"name": run["name"], "measure": f"ppl {spec}", **score}
    receipt = Path(run["path"])
    if receipt.is_file():  # of the run that is now in place
        for score in (
            json.loads(receipt.read_text()).get("training", {}).get("valid") or {}
        ).values():
            return {"name": run["name"], "measure": "valid loss", **score}
    return {"name": run["name"]}


def table(lines: list[dict]) -> str:
    out = [
        "| recipe | cells | steps | seconds | first row | last row |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for line in lines:
        if line["code"]:
            out.append(f"| {line['name']} | | | {line['seconds']} | failed: {line['error']} | |")
            continue
        rows = [shown(r) for r in line["rows"]] or [""]
        slow = " (over a minute)" if line["seconds"] > SLOW else ""
        out.append(
            f"| {line['name']} | {line['cells']} | {line['steps']} | {line['seconds']}{slow} "
            f"| {rows[0]} | {rows[-1]} |"
        )
    return "\n".join(out)


def shown(row: dict) -> str:
    if "value" not in row:
        return row["name"]
    error = f" ± {row['stderr']:.2g}" if "stderr" in row else ""
    return f"{row['name']}: {row['measure']} {row['value']:.3g}{error}"


if __name__ == "__main__":
    raise SystemExit(main())
