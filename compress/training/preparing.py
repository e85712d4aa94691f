"""All that a run needs before it writes: model, text and evaluation, checked and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compress.checkpoints.placement import resolve_device, resolve_dtype
from compress.checkpoints.plan import Plan
from compress.checkpoints.source import Source
from compress.data.specs import DataSpec, parse_spec
from compress.data.streaming import source_bytes
from compress.errors import RequestError
from compress.evaluation.asked import measure_asked
from compress.evaluation.measures import Measures, Request, check_request
from compress.numerics.ranks import Team
from compress.progress import Progress
from compress.reports.clock import Clock
from compress.training import arguments, telling
from compress.training.data import (
    Encoded,
    PackedRows,
    Rows,
    TokenStore,
    count_at_least,
    encode_documents,
    encode_samples,
    write_store,
)
from compress.training.feeding import TEXT, VALID, Feed, Stored, text_feed
from compress.training.freezing import Trained, train_only
from compress.training.initial import Start, build_model, open_start
from compress.training.norms import NORMS, Placement, place_norms, placement_of
from compress.training.objectives import (
    MaskedAnswerCollator,
    MaskedNextTokenCollator,
    NextTokenCollator,
    SampleRows,
)
from compress.training.packed import check_separation
from compress.training.quantising import Quantised, quantise_model
from compress.training.schedule import warmup_steps
from compress.training.settings import P_SCHEDULES, TrainSettings
from compress.training.sizes import PRESETS

Say = Callable[[str], None]
_FRESH_LR, _TRAINED_LR = 1e-3, 2e-5
_WATCHED = 250_000_000  # parameters up to which spikes are counted unless told
_ANNEALED = 0.1  # share of the run over which `--p-schedule anneal` lowers P to 0


@dataclass
class Job:
    """A checked run.

    Attributes:
        settings: with learning rate and sequence length filled in, and whether spikes are watched.
        placement: how the norms stand; None where that isn't known.
        quantised: which layers compute with 4-bit weights.
        trained: which parameters are trained; None where all are.
        notes: plain sentences for the receipt.
        plan: of the modules that were changed before training, where some were.
        extra: further entries of the receipt's "training".

    A subclass trains on something else than text: it reads, feeds and scores in its own way.
    """

    door: str
    settings: TrainSettings
    start: Start
    model: PreTrainedModel
    placement: Placement | None
    request: Request
    team: Team
    device: str
    arrangement: arguments.Arrangement
    progress: Progress
    say: Say
    quantised: Quantised | None = None
    trained: Trained | None = None
    clock: Clock = field(default_factory=Clock)
    notes: list[str] = field(default_factory=list)
    plan: Plan | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What is said before the run."""
        return telling.plan_lines(self)

    def read(self, place: Path) -> Stored:
        """Read the training data, and what it is validated on, into a run's directory."""
        store = read_text(self, place / TEXT)
        if self.settings.valid:
            read_text(self, place / VALID, "evaluation")
        return store

    def data_line(self, stored: Any) -> str:
        """What is said of the data once read."""
        return telling.text_line(self, stored)

    def feed(self, place: Path) -> Feed:
        """Return what was read as the Trainer takes it."""
        return text_feed(self, place)

    def score(self, source: Source) -> Measures:
        """Score a checkpoint as the options ask."""
        return measure_asked(
            source,
            self.request,
            self.settings,
            device=self.device,
            dtype=resolve_dtype(self.settings.dtype),
            token_limit=self.start.token_limit(),
            clock=self.clock,
            progress=self.progress,
        )

    @property
    def ahead(self) -> bool:
        """Whether rows tell the token after the last: the model's loss takes shifted labels."""
        return takes_shifted_labels(self.model)


