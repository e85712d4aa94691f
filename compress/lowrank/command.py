"""`lowrank-svd` from a model to a receipt: measure, spread ranks, factor, save, score."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, overload

from compress.checkpoints.plan import Plan
from compress.checkpoints.save import load
from compress.checkpoints.workspace import Workspace, check_output
from compress.errors import RequestError, check_options
from compress.evaluation.asked import measured_once
from compress.jobs import describe_model, open_model, place_of, read_back, score
from compress.lowrank.finishing import complete
from compress.lowrank.planned import Planned, make_plan, read_given
from compress.lowrank.planning import COMMAND
from compress.lowrank.preparing import Job, Say, load_data, open_job
from compress.lowrank.result import LowRankResult, describe_plan
from compress.lowrank.settings import LowRankSettings
from compress.progress import Progress, silent
from compress.reports.clock import Clock
from compress.reports.headers import header_line
from compress.reports.receipt import Receipt
from compress.training.result import TrainResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@overload
def lowrank_svd(
    model: str | Path | PreTrainedModel,
    output: str | Path | None = None,
    *,
    from_scratch: Literal[False] = False,
    **options: Any,
) -> LowRankResult: ...


@overload
def lowrank_svd(
    model: str | Path | None = None,
    output: str | Path | None = None,
    *,
    from_scratch: Literal[True],
    **options: Any,
) -> TrainResult: ...


def lowrank_svd(
    model: str | Path | PreTrainedModel | None = None,
    output: str | Path | None = None,
    *,
    from_scratch: bool = False,
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
) -> LowRankResult | TrainResult:
    """Make layers of a model products of two thin ones; or train such a model from the start.

    Args:
        model: a local directory, a Hub id, or a model in memory (which stays as it is).
        output: the directory to make; None gives the factored model in `result.model`.
        from_scratch: train a low-rank model from a random start instead: `model` is a config, and
            `options` are those of `compress.lowrank.scratch.train_from_scratch`.
        plan: a plan or plan file whose ranks are used.
        plan_out: where to save the plan as well.
        dry_run: stop after the plan; nothing else is written.
        resume: go on from an interrupted run's journal in `OUT.partial`.
        overwrite: replace a non-empty output, at the end.
        tokenizer: of a model in memory, where text is read.
        revision, token, trust_remote_code: of a Hub model.
        batches: calibration batches to use instead of the text of `calib`: keyword arguments of the
            model's forward, one mapping a batch.
        progress, say: told where the job stands; say gets lines for the reader.
        options: fields of LowRankSettings, such as keep, method, calib, ppl.

    Returns:
        A LowRankResult: the plan, the receipt and where the model lies. From scratch, what
        train_from_scratch returns.

    Raises:
        RequestError: something about the request is wrong; nothing was written.
        RunError: the run failed part-way; what was finished is kept for `resume`.

    Source: SVD-LLM (arXiv:2403.07378) and what came after; see `truncate` and `sequential`.
    """
    if from_scratch:
        return _train(
            model, output, resume=resume, overwrite=overwrite, progress=progress, say=say,
            revision=revision, token=token, trust_remote_code=trust_remote_code,
            tokenizer=tokenizer, **options,
        )  # fmt: skip
    if model is None:
        raise RequestError("no model", "`compress lowrank-svd MODEL -o OUT`")
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
        say(describe_model(job.source, len(job.anatomy.blocks)))
        with clock("measure"):
            given = read_given(job, plan)
            load_data(job, batches, say)
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
            return LowRankResult(
                read_back(place, COMMAND, source), Receipt.read(place), Path(place)
            )
        result = _run(job, given, workspace, place, plan_out, dry_run, resume, say)
        if dry_run or output is not None:
            return result
        return result.in_memory(load(place))


def _run(
    job: Job,
    given: Planned | None,
    workspace: Workspace,
    output: Path,
    plan_out: str | Path | None,
    dry_run: bool,
    resume: bool,
    say: Say,
) -> LowRankResult:
    """Factor into the workspace, score, and put the result in place."""
    try:
        with job.clock("measure"):
            planned = make_plan(job, given, workspace)
    except RequestError:
        if not resume:
            workspace.discard()  # nothing is written for a request that can't be served
        raise
    made = planned.plan
    say(describe_plan(job, made, given is not None))
    if plan_out is not None:
        made.write(Path(plan_out))
    if dry_run:
        workspace.discard()
        for note in job.notes:  # there is no receipt to hold them
            say(header_line("note", note))
        return LowRankResult(made)
    before = measured_once(workspace.path / "before.json", lambda: score(job, job.source))
    return complete(job, planned, workspace, output, before)


def _train(model: Any, output: Any, **options: Any) -> TrainResult:
    """Train from a random start."""
    if not isinstance(model, (str, Path, NoneType)):
        raise RequestError(
            "from scratch, the model is a configuration, not a model in memory",
            "give a directory or .json file with a config, as `config.save_pretrained` writes it",
        )
    from compress.lowrank.scratch import train_from_scratch

    return train_from_scratch(model, output, **options)


def _fingerprint(job: Job, given: Planned | None) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one."""
    return {
        "command": COMMAND,
        "model": job.source.digest(),
        "plan": given.plan.digest() if given else None,
        "data": job.data.digest if job.data else None,
        "options": job.settings.as_dict(),
    }


def _settings(options: Mapping[str, Any]) -> LowRankSettings:
    check_options("lowrank_svd", options, (f.name for f in fields(LowRankSettings)))
    settings = LowRankSettings(**options)
    settings.check()
    return settings
