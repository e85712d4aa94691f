"""`compress run`: a recipe read and checked whole, its steps run, its receipts side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.backends import BACKENDS, require_backend
from compress.checkpoints.durable import partial_path
from compress.errors import RequestError, nearest
from compress.recipes.graph import Graph, Planned, check_calls, unfold
from compress.recipes.keys import contents
from compress.recipes.launching import Launcher, launcher
from compress.recipes.mistakes import Mistakes
from compress.recipes.overview import Times, Watch, plan_table
from compress.recipes.planning import plan_of
from compress.recipes.reading import read_recipe
from compress.recipes.recipe import Recipe, read_parts
from compress.recipes.references import LATER, Scope, as_text
from compress.recipes.running import Choices, Run
from compress.recipes.store import OK, RUN, Record, Store, earlier_runs, is_run
from compress.recipes.tables import rows_of, table_of
from compress.reports.headers import header_line
from compress.reports.notebook import Displayable
from compress.reports.receipt import SCHEMA, command_line, masked, versions, write_atomic

if TYPE_CHECKING:
    from compress.reports.compare import Report

COMMAND = "run"
MAX_CELLS = 500
Say = Any


@dataclasses.dataclass(frozen=True)
class RunResult(Displayable):
    """What `run` did.

    Attributes:
        summary: what run.json holds; of a dry run the graph.
        table: receipts side by side; None where no step measured anything.
        output: the directory written; None after a dry run.
    """

    summary: Mapping[str, Any]
    table: Report | None = None
    output: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The summary with the table, as JSON types."""
        table = {} if self.table is None else {"table": self.table.as_dict()}
        return {**self.summary, **table}

    def render(self) -> str:
        """The table for people, or the graph of a dry run."""
        if self.output is None:
            return plan_table(self.summary)
        done = self.summary["steps"]
        known = sum(step.get("cached", False) for step in done)
        told = f"{len(done)} steps done, {known} of them known from earlier runs"
        parts = [self.table.render()] if self.table is not None else []
        return "\n\n".join([*parts, f"{told}\n{self.output}"])


def run(
    recipe: str | Path,
    output: str | Path | None = None,
    *,
    set: Sequence[str] | Mapping[str, Any] = (),
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    keep_going: bool = False,
    jobs: int = 1,
    backend: str = "local",
    shard: tuple[int, int] | None = None,
    reuse: Sequence[str | Path] = (),
    max_cells: int = MAX_CELLS,
    no_cache: bool = False,
    quiet: bool = True,
    say: Say = lambda text: None,
) -> RunResult:
    """Run a recipe: steps that are commands of this program, in every cell of a grid.

    Nothing is started before the whole recipe is checked. Steps whose command, options, inputs and
    code are as in an earlier run (of OUT, of an interrupted one, of `reuse`) are taken from there.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        output: the directory to make; None is `runs/NAME`, with `-quick` in the quick form. One
            that a run left is brought up to date.
        set: variables and other parts of the recipe, `key=value` or a mapping.
        dry_run: check, and tell what would be run; write nothing.
        resume: insist that there is an interrupted run to go on with.
        overwrite: replace an output that is something else, at the end.
        keep_going: after a step has failed, go on with what doesn't need it.
        jobs: steps at a time.
        backend: local, or ray.
        shard: (i, n): only the i-th of n parts of the grid.
        reuse: other runs whose finished steps may be taken.
        max_cells: the largest grid that isn't taken for a mistake.
        no_cache: run every step anew.
        quiet: no live overview.
        say: gets lines for the reader.

    Returns:
        How each step went, the table of their receipts, and where all lies.

    Raises:
        RequestError: the recipe is wrong (every mistake with file, line and column), or a step's
            own request; nothing is in place.
        RunError: a step failed; what was finished is kept in `OUT.partial`.
    """
    named = set.items() if isinstance(set, Mapping) else ()
    overrides = [f"{k}={json.dumps(v)}" for k, v in named] or list(set)
    choices = Choices(jobs, keep_going, backend, no_cache)
    _check(choices, shard, max_cells)
    mistakes = Mistakes()
    source = read_recipe(recipe, overrides)
    parts = read_parts(source, max_cells, mistakes)
    graph = unfold(_part_of(parts, shard) if parts.cells else parts, mistakes)
    env = _environment(graph, mistakes)
    calls = check_calls(graph, mistakes)
    mistakes.refuse()
    target = output or Path("runs") / (source.name + ("-quick" if source.quick else ""))
    place = Path(target).expanduser().resolve()
    ours = is_run(place)
    earlier = earlier_runs(place, reuse)
    with contextlib.closing(launcher([p.name for p in _programs(graph)], env)) as steps:
        _judge(graph, calls, steps, mistakes)
        times = Times([record for _, record in earlier])
        for line in _headers(graph, target, choices):
            say(line)
        known = contents()
        if dry_run:
            store = Store(partial_path(place), earlier)
            return RunResult(plan_of(graph, store, env, known, choices, times))
        return _carry_out(
            graph, steps, env, choices, target, earlier, times, known,
            resume=resume, overwrite=overwrite or ours, quiet=quiet, say=say,
        )  # fmt: skip


