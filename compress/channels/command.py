"""`pass-prune` from a network to a receipt: choose, cut, repair, train, save, score."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.channels.arms import TOLERANCE, Arm, choose_masks, masks_from, run_arm
from compress.channels.passing import adapt
from compress.channels.preparing import Job, Say, open_job
from compress.channels.result import (
    PruneResult,
    describe_data,
    describe_model,
    draw_widths,
    plan_rows,
)
from compress.channels.scratch import check_start, dense_start
from compress.channels.selecting import kept_counts
from compress.channels.settings import NAMES, PruneSettings
from compress.channels.stock import make_stock
from compress.channels.telling import (
    COMMAND,
    describe_plan,
    make_receipt,
    plan_options,
)
from compress.checkpoints.onnx_form import FILE as ONNX_FILE
from compress.checkpoints.onnx_form import export_onnx
from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.plan import PLAN_FILE, Plan, read_plan
from compress.checkpoints.save import copy_companions, load, writing
from compress.checkpoints.source import Source, open_source
from compress.checkpoints.workspace import Workspace, check_output, partial_path
from compress.errors import RequestError, RunError, check_options
from compress.evaluation.accuracy import accuracy
from compress.evaluation.asked import measured_once
from compress.evaluation.measures import Measures
from compress.jobs import open_model, place_of, read_back
from compress.numerics.ranks import joined
from compress.progress import Progress, silent
from compress.reports.clock import Clock
from compress.reports.headers import header_line
from compress.reports.receipt import Receipt, write_items

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTHS_FILE = "widths.png"
NO_SEARCH = "l1"
_SPACE = "free some space there, then go on with --resume"


def pass_prune(
    model: str | Path | PreTrainedModel | None = None,
    output: str | Path | None = None,
    *,
    plan: str | Path | Plan | None = None,
    plan_out: str | Path | None = None,
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    say: Say = lambda text: None,
    **options: Any,
) -> PruneResult:
    """Remove channels, heads and MLP units from a vision network.

    Args:
        model: a local directory, a Hub id, or a model in memory (which stays as it is); None with
            `preset`, whose network is trained first, into `OUTPUT-dense`.
        output: the directory to make; None gives the cut model in `result.model`.
        plan: a plan or plan file whose units are kept; nothing is chosen then.
        plan_out: where to save the plan as well.
        dry_run: stop after the plan; nothing else is written.
        resume: go on from an interrupted run's journal in `OUT.partial`.
        overwrite: replace a non-empty output, at the end.
        revision, token, trust_remote_code: of a Hub model.
        progress, say: told where the job stands; say gets lines for the reader.
        options: fields of PruneSettings, such as data, keep, method.

    Returns:
        The plan, the receipt and where the model lies.

    Raises:
        RequestError: something about the request is wrong; nothing was written.
        RunError: the run failed part-way; what was finished is kept for `resume`.

    Sources: PASS, arXiv:2407.17412; coupled groups, DepGraph, arXiv:2301.12900.
    """
    check_options("pass_prune", options, NAMES)
    settings = PruneSettings(**options).resolved()
    clock = Clock()
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(joined(settings.device))
        if not team.first:
            progress, say = silent, (lambda text: None)
        if model is None or settings.preset is not None:
            check_start(model, settings, output, dry_run)
            with clock("dense"):
                model = dense_start(settings, Path(str(output)), team, resume, progress, say)
            resume = resume and team.from_first(partial_path(str(output)).exists)
        source = open_model(
            stack, model, plan_out=plan_out, revision=revision, token=token,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        place = place_of(stack, None if dry_run else output)
        check_output(place, overwrite=overwrite or resume, source=source.directory)
        with clock("load"):
            job = open_job(source, settings, progress, clock, team)
        say(describe_model(job))
        say(describe_data(job))
        given = _given(job, plan)
        workspace = stack.enter_context(
            Workspace.open(
                place,
                overwrite=overwrite,
                resume=resume,
                fingerprint=_fingerprint(job, given) if team.first else None,
                source=source.directory,
                team=team,
            )
        )
        if workspace.committed:
            if team.first:
                workspace.discard()
            team.wait()
            return PruneResult(read_back(place, COMMAND, source), Receipt.read(place), place)
        result = _run(job, given, workspace, place, plan_out, dry_run, say)
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
) -> PruneResult:
    """Choose, cut and train in the workspace, and put the result in place."""
    own, place = job.settings.method, workspace.path / "methods"
    if job.settings.new_head:
        with job.clock("new head"):
            adapt(job, workspace.path / "new-head", say)
    with job.clock("choose"):
        if given is not None:
            arm = Arm(own, masks_from(job, [row["keep"] for row in given.rows]))
        else:
            arm = choose_masks(job, own, place / own, say)
    made = Plan(COMMAND, job.source.digest(), plan_rows(job.groups, arm.masks), plan_options(job))
    say(describe_plan(job, arm))
    if plan_out is not None and job.team.first:
        made.write(Path(plan_out))
    if dry_run:
        if job.team.first:
            workspace.discard()
        return PruneResult(made)
    before = measured_once(workspace.path / "before.json", lambda: _before(job))
    arms = {own: run_arm(job, arm, place / own, say)}
    arms |= _baselines(job, arm, place, say)
    network = arms[own].model
    assert network is not None
    if not job.team.first:
        job.team.wait()
        return PruneResult(made, None, output)
    with job.clock("save"):
        stock = _write(job, network, arms[own], workspace)
        made.write(workspace.result / PLAN_FILE)
        draw_widths(made, workspace.result / WIDTHS_FILE)
        result = open_source(workspace.result)
        _check_written(job, network, result)
    after = _after(job, arms[own])
    receipt = make_receipt(job, made, arms, result, before, after, stock)
    receipt.write(workspace.result)
    if after.accuracy:
        write_items(workspace.result, after.as_items())
    with job.clock("save"):
        workspace.commit()
    job.team.wait()
    return PruneResult(made, receipt, output, None, before, after)


def _baselines(job: Job, own: Arm, place: Path, say: Say) -> dict[str, Arm]:
    """Run the other methods on the same budget; L1 without search is always among them.

    A budget of latency is passed on as the multiply-adds that the own method ended at.
    """
    settings = job.settings
    names = [name for name in settings.baselines if name != own.name]
    free = job.data is not None and own.name != NO_SEARCH and NO_SEARCH not in names
    budget = settings
    if settings.target_latency is not None:
        whole = job.costs.macs_of(job.costs.widths)
        share = float(job.costs.macs_of(kept_counts(own.masks)) / whole)
        budget = replace(settings, target_latency=None, keep=share)
    arms = {}
    for name in [*names, *([NO_SEARCH] if free else [])]:
        # the row without search is there to be compared with, cut and repaired; it isn't trained
        once = replace(job, settings=replace(budget, method=name))
        say(header_line("baseline", name))
        with job.clock("baselines"):
            arm = choose_masks(once, name, place / name, say)
            arms[name] = run_arm(once, arm, place / name, say, tune=name in names)
        arms[name].model = None
    return arms


def _write(job: Job, network: PreTrainedModel, arm: Arm, workspace: Workspace) -> bool:
    """Save the cut network with what belongs to it; return whether it is stock."""
    dtype = resolve_dtype(job.settings.dtype) or job.source.dtype
    stock = make_stock(network)
    torch.nn.Module.to(network, dtype)
    with writing(workspace.result, _SPACE):
        network.save_pretrained(workspace.result, max_shard_size="5GB")
        copy_companions(job.source.companions(), workspace.result)
        if job.data is not None:
            job.data.processing.save(workspace.result)
        if arm.prompt is not None:
            arm.prompt.save(workspace.result)
        if "onnx" in job.settings.export:
            torch.nn.Module.to(network, torch.float32)
            export_onnx(network, job.example.float(), workspace.result / ONNX_FILE)
            torch.nn.Module.to(network, dtype)
    return stock


def _check_written(job: Job, network: PreTrainedModel, result: Source) -> None:
    """Compare the checkpoint, loaded again, with the network in memory; both in its dtype.

    Kernels may take sums in another order over weights that lie otherwise in memory.

    Raises:
        RunError: they differ by more.
    """
    again = result.load(device=job.device)
    example = job.example.to(next(network.parameters()).dtype)
    with torch.no_grad():
        wanted = network(pixel_values=example).logits
        found = again(pixel_values=example).logits
    worst = float((wanted - found).abs().max()) / (float(wanted.std()) or 1.0)
    if worst > TOLERANCE.get(wanted.dtype, 0.1):
        raise RunError(
            f"the checkpoint written differs from the network in memory by {worst:.2g} "
            "of its logits' spread",
            "this is a bug worth reporting; nothing was put in place",
        )
    torch.nn.Module.to(network, job.dtype)


def _before(job: Job) -> Measures:
    """Score the dense network on the test images."""
    if job.data is None:
        return Measures()
    with job.clock("evaluate"):
        found = accuracy(
            job.model, job.data.test, batch_size=job.settings.batch_size,
            task="dense", progress=job.progress,
        )  # fmt: skip
    return Measures(accuracy={job.data.name: replace(found, skipped=job.data.skipped)})


def _after(job: Job, arm: Arm) -> Measures:
    """Score the network as it was saved; with its prompt too, where it has one."""
    if job.data is None:
        return Measures()
    assert arm.model is not None
    found = {}
    for label, prompt in (("", None), (" with prompt", arm.prompt)):
        if label and prompt is None:
            continue
        with job.clock("evaluate"):
            found[job.data.name + label] = accuracy(
                arm.model, job.data.test, batch_size=job.settings.batch_size, prompt=prompt,
                task=f"saved{label}", progress=job.progress,
            )  # fmt: skip
    return Measures(accuracy=found)


def _given(job: Job, plan: str | Path | Plan | None) -> Plan | None:
    """Read a plan, and check that it is one for these groups."""
    if plan is None:
        return None
    names = [group.name for group in job.groups]
    if not isinstance(plan, Plan):
        plan = read_plan(
            Path(plan), command=COMMAND, model_digest=job.source.digest(), modules=names
        )
    rows = {row["module"]: row for row in plan.rows}
    for group in job.groups:
        row = rows.get(group.name)
        units = row.get("keep") if row else None
        good = isinstance(units, list) and units and all(
            isinstance(unit, int) and 0 <= unit < group.width for unit in units
        )  # fmt: skip
        if not good or len(set(units)) != len(units):  # type: ignore[arg-type]
            raise RequestError(
                f"the plan's row of `{group.name}` doesn't say which of its {group.width} units "
                "stay"
                if row
                else f"the plan has no row for `{group.name}`",
                "`keep` needs different whole numbers below the width; make a plan with "
                "`--plan-out FILE --dry-run`",
            )
    return replace(plan, rows=[rows[name] for name in names])


def _fingerprint(job: Job, plan: Plan | None) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one."""
    return {
        "command": COMMAND,
        "model": job.source.digest(),
        "plan": plan.digest() if plan else None,
        "data": job.data.digest() if job.data else None,
        "options": job.settings.as_dict(),
    }
