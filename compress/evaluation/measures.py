"""What is measured of one model, and how two models compare on the same windows and items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from compress.checkpoints.source import Source
from compress.data.audio import Recording
from compress.data.specs import load_documents, parse_spec
from compress.errors import RequestError
from compress.evaluation.accuracy import Accuracy
from compress.evaluation.compare import compare_items, compare_windows
from compress.evaluation.error_rates import CHARACTERS, WORDS, ErrorRate, compare_rates
from compress.evaluation.long_context.planning import LongTasks
from compress.evaluation.long_context.settings import LongContext, check_model_fits, split_tasks
from compress.evaluation.perplexity import Perplexity
from compress.evaluation.speech import check_speech_model, read_speech
from compress.evaluation.speed import Speed
from compress.evaluation.tasks import TaskScore, TaskSet
from compress.progress import Progress, silent


@dataclass(frozen=True)
class Measures:
    """What was measured of one model, with the outcomes of every window and item.

    Attributes:
        perplexity: data spec -> Perplexity.
        tasks: task name -> TaskScore.
        speed: or None.
        accuracy: data spec -> Accuracy of an image classifier.
        wer, cer: data spec -> ErrorRate of words, of characters.
    """

    perplexity: dict[str, Perplexity] = field(default_factory=dict)
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    speed: Speed | None = None
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    wer: dict[str, ErrorRate] = field(default_factory=dict)
    cer: dict[str, ErrorRate] = field(default_factory=dict)

    @property
    def has_items(self) -> bool:
        """Whether there are outcomes of windows, items or utterances."""
        return bool(self.perplexity or self.tasks or self.accuracy or self.wer)

    def as_receipt(self) -> dict[str, Any]:
        """Plain values in CONTRACT's shape; what was not measured is absent."""
        entry: dict[str, Any] = {}
        if self.perplexity:
            entry["perplexity"] = {k: v.as_receipt() for k, v in self.perplexity.items()}
        if self.tasks:
            entry["tasks"] = {k: v.as_receipt() for k, v in self.tasks.items()}
        for unit, rates in ((WORDS, self.wer), (CHARACTERS, self.cer)):
            if rates:
                entry[unit] = {k: v.as_receipt() for k, v in rates.items()}
        if self.speed is not None:
            entry["speed"] = self.speed.as_receipt()
        if self.accuracy:
            entry["accuracy"] = {k: v.as_receipt() for k, v in self.accuracy.items()}
        return entry

    def as_items(self) -> dict[str, Any]:
        """The outcome of every window and item, by which reports pair two runs."""
        windows = {key: value.losses.tolist() for key, value in self.perplexity.items()}
        tasks = {key: dict(value.items) for key, value in self.tasks.items()}
        images = {key: dict(value.items) for key, value in self.accuracy.items()}
        items: dict[str, Any] = {"perplexity": windows, "tasks": tasks}
        if images:
            items["accuracy"] = images
        for unit, rates in ((WORDS, self.wer), (CHARACTERS, self.cer)):
            if rates:
                items[unit] = {k: [*zip(v.errors, v.counts)] for k, v in rates.items()}
        return items

    def to_json(self) -> str:
        """All outcomes as JSON that `from_json` reads back to the last bit; no item's text."""
        perplexities = {
            key: {
                **_outcomes(value),
                "losses": value.losses.tolist(),
                "weights": value.weights.tolist(),
            }
            for key, value in self.perplexity.items()
        }
        tasks = {key: _outcomes(value) for key, value in self.tasks.items()}
        speed = None if self.speed is None else vars(self.speed)
        images = {key: _outcomes(value) for key, value in self.accuracy.items()}
        rates = {
            unit: {key: _outcomes(value) for key, value in found.items()}
            for unit, found in ((WORDS, self.wer), (CHARACTERS, self.cer))
        }
        kinds = {"perplexity": perplexities, "tasks": tasks, "speed": speed}
        return json.dumps({**kinds, "accuracy": images, **rates})

    @classmethod
    def from_json(cls, text: str) -> Measures:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        for value in data["perplexity"].values():
            for name in ("losses", "weights"):
                value[name] = torch.tensor(value[name], dtype=torch.float64)
        return cls(
            perplexity={key: Perplexity(**value) for key, value in data["perplexity"].items()},
            tasks={key: TaskScore(**value) for key, value in data["tasks"].items()},
            wer={key: ErrorRate(**value) for key, value in data.get(WORDS, {}).items()},
            cer={key: ErrorRate(**value) for key, value in data.get(CHARACTERS, {}).items()},
            speed=None if data["speed"] is None else Speed(**data["speed"]),
            accuracy={k: Accuracy(**v) for k, v in data.get("accuracy", {}).items()},
        )


