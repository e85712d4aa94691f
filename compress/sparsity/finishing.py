"""The end of an `alpha-prune` run: score the result, write its receipt, put it in place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.checkpoints.census import census
from compress.checkpoints.plan import PLAN_FILE, Plan
from compress.checkpoints.source import Source, open_source
from compress.checkpoints.workspace import Workspace
from compress.evaluation.asked import measured_once
from compress.evaluation.measures import Measures
from compress.jobs import receipt_of, score
from compress.reports.receipt import Receipt, write_items
from compress.sparsity import planning
from compress.sparsity.allocators.table import ALLOCATORS, OPTIONS
from compress.sparsity.apply import Applied, lay_out_rival
from compress.sparsity.preparing import Job
from compress.sparsity.result import PruneResult
from compress.sparsity.rivals import compared


def complete(
    job: Job,
    plan: Plan,
    rivals: Mapping[str, Plan],
    walked: Applied,
    workspace: Workspace,
    output: Path,
    before: Measures,
) -> PruneResult:
    """Score the result, write its receipt, and put it in place."""
    plan = planning.with_rows(plan, walked.rows)
    plan.write(workspace.result / PLAN_FILE)
    pruned = open_source(workspace.result)
    after = score(job, pruned)
    others = _score_rivals(job, walked, workspace)
    told = allocation_told(job, plan, rivals) | compared(after, others, rule_of(job, plan))
    receipt = _receipt(job, plan, walked, pruned, before, after, told)
    receipt.write(workspace.result)
    if after.perplexity or after.tasks:
        beside = {name: found.as_items() for name, found in others.items()}
        write_items(
            workspace.result, after.as_items() | ({"allocations": beside} if beside else {})
        )
    with job.clock("save"):
        workspace.commit()
    return PruneResult(plan, receipt, output, None, before, after)


def _score_rivals(job: Job, walked: Applied, workspace: Workspace) -> dict[str, Measures]:
    """Score the models of the other allocations, one on disk at a time."""
    found = {}
    for name, writer in walked.rivals.items():

        def measure(name: str = name) -> Measures:
            with job.clock("save"):
                model = lay_out_rival(
                    job.source, name, walked, job.settings, workspace, job.progress
                )
            measured = score(job, open_source(model), name)
            shutil.rmtree(model)
            return measured

        found[name] = measured_once(writer.directory.parent / "scores.json", measure)
    return found


def _receipt(
    job: Job,
    plan: Plan,
    walked: Applied,
    pruned: Source,
    before: Measures,
    after: Measures,
    allocation: Mapping[str, Any],
) -> Receipt:
    with job.clock("save"):
        counts = [census(source, job.progress)._asdict() for source in (job.source, pruned)]
    return receipt_of(
        job,
        plan,
        before,
        after,
        (counts[0], counts[1]),
        settings=_effective(job, plan),
        cost={
            "seconds": job.clock.seconds,
            "peak_bytes": walked.peak_bytes,
            "passes": walked.passes,
            **_exchanged(job, walked),
        },
        notes=[*walked.notes[:1], *job.notes, *walked.notes[1:]],
        calibration=job.data.as_dict() if job.data else None,
        allocation=allocation,
    )


def _exchanged(job: Job, walked: Applied) -> dict[str, int]:
    """How many processes shared the work, and what a block's share of their exchange was."""
    if job.team.size == 1:
        return {}
    blocks = len(job.anatomy.blocks)
    return {"ranks": job.team.size, "sent_bytes_per_block": walked.sent_bytes // blocks}


def allocation_told(job: Job, plan: Plan, rivals: Mapping[str, Plan]) -> dict[str, Any]:
    """The shares by block beside those of other allocations; what was searched."""
    found = planning.beside(plan, job.anatomy, rivals)
    searched = [p.options.get("search") for p in (plan, rivals.get("atp")) if p is not None]
    search = next((s for s in searched if s), None)
    return {**found, "search": search} if search else found


def rule_of(job: Job, plan: Plan) -> str:
    """The allocation that made a plan's shares."""
    return str(plan.options.get("allocation") or job.settings.rule)


def _effective(job: Job, plan: Plan) -> dict[str, Any]:
    """The settings, without those that did not act; of a given plan, those that made its shares."""
    settings = job.settings.as_dict()
    rule = rule_of(job, plan)
    acting = ALLOCATORS[rule].options if rule in ALLOCATORS else ()
    idle = dict.fromkeys(name for name in OPTIONS if name not in acting)
    told = {name: plan.options.get(name, settings[name]) for name in acting}
    return {**settings, **told, **idle, "allocation": rule}
