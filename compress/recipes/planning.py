"""What a run would do, without doing it: which steps are known, how long the others take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.recipes.graph import Graph, Planned
from compress.recipes.keys import Contents, key_of
from compress.recipes.launching import Plain
from compress.recipes.mistakes import Mistakes
from compress.recipes.overview import Times, Watch
from compress.recipes.running import Choices, Run
from compress.recipes.store import Store
from compress.reports.receipt import SCHEMA


def plan_of(
    graph: Graph,
    store: Store,
    env: Mapping[str, str],
    known: Contents,
    choices: Choices,
    times: Times,
) -> dict[str, Any]:
    """The graph of a run with what is known of its cost.

    Returns:
        "graph": a row a step: how often it runs, how many are known from earlier runs, what it
        waits for, and, where it ran before, "seconds" and "bytes" of one; "steps": every instance
        with its command line; "seconds" and "bytes" of all.
    """
    for _, record in store.known.values():
        times.add(record)
    watch = Watch([], times, lambda place: Path(), lambda text: None, quiet=True)
    run = Run(graph, store, Plain(env), env, choices, watch, known)
    rows: dict[str, dict[str, Any]] = {}
    steps = []
    for place, instance in graph.instances.items():
        step = instance.step
        row = rows.setdefault(step.name, _row(instance.step.name, step.program.name, times))
        row["runs"] += 1
        row["needs"] = list(dict.fromkeys(
            [*row["needs"], *(graph.instances[n].step.name for n in instance.needs)]
        ))  # fmt: skip
        found = None if choices.anew else _known(run, instance)
        if found is not None:
            run.records[place] = found
            row["known"] += 1
        call = graph.call(instance, Planned(graph, instance), Mistakes())
        line = [str(a) for a in call.arguments]
        for name, value in call.options.items():
            line += step.program.words(name, value) if _sayable(value) else [f"--{name}=…"]
        steps.append({
            "place": place,
            "command": step.program.name,
            "argv": [step.program.name, *line],
            "needs": list(instance.needs),
            "known": found is not None,
        })  # fmt: skip
    timed = [r for r in rows.values() if "seconds" in r]
    left = sum((r["runs"] - r["known"]) * r["seconds"] for r in timed)
    size = sum(r["runs"] * r.get("bytes", 0) for r in rows.values())
    return {
        "schema": SCHEMA,
        "command": "run",
        "dry_run": True,
        "recipe": {"name": graph.recipe.source.name, "quick": graph.recipe.source.quick},
        "cells": len(graph.recipe.cells),
        "graph": list(rows.values()),
        "steps": steps,
        **({"seconds": left / choices.jobs} if timed else {}),
        **({"bytes": size} if size else {}),
    }


def _row(step: str, command: str, times: Times) -> dict[str, Any]:
    seconds, size = times.seconds(step, command), times.bytes(step, command)
    return {
        "step": step,
        "command": command,
        "runs": 0,
        "known": 0,
        "needs": [],
        **({} if seconds is None else {"seconds": seconds}),
        **({} if size is None else {"bytes": size}),
    }


def _known(run: Run, instance: Any) -> Any:
    """The finished step that a run would take, if all that it waits for is known too."""
    if any(place not in run.records for place in instance.needs):
        return None
    try:
        call = run.call(instance, "key")
        key = key_of(instance.step.program.name, call, run.env, run.known)
    except (CompressError, OSError):
        return None
    return run.store.find(key)


def _sayable(value: Any) -> bool:
    from compress.recipes.references import LATER

    return value is not LATER