def _outcomes(value: object) -> dict[str, Any]:
    """Return a score's values without the texts that are kept for people."""
    return {k: v for k, v in vars(value).items() if k not in ("shown", "openings")}


@dataclass(frozen=True)
class Request:
    """What is to be measured, found and read beforehand; serves any number of models.

    Attributes:
        texts: data spec -> its documents, or their token ids (`perplexity.text_tokens`).
        tasks: opened tasks of lm-eval, or None.
        long: opened long-context tasks, or None.
        token_limit: the smallest limit of the models, where it is known beforehand; the default
            lengths of the long-context tasks lie below it.
        speech: data spec -> recordings whose transcripts are scored.
        resample: whether recordings of another rate than the model's are converted.
        max_seconds: the longest recording that is taken, or None for the default.
    """

    texts: Mapping[str, list[str] | torch.Tensor] = field(default_factory=dict)
    tasks: TaskSet | None = None
    long: LongTasks | None = None
    token_limit: int | None = None
    speech: Mapping[str, list[Recording]] = field(default_factory=dict)
    resample: bool = False
    max_seconds: float | None = None

    @property
    def scores_text(self) -> bool:
        """Whether anything is asked for that needs a tokenizer."""
        return bool(self.texts) or self.tasks is not None or self.long is not None


def check_request(
    *,
    ppl: str | Sequence[str] = (),
    tasks: Sequence[str] = (),
    task_dirs: Sequence[str | Path] = (),
    long: LongContext | None = None,
    source: Source | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    registry: str | Path | None = None,
    seed: int = 0,
    wer: str | Sequence[str] = (),
    resample: bool = False,
    max_seconds: float | None = None,
    limit: int | None = None,
) -> Request:
    """Find the texts and tasks before a long job starts, and look whether the model suits them.

    Args:
        ppl: data specs.
        tasks: names of lm-eval tasks and of the long-context ones.
        task_dirs: directories of own lm-eval tasks.
        long: settings of the long-context tasks; default those of LongContext.
        source: the model, where there is one yet.
        seqlen, stride: of the perplexity.
        registry: a user's registry file, for `ppl` and the haystack.
        seed: of the long-context tasks' draws.
        wer: data specs of recordings with transcripts.
        resample, max_seconds: convert recordings of another rate; the longest that is taken.
        limit: at most so many recordings of each.

    Returns:
        The texts and tasks, which `measure` takes as `request`.

    Raises:
        RequestError: an unknown or unreadable text or task; a model without tokenizer, that is no
            causal language model, or with a shorter limit than `seqlen`.
    """
    if source is not None and (ppl or tasks):
        check_model(source, seqlen, bool(ppl))
    if stride is not None and seqlen is not None and stride >= seqlen:
        raise RequestError(f"a stride needs to be below the window of {seqlen}, is {stride}")
    specs = parse_spec(ppl, registry)
    texts = {spec.text: load_documents(spec, role="evaluation") for spec in specs}
    ours, names = split_tasks(tasks)
    opened = TaskSet(names, task_dirs) if names else None
    speech = read_speech(wer, limit) if wer else {}
    if speech and source is not None:
        check_speech_model(source)
    request = Request(texts, opened, speech=speech, resample=resample, max_seconds=max_seconds)
    if ours:
        settings = long or LongContext(ours, seed=seed)
        request = replace(request, long=LongTasks(settings, registry))
    return request if source is None else fitted(request, [source])


