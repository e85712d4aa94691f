"""Which layers are condensed: all candidates are made once, then a search chooses among them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from compress.checkpoints.durable import write_json
from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.plan import Plan
from compress.checkpoints.walk import walk
from compress.checkpoints.workspace import Workspace
from compress.errors import RequestError
from compress.experts.condensing import Recipe
from compress.experts.fewer import groups_of
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer
from compress.experts.measuring import STREAM, Condenser
from compress.experts.pace import Pace, layers_for_speed
from compress.experts.preparing import Job
from compress.experts.searching import Step, search_layers, try_sets
from compress.experts.settings import candidates
from compress.progress import renamed


def choose_layers(
    job: Job, given: Plan | None, journal: LayerJournal, workspace: Workspace
) -> list[ExpertLayer]:
    """Measure and condense the candidates, and return those that are to be condensed."""
    settings = job.settings
    if given is not None:
        names = [row["module"] for row in given.rows]
        pool = [layer for layer in job.layers if layer.name in names]
        count = len(pool)
    elif settings.target_bytes or settings.target_speed or settings.mode != "dense":
        pool, count = list(job.layers), len(job.layers)
    else:
        pool, count = candidates(settings.layers, job.layers)
    if settings.target_bytes is not None and given is None:
        count = _count_for(job, pool, settings.target_bytes)
    _condense(job, pool, journal, given)
    job.usage = {str(layer.index): journal.row(layer)["usage"] for layer in pool}

    def search(number: int) -> list[ExpertLayer]:
        if number == len(pool):
            return pool
        found = _search(job, pool, number, journal, workspace)
        return [layer for layer in pool if layer.index in found]

    if settings.target_speed is not None and given is None:
        job.pace = Pace(job, journal, workspace.path / "pace.json")
        return layers_for_speed(job.pace, pool, search)
    return search(count)


def _condense(
    job: Job, pool: Sequence[ExpertLayer], journal: LayerJournal, given: Plan | None
) -> None:
    """Condense layers by themselves, the model being otherwise as it was."""
    if all(layer in journal for layer in pool):
        return
    condenser = Condenser(
        pool,
        _recipe(job, given, refit=job.settings.refit != "none"),
        journal,
        final_norm=job.final_norm,
        last=max(block.index for block in job.anatomy.blocks),
    )
    job.walked = walk(
        job.source,
        job.batches,
        condenser,
        streams=(STREAM,),
        progress=renamed(job.progress, "experts"),
        **job.options,
    )


def _search(
    job: Job,
    pool: Sequence[ExpertLayer],
    count: int,
    journal: LayerJournal,
    workspace: Workspace,
) -> set[int]:
    """Return the numbers of the layers that a search chooses."""
    batches = job.batches[: max(1, job.settings.search_samples // job.settings.batch_size)]

    def evaluate(sets: Mapping[str, Sequence[ExpertLayer]]) -> dict[str, float]:
        return try_sets(
            job.source, batches, journal, sets, job.settings.metric, job.final_norm, job.options
        )

    if not job.settings.beam:
        values = evaluate({str(layer.index): [layer] for layer in pool})
        tried = {layer.index: values[str(layer.index)] for layer in pool}
        best = sorted(tried, key=lambda n: tried[n])[:count]
        job.steps = [Step(tuple(best), max(tried[n] for n in best), tried)]
        return set(best)
    kept = workspace.path / "search.json"
    found = [] if not kept.is_file() else _steps(json.loads(kept.read_text(encoding="utf-8")))

    def done(step: Step) -> None:
        if job.settings.beam == 1:
            found.append(step)
            write_json(kept, [asdict(each) for each in found])

    job.steps = search_layers(
        pool, count, job.settings.beam, evaluate, job.progress, found[:count], done
    )
    return set(job.steps[-1].layers)


def _steps(stored: list[dict[str, Any]]) -> list[Step]:
    return [
        Step(tuple(s["layers"]), s["value"], {int(k): v for k, v in s["tried"].items()})
        for s in stored
    ]


def condense_in_sequence(
    job: Job, chosen: Sequence[ExpertLayer], journal: LayerJournal, workspace: Workspace
) -> LayerJournal:
    """Condense the chosen layers again, each on what the condensed ones before it return."""
    given = {
        layer.name: (row["experts"], row["constants"])
        for layer in chosen
        for row in [journal.row(layer)]
    }
    again = LayerJournal(workspace.path / "sequential")
    recipe = _recipe(job, None, refit=True)
    walk(
        job.source,
        job.batches,
        Condenser(chosen, replace(recipe, given=given), again, sequential=True),
        streams=(STREAM,),
        progress=renamed(job.progress, "refit"),
        **job.options,
    )
    return again


def _recipe(job: Job, given: Plan | None, *, refit: bool) -> Recipe:
    settings = job.settings
    rows = given.rows if given is not None else ()
    return Recipe(
        experts=job.experts,
        score=settings.rule,
        weights=settings.weights,
        refit=refit,
        shared_gate=settings.gate,
        ridges=settings.ridges,
        mode=settings.mode,
        seed=settings.seed,
        groups=groups_of(job.source.config.get_text_config()),
        given={row["module"]: (row["experts"], row.get("constants", [])) for row in rows},
    )


def _count_for(job: Job, pool: Sequence[ExpertLayer], target: int) -> int:
    """Return how many layers must be condensed to bring the weights down to a size.

    Raises:
        RequestError: all of them are too few; the size that they reach is named.
    """
    dtype = resolve_dtype(job.settings.dtype) or job.source.dtype
    size = job.source.parameters_on_disk() * dtype.itemsize
    saved = sorted(_removed(layer, job) * dtype.itemsize for layer in pool)
    for count in range(len(saved) + 1):
        if size - sum(saved[:count]) <= target:
            return max(count, 1)
    raise RequestError(
        f"`--target-bytes {target}` can't be reached: with every layer condensed "
        f"{size - sum(saved)} are left",
        "fewer --experts leave less",
    )


def _removed(layer: ExpertLayer, job: Job) -> int:
    """Return how many parameters go: experts that aren't kept, the router, a gate not kept."""
    gone = 3 * (layer.count - job.experts) * layer.width * layer.hidden
    gate = layer.shared_gate is not None and job.settings.gate != "keep"
    return gone + layer.count * layer.hidden + (layer.hidden if gate else 0)
