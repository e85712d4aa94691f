"""What every command does that makes a checkpoint from another: open it, score it, tell of it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.plan import PLAN_FILE, Plan
from compress.checkpoints.save import placed
from compress.checkpoints.source import Source, open_source
from compress.errors import RequestError
from compress.evaluation.asked import measure_asked
from compress.evaluation.measures import Measures, Request, check_request, compare
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.reports.headers import model_line
from compress.reports.notebook import Displayable
from compress.reports.receipt import Receipt


class Job(Protocol):
    """One run of such a command."""

    source: Source
    settings: Any
    device: str
    clock: Clock


class Scored(Job, Protocol):
    """A run whose model is scored by the shared evaluation options."""

    request: Request
    progress: Progress


M = TypeVar("M", bound="Made")


@dataclass(frozen=True)
class Made(Displayable):
    """What such a command hands back; a room's own class says how it is shown.

    Attributes:
        plan: what was decided, a row a module.
        receipt: what was measured; None after a dry run.
        output: the directory written; None after a dry run or when none was asked for.
        model: the model made, in memory, where no output was asked for.
        before, after: the scores with the outcome of every window and item, for comparisons.
    """

    plan: Plan
    receipt: Receipt | None = None
    output: Path | None = None
    model: PreTrainedModel | None = None
    before: Measures = field(default_factory=Measures)
    after: Measures = field(default_factory=Measures)

    def in_memory(self: M, model: PreTrainedModel) -> M:
        """Return the result with the model instead of a directory."""
        return replace(self, output=None, model=model)

    def as_dict(self) -> dict[str, Any]:
        """The receipt, or the plan after a dry run, as JSON types."""
        return self.plan.as_dict() if self.receipt is None else self.receipt.as_dict()


def open_model(
    stack: contextlib.ExitStack,
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    plan_out: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Open the model of a request, one in memory by way of the disk.

    Args:
        stack: closes what was opened for it.
        model: a local directory, a Hub id, or a model.
        tokenizer: of a model in memory.
        plan_out: where the plan is to be saved, checked here too.
        revision, token, trust_remote_code: of a Hub model.

    Raises:
        RequestError: there is no such model, or no directory for the plan.
    """
    path = placed(model, tokenizer, stack)
    source = open_source(path, revision=revision, token=token, trust_remote_code=trust_remote_code)
    if plan_out is not None and not Path(plan_out).absolute().parent.is_dir():
        raise RequestError(f"`--plan-out {plan_out}`: its directory doesn't exist")
    return source


def place_of(stack: contextlib.ExitStack, output: str | Path | None) -> Path:
    """Where the result goes: OUT, or a place that lasts as long as the call."""
    if output is not None:
        return Path(output)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compress-"))) / "out"


def read_back(place: Path, command: str, source: Source) -> Plan:
    """Return the plan of a run that was killed when all was done."""
    stored = json.loads((Path(place) / PLAN_FILE).read_text(encoding="utf-8"))
    return Plan(command, source.digest(), stored["rows"], stored.get("options") or {})


def describe_model(source: Source, blocks: int) -> str:
    """The header's line of a model that is read block by block."""
    return model_line(
        source.name,
        source.config.model_type,
        blocks,
        source.parameters_on_disk(),
        str(source.dtype).removeprefix("torch."),
    )


def request_of(settings: Any, source: Source, **more: Any) -> Request:
    """Check what a command's evaluation options ask.

    Args:
        settings: with the shared evaluation options as fields.
        source: the model.
        more: what else check_request takes.

    Raises:
        RequestError: texts or tasks that can't be had, or that the model can't be scored on.
    """
    return check_request(
        ppl=settings.ppl,
        tasks=settings.tasks,
        task_dirs=settings.task_dirs,
        source=source,
        seqlen=settings.eval_seqlen,
        stride=settings.stride,
        registry=settings.registry,
        seed=settings.seed,
        **more,
    )


def score(job: Scored, source: Source, label: str = "") -> Measures:
    """Score a checkpoint as the options ask; a label names it in the progress."""

    def labelled(task: str, done: int, total: int, note: str = "") -> None:
        job.progress(f"{task} {label}".rstrip(), done, total, note)

    return measure_asked(
        source,
        job.request,
        job.settings,
        device=job.device,
        dtype=resolve_dtype(job.settings.dtype),
        token_limit=job.source.token_limit(),
        clock=job.clock,
        progress=labelled,
    )


def receipt_of(
    job: Job,
    plan: Plan,
    before: Measures,
    after: Measures,
    sizes: tuple[Mapping[str, Any], Mapping[str, Any]],
    **parts: Any,
) -> Receipt:
    """Return the receipt of a finished run.

    Args:
        job: the run.
        plan: what was done, named by its command.
        before, after: the scores.
        sizes: counts of the model read and of the one written, which stand beside the scores.
        parts: whatever else Receipt.build takes; "settings" and "cost" take the place of the job's.
    """
    given = {"settings": job.settings.as_dict(), "cost": {"seconds": job.clock.seconds}, **parts}
    return Receipt.build(
        plan.command,
        seed=job.settings.seed,
        device=job.device,
        model={
            "source": job.source.name,
            "architecture": job.source.model_class().__name__,
            "digest": job.source.digest(),
        },
        plan={"file": PLAN_FILE, "digest": plan.digest(), "rows": len(plan.rows)},
        before={**sizes[0], **before.as_receipt()},
        after={**sizes[1], **after.as_receipt()},
        comparison=compare(before, after),
        **given,
    )