def _carry_out(
    graph: Graph,
    steps: Launcher,
    env: Mapping[str, str],
    choices: Choices,
    output: str | Path,
    earlier: Sequence[tuple[Path, Record]],
    times: Times,
    known: Any,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    say: Say,
) -> RunResult:
    """Run the steps in OUT.partial, and put the whole in place."""
    from compress.checkpoints.workspace import Workspace

    root = partial_path(output)
    fingerprint = {"command": COMMAND}
    again = _is_interrupted(root, fingerprint)
    with Workspace.open(
        output, overwrite=overwrite, resume=resume or again, fingerprint=fingerprint
    ) as workspace:
        if workspace.committed:
            workspace.discard()
            return _read_back(Path(output))
        store = Store(workspace.path, earlier)
        for _, record in store.known.values():
            times.add(record)
        instances = graph.instances
        watch = Watch(
            [(place, i.step.name, i.step.program.name) for place, i in instances.items()],
            times,
            lambda place: store.log(instances[place], "progress"),
            say,
            choices.jobs,
            quiet,
        )
        work = Run(graph, store, steps, env, choices, watch, known)
        start = time.time()
        try:
            with watch:
                work.work()
        finally:
            known.save()
            records = [work.records[p] for p in instances if p in work.records]
            summary = _summary(graph, records, start, store)
            write_atomic(workspace.path / RUN, json.dumps(summary, indent=1) + "\n")
        store.deliver(records, workspace.result)
        summary["rows"] = rows_of(graph, workspace.result)
        write_atomic(workspace.result / RUN, json.dumps(summary, indent=1) + "\n")
        table = table_of(workspace.result)
        if table is not None:
            write_atomic(workspace.result / "report.md", table.to_markdown())
        workspace.commit()
        # Read again: its rows name files where they lie now.
        return RunResult(summary, table and table_of(Path(output)), Path(output))


def _read_back(output: Path) -> RunResult:
    """A run that was killed after it had put everything in place."""
    summary = json.loads((output / RUN).read_text(encoding="utf-8"))
    return RunResult(summary, table_of(output), output)


def _summary(graph: Graph, records: Sequence[Record], start: float, store: Store) -> dict[str, Any]:
    """What run.json tells."""
    source = graph.recipe.source
    text = json.dumps(source.tree.plain(), sort_keys=True)
    ok = len(records) == len(graph.instances) and all(r.status == OK for r in records)
    return {
        "schema": SCHEMA,
        "command": COMMAND,
        "argv": masked(command_line()),
        "status": "ok" if ok else "partial",
        "recipe": {
            "name": source.name,
            "file": str(source.path),
            "about": graph.recipe.about,
            "quick": source.quick,
            "set": list(source.overrides),
            "digest": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        },
        "versions": versions(),
        "cells": len(graph.recipe.cells),
        "axes": {axis.name: list(axis.labels) for axis in graph.recipe.axes},
        "steps": [record.as_dict() for record in records],
        "cost": {"seconds": {"run": round(time.time() - start, 3)}},
    }