def fitted(request: Request, sources: Sequence[Source], progress: Progress = silent) -> Request:
    """Make the long-context prompts, if they fit the models, and note the smallest limit.

    Raises:
        RequestError: a length above a model's limit, or prompts that its tokenizer can't make.
    """
    if request.long is None:
        return request
    limits = [limit for source in sources if (limit := source.token_limit()) is not None]
    smallest = min(limits, default=None)
    for source in sources:
        encodes = bool(getattr(source.config, "is_encoder_decoder", False))
        check_model_fits(request.long.settings, source.name, source.token_limit(), encodes)
    for source in sources:
        request.long.plan(source.tokenizer(), smallest, progress=progress)
    return replace(request, token_limit=smallest)


def check_model(source: Source, seqlen: int | None, ppl: bool) -> None:
    """Refuse a model that can't be scored on text.

    Args:
        source: the model.
        seqlen: window that was asked for, or None.
        ppl: whether perplexity is wanted, or else tasks.

    Raises:
        RequestError: no causal language model, no tokenizer, or a limit below seqlen.
    """
    kind = source.model_class()
    encodes = ppl and getattr(source.config, "is_encoder_decoder", False)
    if encodes or not kind.can_generate():
        wanted = "perplexity needs" if ppl else "tasks need"
        raise RequestError(
            f"`{source.name}` is a `{kind.__name__}`; {wanted} a causal language model"
        )
    if source.tokenizer() is None:
        raise RequestError(
            f"`{source.name}` has no tokenizer, which text needs",
            hint="copy the tokenizer files of the original model into the directory",
        )
    limit = source.token_limit()
    if seqlen is not None and limit is not None and seqlen > limit:
        raise RequestError(
            f"`--eval-seqlen {seqlen}` is above the model's limit of {limit} tokens",
            hint=f"use `--eval-seqlen {limit}` or less",
        )


def compare(before: Measures, after: Measures) -> dict[str, dict[str, Any]]:
    """Compare what both measured, paired on the same windows and items.

    Returns:
        CONTRACT's "comparison"; a text whose windows differ (another tokenizer or length) and a
        task without outcomes per item are absent.
    """
    texts = {}
    for spec, value in after.perplexity.items():
        other = before.perplexity.get(spec)
        if other is not None and (other.digest, other.stride) == (value.digest, value.stride):
            texts[spec] = compare_windows(other, value).as_receipt()
    tasks = {}
    for name, score in after.tasks.items():
        twin = before.tasks.get(name)
        if twin is not None and score.items and twin.items.keys() == score.items.keys():
            tasks[name] = compare_items(twin.items, score.items).as_receipt()
            for metric, outcomes in score.more.items():
                further = compare_items(twin.more[metric], outcomes).as_receipt()
                tasks[name][metric] = further
    images = {
        spec: compare_items(before.accuracy[spec].items, value.items).as_receipt()
        for spec, value in after.accuracy.items()
        if spec in before.accuracy and before.accuracy[spec].items.keys() == value.items.keys()
    }
    parts: dict[str, dict[str, Any]] = {"perplexity": texts, "tasks": tasks, "accuracy": images}
    for unit in (WORDS, CHARACTERS):
        old, new = getattr(before, unit), getattr(after, unit)
        rates = {spec: compare_rates(old[spec], new[spec]) for spec in new if spec in old}
        parts[unit] = {spec: found.as_receipt() for spec, found in rates.items() if found}
    return {kind: entries for kind, entries in parts.items() if entries}
