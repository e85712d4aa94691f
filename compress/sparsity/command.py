"""`alpha-prune` from a model to a receipt: measure, plan, apply, save, score before and after."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.plan import PLAN_FILE, Plan, read_plan
from compress.checkpoints.save import load
from compress.checkpoints.workspace import Workspace, check_output, partial_path
from compress.errors import RequestError, check_options
from compress.evaluation.asked import measured_once
from compress.evaluation.measures import Measures
from compress.jobs import describe_model, open_model, place_of, score
from compress.numerics.ranks import joined
from compress.progress import Progress, silent
from compress.reports.clock import Clock
from compress.reports.headers import header_line, plan_line
from compress.reports.receipt import Receipt
from compress.sparsity import planning
from compress.sparsity.allocation_checks import ROW_METHODS
from compress.sparsity.apply import prune
from compress.sparsity.finishing import allocation_told, complete
from compress.sparsity.patterns import mixed_note
from compress.sparsity.planned import Planned, kept
from compress.sparsity.preparing import Job, Say, load_data, open_job
from compress.sparsity.result import PruneResult
from compress.sparsity.rivals import rival_plans
from compress.sparsity.settings import AlphaPruneSettings
from compress.spectra.metrics import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def alpha_prune(
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
    before: Measures | None = None,
    progress: Progress = silent,
    say: Say = lambda text: None,
    **options: Any,
) -> PruneResult:
    """Zero the least useful weights of a model, more in layers that look under-trained.

    Args:
        model: a local directory, a Hub id, or a model in memory (which stays as it is).
        output: the directory to make; None gives the pruned model in `result.model`.
        plan: a plan or plan file to use instead of an allocation.
        plan_out: where to save the plan as well.
        dry_run: stop after the plan; nothing else is written.
        resume: go on from an interrupted run's journal in `OUT.partial`.
        overwrite: replace a non-empty output, at the end.
        tokenizer: of a model in memory, where text is read.
        revision, token, trust_remote_code: of a Hub model.
        batches: calibration batches to use instead of the text of `calib`: keyword arguments of the
            model's forward, one mapping a batch, such as `{"pixel_values": …}`.
        before: measures of the dense model, to spare measuring it again.
        progress, say: told where the job stands; say gets lines for the reader.
        options: fields of AlphaPruneSettings, such as sparsity, method, calib, ppl.

    Returns:
        The plan, the receipt and where the model lies.

    Raises:
        RequestError: something about the request is wrong; nothing was written.
        RunError: the run failed part-way; what was finished is kept for `resume`.

    Source: Lu et al., AlphaPruning, arXiv:2410.10912.
    """
    settings = _settings(options)
    clock = Clock()
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(joined(settings.device))
        if not team.first:
            progress, say = silent, _mute
        source = open_model(
            stack, model, tokenizer=tokenizer, plan_out=plan_out, revision=revision, token=token,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        wanted = None if dry_run else team.from_first(lambda: place_of(stack, output))
        if wanted is not None:
            check_output(wanted, overwrite=overwrite or resume, source=source.directory)
        with clock("load"):
            job = open_job(source, settings, progress, clock, team)
        say(describe_model(job.source, len(job.anatomy.blocks)))
        with clock("measure"):
            given = _given_plan(job, plan)
            load_data(job, batches, say)
            found = Planned(given) if given else _planned(job, wanted if resume else None)
            planned = team.from_first(lambda: found)
            job.notes.extend(planned.notes)
        made = planned.plan
        say(_describe_plan(made, job.settings, given=plan is not None))
        if plan_out is not None and team.first:
            made.write(Path(plan_out))
        if wanted is None:
            for note in job.notes:  # there is no receipt to hold them
                say(header_line("note", note, ""))
            return PruneResult(made, beside=allocation_told(job, made, planned.rivals))
        done = _run(job, planned, wanted, resume, overwrite, before)
        if output is None:
            pruned = load(wanted)
            team.wait()  # rank 0 is about to remove the place
            return done.in_memory(pruned)
        return done


def _mute(text: str) -> None:
    """Say nothing: rank 0 does."""


def _settings(options: Mapping[str, Any]) -> AlphaPruneSettings:
    known = (f.name for f in dataclasses.fields(AlphaPruneSettings))
    check_options("alpha_prune", options, known)
    settings = AlphaPruneSettings(**options)
    settings.check(tuple(METRICS))
    return settings


def _given_plan(job: Job, plan: str | Path | Plan | None) -> Plan | None:
    """Read the plan given, and take over what it says of the rows inside the matrices.

    Raises:
        RequestError: it can't be read or isn't for this model; its rows and the method or other
            settings don't go together.
    """
    if plan is None:
        return None
    if job.settings.compare_allocations:
        raise RequestError(
            "`--compare-allocations` can't act with `--plan`, whose shares have no rule",
            "leave one of them out",
        )
    if not isinstance(plan, Plan):
        digest = job.team.from_first(job.source.digest)
        names = [m.name for m in job.matrices]
        plan = read_plan(Path(plan), command=planning.COMMAND, model_digest=digest, modules=names)
    idle = planning.idle_beside(plan, job.settings)
    if idle:
        job.notes.append(f"the plan given decides the shares: {idle} had no say")
    said = planning.said_of_rows(plan)
    if said == "trim":
        job.settings = dataclasses.replace(job.settings, rows="trim")
        job.settings.check(tuple(METRICS))
    elif said == "given" and job.settings.method not in ROW_METHODS:
        raise RequestError(
            f"the plan counts zeros by rows, which `--method {job.settings.method}` can't follow",
            f"it can be carried out with {', '.join(ROW_METHODS)}",
        )
    return plan


def _planned(job: Job, resumed: Path | None) -> Planned:
    """What an interrupted run into `resumed` had planned, or a plan made now."""
    if resumed is not None:
        found = job.team.from_first(lambda: kept(partial_path(resumed), _basis(job)))
        if found is not None:
            return found
    return _make_plans(job)


def _make_plans(job: Job) -> Planned:
    """The plan, and those of the allocations that it is compared with."""
    digest = job.team.from_first(job.source.digest)
    ground = planning.ground_of(
        job.source,
        job.anatomy,
        job.matrices,
        job.settings,
        batches=job.batches,
        held_out=job.held_out,
        device=job.device,
        progress=job.progress,
        team=job.team,
    )
    measured = planning.measure(ground)
    made = planning.make_plan(ground, measured, digest)
    notes = (*measured.warnings, *filter(None, [mixed_note(made)]))
    rivals = rival_plans(ground, digest) if job.settings.compare_allocations else {}
    return Planned(made, rivals, notes)


def _run(
    job: Job,
    planned: Planned,
    output: Path,
    resume: bool,
    overwrite: bool,
    before: Measures | None,
) -> PruneResult:
    """Apply the plan in OUT.partial, score, and put the result in place."""
    plan, rivals = planned.plan, planned.rivals
    targets = planning.targets(plan, job.anatomy)
    with Workspace.open(
        output,
        overwrite=overwrite,
        resume=resume,
        fingerprint=_fingerprint(job, plan, rivals) if job.team.first else None,
        source=job.source.directory,
        team=job.team,
    ) as workspace:
        if workspace.committed:
            return job.team.from_first(lambda: _committed(plan, output, workspace))
        if job.team.first:
            planned.keep(workspace.path, _basis(job))
        if before is None and job.team.first:
            scores = workspace.path / "before.json"
            before = measured_once(scores, lambda: score(job, job.source))
        with job.clock("apply"):
            walked = prune(
                job.source,
                job.batches,
                targets,
                job.settings,
                workspace,
                job.device,
                job.progress,
                job.team,
                {name: planning.targets(other, job.anatomy) for name, other in rivals.items()},
            )
        scored = before or Measures()
        return job.team.from_first(
            lambda: complete(job, plan, rivals, walked, workspace, output, scored)
        )


def _committed(plan: Plan, output: Path, workspace: Workspace) -> PruneResult:
    """Clear up after a run that was killed when all was done."""
    workspace.discard()
    names = [row["module"] for row in plan.rows]
    done = read_plan(
        output / PLAN_FILE,
        command=planning.COMMAND,
        model_digest=plan.model_digest,
        modules=names,
    )
    return PruneResult(done, Receipt.read(output), output)


def _fingerprint(job: Job, plan: Plan, rivals: Mapping[str, Plan]) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one."""
    others = {"rivals": {name: other.digest() for name, other in rivals.items()}} if rivals else {}
    return {**others, **_basis(job), "plan": plan.digest()}


def _basis(job: Job) -> dict[str, Any]:
    """All that a plan is made from."""
    return {
        "command": planning.COMMAND,
        "model": job.source.digest(),
        "data": job.data.digest if job.data else None,
        "options": job.settings.as_dict(),
    }


def _describe_plan(plan: Plan, settings: AlphaPruneSettings, given: bool) -> str:
    if given:
        rule = "shares of the plan given"
    elif settings.nm:
        rule = f"{settings.pattern} everywhere"
    elif settings.rule == "uniform":
        rule = settings.rule
    else:
        rule = f"{settings.metric if settings.rule == 'alpha' else settings.rule}"
        rule += " by block and matrix" if settings.grain == "mixed" else f" by {settings.grain}"
    said = planning.said_of_rows(plan)
    rule += {"trim": ", rows by trim", "given": ", rows as given", "even": ""}[said]
    return plan_line(settings.method, rule, plan.rows, mixed_note(plan) or "")
