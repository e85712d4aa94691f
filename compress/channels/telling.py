"""What `pass-prune` tells of a run: its receipt, its notes, its lines on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.channels.arms import Arm
from compress.channels.costs import counted_macs
from compress.channels.measuring import Latency, time_networks
from compress.channels.preparing import Job
from compress.channels.selecting import kept_counts
from compress.checkpoints.census import census
from compress.checkpoints.plan import Plan
from compress.checkpoints.source import Source
from compress.evaluation.measures import Measures
from compress.jobs import receipt_of
from compress.reports.headers import header_line
from compress.reports.receipt import Receipt

COMMAND = "pass-prune"


def make_receipt(
    job: Job,
    plan: Plan,
    arms: Mapping[str, Arm],
    result: Source,
    before: Measures,
    after: Measures,
    stock: bool,
) -> Receipt:
    """Measure sizes, multiply-adds and time of both networks, and tell all that was done.

    Args:
        job: the dense network.
        plan: what was removed.
        arms: the methods that were run, the own one among them with its network.
        result: the checkpoint written.
        before, after: scores on the test images.
        stock: whether plain transformers opens it.
    """
    own = arms[job.settings.method]
    assert own.model is not None
    with job.clock("measure"):
        counts = [census(source, job.progress) for source in (job.source, result)]
        macs = [counted_macs(model, job.example) for model in (job.model, own.model)]
        latency = time_networks([job.model, own.model], job.example, progress=job.progress)
    formula = [job.costs.macs_of(keeps) for keeps in (job.costs.widths, kept_counts(own.masks))]
    sizes = [_sizes(*found) for found in zip(counts, macs, latency, strict=True)]
    return receipt_of(
        job,
        plan,
        before,
        after,
        (sizes[0], sizes[1]),
        notes=[*job.notes, *_notes(job, own, latency, stock)],
        data={"name": job.data.name, "digest": job.data.digest()} if job.data else None,
        channels={
            "groups": len(job.groups),
            "macs_by_formula": [int(value) for value in formula],
            "macs_by_counter": macs,
            "image": list(job.example.shape[-2:]),
            "form": "stock" if stock else "edits",
            "widths": {row["module"]: [row["width"], row["kept"]] for row in plan.rows},
            "methods": {name: arm.as_receipt(job) for name, arm in arms.items()},
        },
    )


def _sizes(counts: Any, macs: int, latency: Latency) -> dict[str, Any]:
    sizes = {"parameters": counts.parameters, "bytes": counts.bytes, "macs": macs}
    return {**sizes, **latency.as_receipt()}


def _notes(job: Job, arm: Arm, latency: list[Latency], stock: bool) -> list[str]:
    notes = []
    removal = arm.told.get("removal")
    if removal and not removal["exact"]:
        why = next(group.why for group in job.groups if group.why)
        notes.append(
            f"removal is not masking here ({why}): logits differ by {removal['difference']:.2g} of "
            "their spread"
        )
    if not stock:
        notes.append("loading needs `import compress`: config.json alone can't spell these widths")
    whole = job.costs.macs_of(job.costs.widths)
    ratio = float(whole / job.costs.macs_of(kept_counts(arm.masks)))
    gains = ", ".join(
        f"{latency[0].timings[size].median / t.median:.2f}x at batch {size}"
        for size, t in latency[1].timings.items()
    )
    notes.append(f"{ratio:.2f}x fewer multiply-adds; measured: {gains} (timed in turns)")
    if arm.prompt is not None and not arm.prompt.needed:
        notes.append("the prompt lies beside the model for looking at; the model needs none")
    if arm.prompt is not None and arm.prompt.needed:
        notes.append("the model was trained with its prompt (prompt.safetensors) to the end")
    return notes


def describe_plan(job: Job, arm: Arm) -> str:
    """The header's line of what will be done."""
    settings = job.settings
    keeps = kept_counts(arm.masks)
    shares = [
        float(job.costs.measure(name, keeps) / job.costs.measure(name, job.costs.widths))
        for name in ("macs", "parameters")
    ]
    return header_line(
        "plan",
        f"{settings.method}, {settings.scope_of(settings.method)}",
        f"keeps {shares[0]:.3f} of the MACs, {shares[1]:.3f} of the parameters",
        f"repair {settings.repair}",
    )


def plan_options(job: Job) -> dict[str, Any]:
    """What a plan says of how it came about."""
    settings = job.settings
    names = ("method", "keep", "keep_params", "target_latency", "ratio", "min_keep", "round_to")
    found = {name: getattr(settings, name) for name in names}
    kept = {name: value for name, value in found.items() if value is not None}
    return {**kept, "scope": settings.scope_of(settings.method)}
