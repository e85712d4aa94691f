"""The receipt of `cd-moe-condense`: what it weighs, how far layers drifted, what tuning brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from compress.checkpoints.census import Census, census
from compress.checkpoints.plan import Plan
from compress.checkpoints.source import Source
from compress.evaluation.measures import Measures, compare
from compress.experts.layers import ExpertLayer
from compress.experts.preparing import Job
from compress.experts.writing import Layout
from compress.jobs import receipt_of
from compress.reports.receipt import Receipt

COMMAND = "cd-moe-condense"


@dataclass(frozen=True)
class Outcome:
    """What was made and measured.

    Attributes:
        plan, layout: what was done, and how it is stored.
        result: the checkpoint.
        before, after: scores of the original and of the result.
        drift: a row a decoder layer, from `layer_drift`.
        condensed: scores before fine-tuning; None without it.
        training: the receipt of the fine-tuning; None without it.
    """

    plan: Plan
    layout: Layout
    result: Source
    before: Measures
    after: Measures
    drift: Sequence[dict[str, Any]]
    condensed: Measures | None = None
    training: Receipt | None = None


def make_receipt(job: Job, made: Outcome) -> Receipt:
    """Put together what a reader of OUT should know."""
    plan = made.plan
    with job.clock("save"):
        counts = [census(source, job.progress) for source in (job.source, made.result)]
    return receipt_of(
        job,
        plan,
        made.before,
        made.after,
        (counts[0]._asdict(), counts[1]._asdict()),
        settings={**job.settings.as_dict(), "experts": job.experts},
        cost={
            "seconds": job.clock.seconds,
            "peak_bytes": job.peak_bytes,
            "passes": job.walked.passes,
        },
        notes=[*job.notes, *_notes(job, plan, made.layout)],
        calibration=job.data.as_dict() if job.data else None,
        experts={
            "layers": len(job.layers),
            "condensed": [row["layer"] for row in plan.rows],
            "form": made.layout.kind,
            "active_parameters": _active(job, plan, counts),
            "divergence": list(made.drift),
        },
        **_tuning(made),
    )


def _tuning(made: Outcome) -> dict[str, Any]:
    """What fine-tuning adds: scores before it, what was trained on what, and the comparison."""
    if made.training is None or made.condensed is None:
        return {}
    parts = {
        "condensed": made.condensed.as_receipt(),
        "tuning": {"comparison": compare(made.condensed, made.after)},
        **{name: made.training.extra.get(name) for name in ("training", "data")},
    }
    return {name: part for name, part in parts.items() if part and any(part.values())}


def _active(job: Job, plan: Plan, counts: Sequence[Census]) -> dict[str, int]:
    """Parameters that one token runs through, before and after."""
    config = job.source.config.get_text_config()
    routed = int(getattr(config, "num_experts_per_tok", 0) or 1)
    condensed = {row["module"] for row in plan.rows}

    def idle(layers: Sequence[ExpertLayer]) -> int:
        return sum(3 * (each.count - routed) * each.width * each.hidden for each in layers)

    left = [layer for layer in job.layers if layer.name not in condensed]
    if job.settings.mode != "dense":
        left = [replace(layer, count=job.experts) for layer in job.layers]
    return {
        "before": counts[0].parameters - idle(job.layers),
        "after": counts[1].parameters - idle(left),
    }


def _notes(job: Job, plan: Plan, layout: Layout) -> list[str]:
    notes = []
    if layout.kind == "stock":
        notes.append("stored in the family's own form: anybody's transformers loads it")
        if layout.one_expert:
            notes.append(
                "each layer keeps a router with one expert, since the family has no dense layer: "
                "routing costs a little time"
            )
        if layout.padding:
            notes.append(
                f"dense layers share one width of {layout.width}: {layout.padding:,} bytes of zeros"
            )
    else:
        notes.append(f"loading needs `import compress`: {layout.why}")
    if job.pace is not None:
        names = ",".join(str(row["layer"]) for row in plan.rows)
        found = job.pace.measured.get(names)
        notes.append(
            f"--target-speed {job.settings.target_speed}: {job.pace.regime} measured "
            f"{found:.3g} times as fast with these layers condensed (one row, both in memory)"
        )
    dead = sum(len(row["dead"]) for row in plan.rows)
    if dead:
        notes.append(f"{dead} experts of the condensed layers got no calibration token")
    few = [row for row in plan.rows if row.get("note")]
    if few:
        notes.append(f"{few[0]['note']} ({len(few)} layers): more --samples would fit better")
    return notes