def prepare(
    door: str,
    model: str | Path | None,
    settings: TrainSettings,
    *,
    team: Team,
    progress: Progress,
    say: Say,
    kind: type[Job] = Job,
    change: Callable[[PreTrainedModel, Start], None] = lambda model, start: None,
    **source: Any,
) -> Job:
    """Check a request and make its model; writes nothing.

    Args:
        door, model, settings, source: as given.
        team, progress, say: of the run.
        kind: the class of the job.
        change: called with the model once it is built, before its norms are placed.

    Raises:
        RequestError: something about the request is wrong.
    """
    settings.check(tuple(NORMS))
    device = resolve_device(settings.device)
    resolve_dtype(settings.dtype)
    arguments.check_device(settings, device)
    team.device(device)
    arrangement = arguments.arrange(settings.batch_size, team.size, settings.micro_batch, device)
    start = open_start(model, settings, **source)
    settings = _fill_in(settings, start)
    request = _check_evaluation(settings, start)
    clock = Clock()
    with clock("load"):
        if team.first:
            if start.source is not None:
                start.source.check_finite(progress)
            check_text(settings, start.tokenizer)
        built = build_model(start, settings)
        change(built, start)
        placement = _place_norms(built, settings, start)
        scheme = settings.quantisation()
        quantised = None if scheme is None else quantise_model(built, scheme)
        trained = train_only(built, settings.train_only) if settings.train_only else None
        notes = list(placement.warnings)
        settings = watch_spikes(settings, built, notes)
        if settings.separate_documents:
            check_separation(built)
    return kind(
        door,
        settings,
        start,
        built,
        placement,
        request,
        team,
        device,
        arrangement,
        progress,
        say,
        quantised,
        trained,
        clock,
        notes,
    )


def check_run(door: str, model: str | Path, options: Mapping[str, Any], **source: Any) -> None:
    """Check a run's request and look into its text, without reading a weight.

    Raises:
        RequestError: something about the request is wrong.
    """
    settings = TrainSettings.of_door(door, options)
    settings.check(tuple(NORMS))
    start = open_start(model, settings, **source)
    check_text(_fill_in(settings, start), start.tokenizer)


def _fill_in(settings: TrainSettings, start: Start) -> TrainSettings:
    """Choose the learning rate and shorten a default sequence to the model's limit."""
    lr = settings.lr
    if lr is None:
        lr = _FRESH_LR if start.fresh else _TRAINED_LR
        if settings.preset is not None:
            size = PRESETS[settings.preset]
            lr = size.spam_lr if "spam" in settings.optimizer else size.lr
    limit = start.token_limit()
    if limit is not None and settings.seqlen is not None and settings.seqlen > limit:
        raise RequestError(
            f"`--seqlen {settings.seqlen}` is above the model's limit of {limit} tokens",
            f"use `--seqlen {limit}` or less",
        )
    length = min(settings.length, limit or settings.length)
    return replace(settings, lr=lr, seqlen=length, betas=settings.moments)


def _place_norms(model: PreTrainedModel, settings: TrainSettings, start: Start) -> Placement:
    """Place the norms where that is asked for, else look how they stand."""
    if settings.norm is None:
        return placement_of(model)
    steps = settings.run_steps()
    options = {} if settings.post_fraction is None else {"post_fraction": settings.post_fraction}
    return place_norms(
        model,
        settings.norm,
        **options,
        fresh=start.fresh,
        seed=settings.seed,
        warmup=warmup_steps(settings.warmup, steps) / steps,
    )


def watch_spikes(
    settings: TrainSettings, model: PreTrainedModel, notes: list[str]
) -> TrainSettings:
    """Decide whether spikes are watched where the user leaves it open."""
    if settings.spikes is not None:
        return settings
    many = sum(p.numel() for p in model.parameters()) > _WATCHED
    if many and not settings.deepspeed:
        notes.append(
            f"spikes weren't counted: above {_WATCHED:,} parameters that takes --spikes, and 4 "
            "bytes of memory a parameter"
        )
    return replace(settings, spikes=not many and settings.deepspeed is None)


def _check_evaluation(settings: TrainSettings, start: Start) -> Request:
    request = check_request(
        ppl=settings.ppl,
        tasks=settings.tasks,
        task_dirs=settings.task_dirs,
        source=start.source,
        seqlen=settings.eval_seqlen,
        stride=settings.stride,
        seed=settings.seed,
    )
    limit = start.token_limit()
    if settings.eval_seqlen and limit is not None and settings.eval_seqlen > limit:
        raise RequestError(
            f"`--eval-seqlen {settings.eval_seqlen}` is above the model's limit of {limit} tokens",
            f"use `--eval-seqlen {limit}` or less",
        )
    return request


# Text


