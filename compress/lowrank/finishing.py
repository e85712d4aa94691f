"""The end of a `lowrank-svd` run: factor, write, score the result, put it in place."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.checkpoints.census import Census, census
from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.plan import PLAN_FILE, Plan
from compress.checkpoints.source import Source, open_source
from compress.checkpoints.workspace import Workspace
from compress.evaluation.measures import Measures
from compress.jobs import receipt_of, score
from compress.lowrank.applying import Targets, factor_blocks, factor_in_sequence
from compress.lowrank.factors import common_facts
from compress.lowrank.latency import TOKENS, latency_name, measure_latency
from compress.lowrank.planned import Planned
from compress.lowrank.preparing import Job
from compress.lowrank.recovery import recover
from compress.lowrank.result import LowRankResult, kept_share
from compress.lowrank.store import BlockFiles
from compress.lowrank.writing import write_checkpoint
from compress.reports.receipt import Receipt, write_items

LOADING = (
    "loading needs `import compress`; `compress export --to stock` multiplies the factors out, "
    "which is as large and as slow as before"
)
APART = (
    "experts are stored and run one by one: no slower on a CPU, but a GPU's grouped kernels for "
    "stacked experts don't serve them"
)


def complete(
    job: Job, planned: Planned, workspace: Workspace, output: Path, before: Measures
) -> LowRankResult:
    """Factor into the workspace, score, and put the result in place."""
    files = BlockFiles(workspace.path / "factors")
    with job.clock("apply"):
        if job.settings.method == "sequential":
            walked = workspace.path / "walked"
            if any(block not in files for block in planned.targets.blocks):
                factor_in_sequence(job, planned.targets, files, walked)
            shutil.rmtree(walked, ignore_errors=True)
        else:
            factor_blocks(job, planned.targets, planned.store, files, planned.gradients)
    with job.clock("save"):
        write_checkpoint(job, planned.targets, files, workspace)
    made, facts = _with_facts(planned.plan, planned.targets, files)
    recovered = _recovered(job, planned, files, workspace) if facts else {}
    made.write(workspace.result / PLAN_FILE)
    result = open_source(workspace.result)
    after = score(job, result)
    if any(unit.matrices[0].stacked for unit in planned.targets.units.values()):
        job.notes.append(APART)
    receipt = _receipt(job, made, facts, result, before, after, recovered)
    receipt.write(workspace.result)
    if after.has_items:
        write_items(workspace.result, after.as_items())
    with job.clock("save"):
        workspace.commit()
    return LowRankResult(made, receipt, output, None, before, after)


def _recovered(
    job: Job, planned: Planned, files: BlockFiles, workspace: Workspace
) -> dict[str, Any]:
    """Fine-tune the factors where that is asked for, and write the checkpoint again."""
    if not job.settings.recover:
        return {}
    with job.clock("train"):
        found, told = recover(
            job, planned.targets, files, workspace.result, workspace.path / "recovery"
        )
    if told.kept:
        for file in workspace.result.iterdir():
            file.unlink()
        with job.clock("save"):
            write_checkpoint(job, planned.targets, found, workspace, "rewritten")
    else:
        job.notes.append(
            f"recovery: {told.steps} steps didn't lower the loss on held-out sequences "
            f"({told.before:.4g} to {told.after:.4g}); the factors stay as they were"
        )
    return {"recovery": told.as_dict()}


def _with_facts(
    plan: Plan, targets: Targets, files: BlockFiles
) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan with what each layer lost."""
    facts: dict[str, Any] = {}
    for block in targets.blocks:
        facts |= files.note(block)
    rows = []
    for row in plan.rows:
        own = facts.get(row.get("shared", row["module"]), {})
        rows.append({**row, **own} if row["kind"] == "lowrank" else row)
    return Plan(plan.command, plan.model_digest, rows, plan.options), list(facts.values())


def _receipt(
    job: Job,
    plan: Plan,
    facts: list[dict[str, Any]],
    result: Source,
    before: Measures,
    after: Measures,
    recovered: dict[str, Any],
) -> Receipt:
    with job.clock("save"):
        counts = [census(source, job.progress) for source in (job.source, result)]
    sizes = counts[0]._asdict(), counts[1]._asdict()
    if job.settings.speed or _in_time(job, plan):
        _add_latency(job, plan, result, sizes)
    return receipt_of(
        job,
        plan,
        before,
        after,
        sizes,
        cost={
            "seconds": job.clock.seconds,
            "peak_bytes": job.peak_bytes,
            "passes": job.passes,
        },
        notes=[LOADING if facts else "every layer stays as it is", *job.notes],
        calibration=job.data.as_dict() if job.data else None,
        lowrank={**_summary(plan, facts, counts), **recovered},
    )


def _in_time(job: Job, plan: Plan) -> bool:
    """Whether this run's ranks were chosen by a time; those of a plan that is given weren't."""
    return job.settings.budget_ms is not None and "foretold_ms" in plan.options


def _add_latency(job: Job, plan: Plan, result: Source, sides: Sequence[dict[str, Any]]) -> None:
    """Add the time of one forward by the number of tokens, of both models in turn."""
    asked = (job.settings.budget_tokens,) if _in_time(job, plan) else ()
    with job.clock("evaluate"):
        found = measure_latency(
            job.source,
            result,
            tokens=sorted({*TOKENS, *asked}),
            device=job.device,
            dtype=resolve_dtype(job.settings.dtype),
            seed=job.settings.seed,
            progress=job.progress,
        )
    for side, latency in zip(sides, found, strict=True):
        side |= {"latency": latency} if latency else {}
    for tokens in asked:
        taken = found[1][latency_name(tokens)] * 1e3
        budget = float(job.settings.budget_ms or 0)
        ends = "kept" if taken <= budget else f"missed by {taken / budget - 1:.0%}"
        job.notes.append(
            f"budget: {tokens} tokens take {taken:.3g} ms (foretold "
            f"{plan.options['foretold_ms']:.3g}, asked for {budget:g}): {ends}; the dense "
            f"model takes {found[0][latency_name(tokens)] * 1e3:.3g}"
        )


def _summary(plan: Plan, facts: list[dict[str, Any]], counts: list[Census]) -> dict[str, Any]:
    """How much is left, in the three measures that papers use, and what it costs on average."""
    ranked = [row for row in plan.rows if row["kind"] == "lowrank"]
    return {
        "layers": len(plan.rows),
        "factored": len(ranked),
        "kept": round(kept_share(plan.rows), 6),
        "kept_model": round(counts[1].parameters / counts[0].parameters, 6),
        "rank_ratio": round(sum(r["rank_ratio"] for r in ranked) / max(len(ranked), 1), 6),
        **common_facts(facts),
    }
