"""What a study reads before it prunes: the models, what scores them, and every calibration set."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.anatomy import Anatomy, Matrix, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.placement import compute_dtype, resolve_device, resolve_dtype
from compress.checkpoints.source import Source, open_source
from compress.data import CalibrationReport
from compress.errors import RequestError
from compress.evaluation.measures import Request
from compress.evaluation.perplexity import text_tokens
from compress.jobs import request_of
from compress.progress import Progress
from compress.reports.receipt import versions
from compress.sparsity import planning
from compress.sparsity.pruner import Target
from compress.study.calibrating import draw
from compress.study.cells import Cell, Group
from compress.study.settings import Setting, StudySettings

WINDOW = 2048  # tokens, where neither the user nor the model says less


@dataclass
class Subject:
    """One model of a study, opened and checked; its weights stay on disk.

    Attributes:
        name: as the user named it.
        source: the checkpoint.
        anatomy, matrices: its blocks, and the matrices that are pruned.
        request: what scores it, texts as token ids.
        device: where all runs.
        dtype: the weights' dtype that was asked for, or None.
        seqlen, eval_seqlen: tokens in a window of calibration and of scoring.
        plans: targets by setting, of allocations that need no data.
        scored_by: digest of all that a score depends on, once it is known.
    """

    name: str
    source: Source
    anatomy: Anatomy
    matrices: list[Matrix]
    request: Request
    device: str
    dtype: torch.dtype | None
    seqlen: int
    eval_seqlen: int
    tokenizer: Any
    plans: dict[Setting, dict[str, Target]] = field(default_factory=dict)
    scored_by: str = ""

    @property
    def running(self) -> torch.dtype:
        """What the walk computes in."""
        return self.dtype or compute_dtype(self.source.dtype, self.device)

    @property
    def stored(self) -> torch.dtype:
        """What weights are rounded to."""
        return self.dtype or self.source.dtype

    def targets(
        self,
        setting: Setting,
        settings: StudySettings,
        batches: Sequence[dict[str, Tensor]],
        progress: Progress,
    ) -> dict[str, Target]:
        """What each matrix loses; allocations that read no data are planned once."""
        asked = settings.pruning(setting)
        known = self.plans.get(setting)
        if known is not None:
            return known
        ground = planning.ground_of(
            self.source,
            self.anatomy,
            self.matrices,
            asked,
            batches=list(batches),
            held_out=[],
            device=self.device,
            progress=progress,
        )
        plan = planning.make_plan(ground, planning.measure(ground), self.source.digest())
        made = planning.targets(plan, self.anatomy)
        if not needs_text(setting):
            self.plans[setting] = made
        return made


def needs_text(setting: Setting) -> bool:
    """Whether a setting's allocation rests on calibration text."""
    from compress.sparsity.allocators.table import ALLOCATORS

    return setting.pattern is None and ALLOCATORS[setting.allocation].data


def open_subject(model: str, settings: StudySettings, progress: Progress, **where: Any) -> Subject:
    """Check a model and all that can be checked of the request without calibration text.

    Args:
        model: a directory or a Hub id.
        settings: the study's.
        progress: told of the check of every weight.
        where: revision, token, trust_remote_code of a Hub model.

    Raises:
        RequestError: the model, the evaluation texts or the tasks can't be used.
    """
    source = open_source(model, **where)
    request = request_of(settings, source)
    tokenizer = source.tokenizer()
    if tokenizer is None:
        raise RequestError(
            f"`{model}` has no tokenizer, which the calibration text needs",
            "copy the tokenizer files of the original model into the directory",
        )
    anatomy = read_anatomy(skeleton(source))
    limit = source.token_limit() or WINDOW
    seqlen = settings.seqlen or min(WINDOW, limit)
    if source.token_limit() is not None and seqlen > limit:
        raise RequestError(
            f"`--seqlen {seqlen}` is above the limit of `{model}`, {limit} tokens",
            f"use `--seqlen {limit}` or less",
        )
    matrices = planning.choose_matrices(anatomy, settings.skip)
    source.check_finite(progress)
    tokens = {
        spec: text_tokens(tokenizer, texts)
        for spec, texts in request.texts.items()
        if not isinstance(texts, torch.Tensor)
    }
    return Subject(
        name=model,
        source=source,
        anatomy=anatomy,
        matrices=matrices,
        request=replace(request, texts=tokens),
        device=resolve_device(settings.device),
        dtype=resolve_dtype(settings.dtype),
        seqlen=seqlen,
        eval_seqlen=settings.eval_seqlen or min(WINDOW, limit),
        tokenizer=tokenizer,
    )


