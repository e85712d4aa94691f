"""`cd-moe-condense` from a model to a receipt: measure, choose, condense, save, score."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.plan import PLAN_FILE, Plan, read_plan
from compress.checkpoints.save import load
from compress.checkpoints.source import open_source
from compress.checkpoints.workspace import Workspace, check_output
from compress.errors import RequestError, RunError, check_options
from compress.evaluation.asked import measured_once
from compress.evaluation.speed import peak_memory
from compress.experts.checking import check_fewer, check_written
from compress.experts.choosing import choose_layers, condense_in_sequence
from compress.experts.drift import layer_drift
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer
from compress.experts.preparing import Job, Say, load_data, open_job
from compress.experts.receipts import COMMAND, Outcome, make_receipt
from compress.experts.result import (
    CondenseResult,
    describe_model,
    describe_plan,
    draw_usage,
)
from compress.experts.settings import CondenseSettings
from compress.experts.tuning import check_tuning, fine_tune
from compress.experts.writing import Layout, plan_layout, write_checkpoint
from compress.jobs import open_model, place_of, read_back, score
from compress.progress import Progress, silent
from compress.reports.clock import Clock
from compress.reports.receipt import Receipt, write_items

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEFORE = "before.json"
USAGE_FILE = "experts.png"


def cd_moe_condense(
    model: str | Path | PreTrainedModel,
    output: str | Path | None = None,
    *,
    plan: str | Path | Plan | None = None,
    plan_out: str | Path | None = None,
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    batches: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress = silent,
    say: Say = lambda text: None,
    **options: Any,
) -> CondenseResult:
    """Turn mixture-of-experts layers of a model into small dense ones.

    Args:
        model: a local directory, a Hub id, or a model in memory (which stays as it is).
        output: the directory to make; None gives the condensed model in `result.model`.
        plan: a plan or plan file whose layers, experts and constants are used.
        plan_out: where to save the plan as well.
        dry_run: stop after the plan; nothing else is written.
        resume: go on from an interrupted run's journal in `OUT.partial`.
        overwrite: replace a non-empty output, at the end.
        tokenizer: of a model in memory, where text is read.
        revision, token, trust_remote_code: of a Hub model.
        batches: calibration batches to use instead of the text of `calib`.
        progress, say: told where the job stands; say gets lines for the reader.
        options: fields of CondenseSettings, such as layers, experts, calib, ppl.

    Returns:
        The plan, the receipt and where the model lies.

    Raises:
        RequestError: something about the request is wrong; nothing was written.
        RunError: the run failed part-way; what was finished is kept for `resume`.

    Source: Condense, Don't Just Prune, arXiv:2412.00069; the refit and the single pass are ours.
    """
    settings = _settings(options)
    clock = Clock()
    with contextlib.ExitStack() as stack:
        source = open_model(
            stack, model, tokenizer=tokenizer, plan_out=plan_out, revision=revision, token=token,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        place = place_of(stack, None if dry_run else output)
        check_output(place, overwrite=overwrite or resume, source=source.directory)
        with clock("load"):
            job = open_job(source, settings, progress, clock)
            if settings.finetune:
                check_tuning(job, batches)
        say(describe_model(source, job.layers))
        with clock("measure"):
            load_data(job, batches, say)
        given = _given(job, plan)
        workspace = stack.enter_context(
            Workspace.open(
                place,
                overwrite=overwrite,
                resume=resume,
                fingerprint=_fingerprint(job, given),
                source=source.directory,
            )
        )
        if workspace.committed:
            workspace.discard()
            done = read_back(place, COMMAND, source)
            return CondenseResult(done, Receipt.read(place), place)
        try:
            result = _run(job, given, workspace, Path(place), plan_out, dry_run, say)
        except RequestError:
            if not (workspace.path / BEFORE).is_file():
                workspace.discard()  # the request was wrong: there is nothing to resume
            raise
        if dry_run or output is not None:
            return result
        return result.in_memory(load(place))


def _run(
    job: Job,
    given: Plan | None,
    workspace: Workspace,
    output: Path,
    plan_out: str | Path | None,
    dry_run: bool,
    say: Say,
) -> CondenseResult:
    """Condense into the workspace, score, and put the result in place."""
    settings, source = job.settings, job.source
    journal = LayerJournal(workspace.path / "layers")
    with peak_memory(job.device) as choosing:
        with job.clock("measure"):
            chosen = choose_layers(job, given, journal, workspace)
        if settings.refit == "sequential" and not dry_run:
            with job.clock("apply"):
                journal = condense_in_sequence(job, chosen, journal, workspace)
    rows = {layer.name: journal.row(layer) for layer in chosen}
    dtype = resolve_dtype(settings.dtype)
    layout = plan_layout(source, job.layers, rows, stock_only=settings.stock_only, dtype=dtype)
    made = Plan(COMMAND, source.digest(), list(rows.values()), _plan_options(job, layout))
    say(describe_plan(made, settings, job.layers))
    if plan_out is not None:
        made.write(Path(plan_out))
    if dry_run:
        workspace.discard()
        return CondenseResult(made)
    before = measured_once(workspace.path / BEFORE, lambda: score(job, source))
    with peak_memory(job.device) as writing, job.clock("apply"):
        layout = _write(job, chosen, journal, layout, workspace, dtype)
    job.peak_bytes = max(choosing.peak, writing.peak)
    made = Plan(COMMAND, source.digest(), list(rows.values()), _plan_options(job, layout))
    made.write(workspace.result / PLAN_FILE)
    draw_usage(made, workspace.result / USAGE_FILE)
    condensed, training = None, None
    if settings.finetune:
        kept = workspace.path / "condensed.json"
        condensed = measured_once(kept, lambda: score(job, open_source(workspace.result)))
        with job.clock("finetune"):
            training = fine_tune(job, list(rows), workspace, say)
    result = open_source(workspace.result)
    after = score(job, result)
    with job.clock("evaluate"):
        place = workspace.path / "drift"
        drift = layer_drift(source, result, job.batches[0], place, job.options)
    outcome = Outcome(made, layout, result, before, after, drift, condensed, training)
    receipt = make_receipt(job, outcome)
    receipt.write(workspace.result)
    if after.perplexity or after.tasks:
        write_items(workspace.result, after.as_items())
    with job.clock("save"):
        workspace.commit()
    return CondenseResult(made, receipt, output, None, before, after)


def _write(
    job: Job,
    chosen: Sequence[ExpertLayer],
    journal: LayerJournal,
    layout: Layout,
    workspace: Workspace,
    dtype: torch.dtype | None,
) -> Layout:
    """Write the checkpoint and compare it with the model in memory; return how it is stored."""
    for attempt in (layout, Layout("edits", {}, why="the stock form computes something else")):
        write_checkpoint(
            job.source, job.layers, chosen, journal, attempt, workspace,
            dtype=dtype, progress=job.progress,
        )  # fmt: skip
        written = open_source(workspace.result)
        check = check_written if job.settings.mode == "dense" else check_fewer
        worst = check(job.source, written, chosen, journal, job.batches[0], job.options)
        if worst is None:
            return attempt
        if attempt.kind == "edits" or job.settings.stock_only or check is check_fewer:
            raise RunError(
                f"the checkpoint written differs from the model in memory by {worst:.3g} in its "
                "logits",
                "this is a bug worth reporting; nothing was put in place",
            )
        for file in workspace.result.iterdir():
            file.unlink()
    raise AssertionError("unreachable")


def _given(job: Job, plan: str | Path | Plan | None) -> Plan | None:
    if plan is None or isinstance(plan, Plan):
        return plan
    names = [layer.name for layer in job.layers]
    return read_plan(Path(plan), command=COMMAND, model_digest=job.source.digest(), modules=names)


def _fingerprint(job: Job, plan: Plan | None) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one."""
    return {
        "command": COMMAND,
        "model": job.source.digest(),
        "plan": plan.digest() if plan else None,
        "data": job.data.digest if job.data else None,
        "options": job.settings.as_dict(),
    }


def _plan_options(job: Job, layout: Layout) -> dict[str, Any]:
    return {
        "mode": job.settings.mode,
        "score": job.settings.rule,
        **{k: getattr(job.settings, k) for k in ("weights", "refit", "metric")},
        "shared_gate": job.settings.gate,
        "experts": job.experts,
        "form": layout.kind,
        **({"why": layout.why} if layout.why else {}),
        **({"padding_bytes": layout.padding} if layout.padding else {}),
        "search": [asdict(step) for step in job.steps],
        **({"speed": job.pace.measured} if job.pace else {}),
        "usage": job.usage,
    }


def _settings(options: Mapping[str, Any]) -> CondenseSettings:
    check_options("cd_moe_condense", options, (f.name for f in fields(CondenseSettings)))
    return CondenseSettings(**options).resolved()