def _check(choices: Choices, shard: tuple[int, int] | None, max_cells: int) -> None:
    if choices.backend not in BACKENDS:
        raise RequestError(
            f"`--backend {choices.backend}` isn't one", nearest(choices.backend, BACKENDS)
        )
    require_backend(choices.backend)
    for name, value in (("jobs", choices.jobs), ("max-cells", max_cells)):
        if value < 1:
            raise RequestError(f"`--{name} {value}` is less than 1")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise RequestError(
            f"`--shard {shard[0]}/{shard[1]}` isn't i of n with 1 <= i <= n", "1/4 to 4/4"
        )


def _part_of(recipe: Recipe, shard: tuple[int, int] | None) -> Recipe:
    """Every n-th cell; what gathers all cells is left to the run that joins the parts."""
    if shard is None:
        return recipe
    cells = recipe.cells[shard[0] - 1 :: shard[1]]
    if not cells:
        raise RequestError(
            f"`--shard {shard[0]}/{shard[1]}` is empty: the grid has {len(recipe.cells)} cells"
        )
    steps = dict(recipe.steps)
    dropped: list[str] = []
    while True:
        gathers = [n for n, s in steps.items() if n not in dropped and _gathers(s, dropped)]
        if not gathers:
            break
        dropped += gathers
    kept = {name: step for name, step in steps.items() if name not in dropped}
    report = tuple(name for name in recipe.report if name in kept)
    return dataclasses.replace(recipe, cells=cells, steps=kept, report=report)


def _gathers(step: Any, dropped: Sequence[str]) -> bool:
    from compress.recipes.references import references, strings

    for node in step.nodes:
        for text in strings(node):
            for reference in references(text.value):
                if reference.head == "all":
                    return True
                if reference.head == "steps" and reference.parts[1:2] and (
                    reference.parts[1] in dropped
                ):  # fmt: skip
                    return True
    return any(node.value in dropped for node in step.needs)


def _environment(graph: Graph, mistakes: Mistakes) -> dict[str, str]:
    """The variables that the recipe sets."""
    if not graph.instances:
        return {}
    recipe = graph.recipe
    first = next(iter(graph.instances.values()))
    scope = Scope(recipe.vars, {}, (), recipe.source.path.parent, Planned(graph, first), mistakes)
    found = {}
    for name, node in recipe.env.items():
        value = scope.resolve(node)
        if value is LATER or isinstance(value, (dict, list)):
            mistakes.add(node.place, f"`env: {name}` is a single value known from the start")
        else:
            found[name] = as_text(value)
    return found


def _programs(graph: Graph) -> list[Any]:
    return list({i.step.program.name: i.step.program for i in graph.instances.values()}.values())


def _judge(graph: Graph, calls: Mapping[str, Any], steps: Launcher, mistakes: Mistakes) -> None:
    """Ask the commands themselves whether they can mean all settings; once for equal ones."""
    asked: dict[tuple[str, ...], str] = {}
    for place, call in calls.items():
        instance = graph.instances[place]
        program = instance.step.program
        line = ["x" if v is LATER else str(v) for v in call.arguments]
        known = {n: v for n, v in call.options.items() if v is not LATER and n != "config"}
        for name, value in known.items():
            line += program.words(name, value)
        if instance.writes:
            line += ["-o", "x"]
        if len(known) == len([n for n in call.options if n != "config"]):
            asked.setdefault((program.name, *line), place)
    questions = [{"command": line[0], "words": list(line[1:])} for line in asked]
    for place, fault in zip(asked.values(), steps.judge(questions)):  # type: ignore[arg-type]
        if fault:
            step = graph.instances[place].step
            mistakes.add(step.mark, f"step `{step.name}`: {fault}")
    mistakes.refuse()


def _is_interrupted(root: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a run was interrupted here."""
    try:
        journal = json.loads((root / "journal.json").read_text(encoding="utf-8"))
        return journal["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _headers(graph: Graph, output: str | Path, choices: Choices) -> Iterator[str]:
    recipe = graph.recipe
    form = "quick form" if recipe.source.quick else ""
    yield header_line("recipe", *filter(None, (recipe.source.name, form, recipe.about)))
    axes = ", ".join(f"{axis.name} {len(axis.values)}" for axis in recipe.axes)
    told = f"{len(recipe.cells)} cells" + (f" ({axes})" if axes else "")
    yield header_line("grid", f"{told}, {len(graph.instances)} steps", f"{choices.jobs} at a time")
    yield header_line("output", str(output))