@dataclass(frozen=True)
class Calibration:
    """One calibration set, drawn.

    Attributes:
        batches: what the model is run on.
        report: what it is made of.
    """

    batches: list[dict[str, Tensor]]
    report: CalibrationReport

    def as_dict(self) -> dict[str, Any]:
        """What the grid says of it: digest, windows and real tokens, what was dropped."""
        found = self.report.as_dict()
        named = ("digest", "windows", "seqlen", "tokens", "documents")
        dropped = ("dropped_documents", "dropped_windows", "leaked", "cut", "parts")
        kept = {name: found[name] for name in named}
        return kept | {name: found[name] for name in dropped if found.get(name)}


Sets = dict[tuple[str, str, int], Calibration]


def draw_all(
    subjects: Mapping[str, Subject],
    groups: Sequence[Group],
    settings: StudySettings,
    progress: Progress,
) -> Sets:
    """Draw every calibration set: all that can be wrong with the data shows before any work.

    Raises:
        RequestError: a corpus that isn't known or has too little text, a format that it can't be
            put into, text that is also evaluated on.
    """
    wanted = list(dict.fromkeys((g.model, g.calib, g.seed) for g in groups))
    items = {name: _items(subject, settings) for name, subject in subjects.items()}
    found: Sets = {}
    for done, (model, calib, seed) in enumerate(wanted):
        progress("calibration sets", done, len(wanted), f"{calib}, seed {seed}")
        subject = subjects[model]
        batches, report = draw(
            subject.source,
            calib,
            seed,
            settings,
            seqlen=subject.seqlen,
            items=items[model],
            device=subject.device,
            dtype=subject.dtype,
            progress=progress,
        )
        found[model, calib, seed] = Calibration(batches, report)
    progress("calibration sets", len(wanted), len(wanted))
    return found


def _items(subject: Subject, settings: StudySettings) -> dict[str, list[str]]:
    """The texts of the tasks' items, which calibration text is searched for."""
    if subject.request.tasks is None or settings.allow_leakage:
        return {}
    return subject.request.tasks.texts(settings.limit)


def content_of(
    subject: Subject, calibration: Calibration, cell: Cell, settings: StudySettings
) -> dict[str, Any]:
    """What a cell's result depends on beside its setting."""
    return {
        "model": subject.source.digest(),
        "data": calibration.report.digest,
        "batch_size": settings.batch_size,
        "stats": settings.stats,
        "damp": settings.damp,
        "block_size": settings.block_size,
        "skip": list(settings.skip),
        "dtype": str(subject.stored),
        "device": subject.device.partition(":")[0],
        "score": _score_digest(subject, settings),
        "versions": _versions(),
    }


@functools.cache
def _versions() -> dict[str, str | None]:
    own = versions()
    return {name: own.get(name) for name in ("compress", "torch", "transformers")}


def _score_digest(subject: Subject, settings: StudySettings) -> str:
    """Say what a score depends on: texts, tasks, sizes."""
    if subject.scored_by:
        return subject.scored_by
    texts = {s: hashlib.sha256(t.numpy().tobytes()).hexdigest() for s, t in _texts(subject)}
    asked = [settings.limit, settings.stride, subject.eval_seqlen, settings.eval_batch_size]
    content = [texts, list(settings.tasks), list(settings.task_dirs), *asked]
    if subject.request.long is not None:  # their prompts are drawn from it
        content.append(settings.seed)
    subject.scored_by = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return subject.scored_by


def _texts(subject: Subject) -> list[tuple[str, Tensor]]:
    return [(s, t) for s, t in subject.request.texts.items() if isinstance(t, Tensor)]