def encoded(
    settings: TrainSettings, specs: list[DataSpec], tokenizer: Any, role: str
) -> Iterator[tuple[list[Encoded], int]]:
    """Tokenise specs as the run reads them, samples or documents."""
    columns = settings.columns
    if columns is not None:
        return encode_samples(specs, tokenizer, columns, role=role)
    return encode_documents(specs, tokenizer, role=role)


def check_text(settings: TrainSettings, tokenizer: Any) -> None:
    """Look into the texts as far as it takes to see that they give a sequence.

    Raises:
        RequestError: a text can't be read, or gives none.
    """
    for option, role in (("data", "calibration"), ("valid", "evaluation")):
        given = getattr(settings, option)
        if given:
            parts = encoded(settings, parse_spec(given), tokenizer, role)
            check = _check_samples if settings.sft else _check_length
            check(f"`--{option} {','.join(given)}`", parts, settings.length)


def _check_length(name: str, parts: Iterator[tuple[list[Encoded], int]], length: int) -> None:
    found = count_at_least(parts, length + 1)
    if found <= length:
        raise RequestError(
            f"{name} holds {found} tokens, and one sequence takes {length + 1}",
            f"use a longer text, or `--seqlen {found - 1}` or less" if found > 2 else "use a text",
        )


def _check_samples(name: str, parts: Iterator[tuple[list[Encoded], int]], length: int) -> None:
    samples = 0
    for chunk, _ in parts:
        if any(sample.answer < length for sample in chunk):
            return
        samples += len(chunk)
    if not samples:
        raise RequestError(f"{name} holds no sample with an answer")
    raise RequestError(
        f"{name} has no prompt shorter than a sequence of {length} tokens ({samples} samples)",
        "use a longer `--seqlen`",
    )


def read_text(job: Job, directory: Path, role: str = "calibration") -> TokenStore:
    """Tokenise the training (or validation) text to `directory`, or open what is there.

    Raises:
        RequestError: the text is broken, or has tokens that the model has no embedding for.
        RunError: the disk is full.
    """
    given = job.settings.data if role == "calibration" else job.settings.valid
    specs = parse_spec(given)
    embedding: Any = job.model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    store = write_store(
        encoded(job.settings, specs, job.start.tokenizer, role),
        directory,
        vocabulary=max(rows, len(job.start.tokenizer)),
        total=sum(source_bytes(spec, role) for spec in specs),
        progress=job.progress,
    )
    if store.largest >= rows:
        raise RequestError(
            f"the tokenizer makes id {store.largest}, and the model has {rows} embeddings",
            "the tokenizer and the model don't belong together",
        )
    return store


def make_rows(job: Job, store: TokenStore, *, plain: bool = False) -> Rows:
    """Return a store's rows: packed documents, or samples, with masked copies unless plain."""
    settings = job.settings
    rows: Rows
    if settings.sft is not None:
        rows = SampleRows(
            store,
            settings.length,
            masked=settings.ratio > 0 and not plain,
            mode=settings.sft_mode or "separate",
            min_response=50 if settings.min_response is None else settings.min_response,
            end=job.start.tokenizer.eos_token_id,
        )
    else:
        rows = PackedRows(
            store, settings.length, ahead=job.ahead, separate=settings.separate_documents
        )
    return rows


def make_collator(job: Job, *, masked: bool = True) -> NextTokenCollator:
    """Return what makes batches of rows."""
    settings, tokenizer = job.settings, job.start.tokenizer
    multiple = 1 if settings.sft is None else 8
    if not masked or settings.ratio == 0:
        return NextTokenCollator(tokenizer, multiple=multiple)
    anneal = None
    if settings.p_schedule == P_SCHEDULES[1]:
        total = settings.run_steps() * settings.batch_size
        anneal = (round((1 - _ANNEALED) * total), total)
    common = (tokenizer, settings.ratio, settings.seed, settings.mask_special)
    if settings.sft is None:
        return MaskedNextTokenCollator(*common, anneal=anneal, multiple=multiple)
    scope = settings.mask_scope or "response"
    return MaskedAnswerCollator(*common, scope=scope, anneal=anneal, multiple=multiple)


def takes_shifted_labels(model: PreTrainedModel) -> bool:
    """Whether the model's own loss takes `shift_labels`, as transformers' causal loss does."""
    import inspect

    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    found = inspect.signature(model.forward).parameters.values()
    keywords = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in found)
    return keywords and LOSS_MAPPING.get(str(model.loss_type)) is ForCausalLMLoss
