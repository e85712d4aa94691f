"""The calibration text that a command's options ask for, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from compress.calibration.sets import calibration_set
from compress.calibration.speech import is_speech, speech_batches
from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.source import Source
from compress.data.batches import given_batches
from compress.data.batching import CalibrationReport
from compress.data.overlap import relation
from compress.errors import RequestError
from compress.evaluation.measures import Request
from compress.progress import Progress
from compress.reports.headers import header_line

DEFAULT_SEQLEN = 2048


class CalibrationAsked(Protocol):
    """The options that decide what is calibrated on, as every such command's settings have them."""

    @property
    def calib(self) -> str:
        """Data specs of one set."""

    @property
    def samples(self) -> int:
        """Sequences."""

    @property
    def seqlen(self) -> int | None:
        """Tokens in one."""

    @property
    def batch_size(self) -> int:
        """Sequences run at once."""

    @property
    def doc_sampling(self) -> str:
        """How documents become windows."""

    @property
    def select(self) -> str:
        """How windows are chosen."""

    @property
    def chat_template(self) -> bool:
        """Whether prompt formats become conversations."""

    @property
    def allow_leakage(self) -> bool:
        """Whether text may be calibrated on and evaluated on."""

    @property
    def registry(self) -> str | Path | None:
        """A file of own corpora."""

    @property
    def ppl(self) -> Sequence[str]:
        """Texts that are scored."""

    @property
    def tasks(self) -> Sequence[str]:
        """Tasks that are scored."""

    @property
    def limit(self) -> int | None:
        """Most examples a task."""

    @property
    def seed(self) -> int:
        """Of every random choice."""

    @property
    def dtype(self) -> Any:
        """Of the weights."""


class Calibration(NamedTuple):
    """Calibration batches and what is to be said of them.

    Attributes:
        batches: keyword arguments of the model's forward, one dict a batch.
        report: what they are made of.
        line: the header's line.
        notes: what was left out, and what is near the evaluation.
    """

    batches: list[dict[str, Tensor]]
    report: CalibrationReport
    line: str
    notes: list[str]


def read_calibration(
    source: Source,
    asked: CalibrationAsked,
    request: Request,
    batches: Sequence[Mapping[str, Any]] | None,
    *,
    device: str,
    progress: Progress,
    more: int = 0,
) -> Calibration:
    """Take the batches given, or read and pack the calibration text, or recordings.

    Args:
        source: the dense model.
        asked: the options.
        request: what is evaluated; calibration text that holds it is left out.
        batches: batches to use instead of text, or None.
        device, progress: of what runs the model, where the text is sampled from it.
        more: sequences beyond those asked for, to be held out.

    Raises:
        RequestError: sequences above the model's limit, and what `calibration_set` raises.
    """
    if batches is None and is_speech(source):
        batches = speech_batches(
            source,
            asked.calib,
            samples=asked.samples + more,
            seed=asked.seed,
            resample=request.resample,
            progress=progress,
        )
    if batches is not None:
        own, report = given_batches(batches)
        line = header_line("data", f"{report.windows} samples in {len(batches)} batches", "")
        return Calibration(own, report, line, [])
    limit = source.token_limit()
    seqlen = asked.seqlen or min(DEFAULT_SEQLEN, limit or DEFAULT_SEQLEN)
    if limit is not None and seqlen > limit:
        raise RequestError(
            f"`--seqlen {seqlen}` is above the model's limit of {limit} tokens",
            f"use `--seqlen {limit}` or less",
        )
    found, report = calibration_set(
        source,
        asked.calib,
        samples=asked.samples + more,
        seqlen=seqlen,
        seed=asked.seed,
        batch_size=asked.batch_size,
        held_out=asked.ppl,
        items=_items(asked, request),
        allow_leakage=asked.allow_leakage,
        registry=asked.registry,
        doc_sampling=asked.doc_sampling,
        chat_template=asked.chat_template,
        select=asked.select,
        device=device,
        dtype=resolve_dtype(asked.dtype),
        progress=progress,
    )
    scored = [*asked.ppl, *asked.tasks]
    line = header_line(
        "data",
        f"{asked.calib}, {asked.samples} × {seqlen} tokens{_padding(report)}, seed {asked.seed}",
        f"evaluation {', '.join(scored)}" if scored else "",
    )
    return Calibration(found, report, line, _notes(asked, report))


def _padding(data: CalibrationReport) -> str:
    """How many tokens are real, where windows of whole examples aren't full."""
    full = data.tokens == data.windows * data.seqlen
    return "" if full else f" ({data.tokens:,} without padding)"


def _items(asked: CalibrationAsked, request: Request) -> dict[str, list[str]]:
    """The texts of the tasks' items, which calibration text is searched for."""
    if request.tasks is None or asked.allow_leakage:
        return {}
    return request.tasks.texts(asked.limit)


def _notes(asked: CalibrationAsked, data: CalibrationReport) -> list[str]:
    """What was left out, and what is near."""
    notes = []
    if data.dropped_documents or data.dropped_windows:
        notes.append(
            f"calibration: left out {data.dropped_documents} documents and "
            f"{data.dropped_windows} windows that are also in an evaluation text"
        )
    for task, count in data.leaked.items():
        notes.append(f"calibration: left out {count} windows that hold a passage of task `{task}`")
    if data.cut:
        notes.append(f"calibration: {data.cut} examples didn't fit a window of {data.seqlen}")
    near = [
        name
        for name in (*asked.ppl, *asked.tasks)
        if relation(asked.calib, name, asked.registry) == "in-domain"
    ]
    if near:
        notes.append(
            f"calibration text is of the data set that {', '.join(near)} measures (another split)"
        )
    return notes
