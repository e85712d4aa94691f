"""What was measured of one model, of one against another, and the `eval` command's function."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.checkpoints.placement import resolve_device, resolve_dtype
from compress.checkpoints.source import Source, open_source
from compress.data.specs import load_documents, parse_spec
from compress.errors import RequestError
from compress.evaluation.compare import compare_items, compare_windows
from compress.evaluation.perplexity import Perplexity, perplexity
from compress.evaluation.speed import Speed, measure_speed
from compress.evaluation.tasks import TaskScore, TaskSet
from compress.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Measures:
    """What was measured of one model, with the outcomes of every window and item.

    Attributes:
        perplexity: data spec -> Perplexity.
        tasks: task name -> TaskScore.
        speed: or None.
    """

    perplexity: dict[str, Perplexity] = field(default_factory=dict)
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    speed: Speed | None = None

    def as_receipt(self) -> dict[str, Any]:
        """Plain values in CONTRACT's shape; what was not measured is absent."""
        entry: dict[str, Any] = {}
        if self.perplexity:
            entry["perplexity"] = {k: v.as_receipt() for k, v in self.perplexity.items()}
        if self.tasks:
            entry["tasks"] = {k: v.as_receipt() for k, v in self.tasks.items()}
        if self.speed is not None:
            entry["speed"] = self.speed.as_receipt()
        return entry

    def as_items(self) -> dict[str, Any]:
        """The outcome of every window and item, by which reports pair two runs."""
        windows = {key: value.losses.tolist() for key, value in self.perplexity.items()}
        return {"perplexity": windows, "tasks": {k: dict(v.items) for k, v in self.tasks.items()}}

    def to_json(self) -> str:
        """Everything, outcomes included, as JSON that `from_json` reads back to the last bit."""
        perplexities = {
            key: {**vars(value), "losses": value.losses.tolist(), "weights": value.weights.tolist()}
            for key, value in self.perplexity.items()
        }
        tasks = {key: vars(value) for key, value in self.tasks.items()}
        speed = None if self.speed is None else vars(self.speed)
        return json.dumps({"perplexity": perplexities, "tasks": tasks, "speed": speed})

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
            speed=None if data["speed"] is None else Speed(**data["speed"]),
        )


@dataclass(frozen=True)
class Request:
    """What is to be measured, found and read beforehand; serves any number of models.

    Attributes:
        texts: data spec -> its documents.
        tasks: opened tasks, or None.
    """

    texts: dict[str, list[str]] = field(default_factory=dict)
    tasks: TaskSet | None = None


def check_request(
    *,
    ppl: str | Sequence[str] = (),
    tasks: Sequence[str] = (),
    task_dirs: Sequence[str | Path] = (),
    source: Source | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
) -> Request:
    """Find the texts and tasks before a long job starts, and look whether the model suits them.

    Returns:
        The texts and tasks, which `measure` takes as `request`.

    Raises:
        RequestError: an unknown or unreadable text or task; a model without tokenizer, that is no
            causal language model, or with a shorter limit than `seqlen`.
    """
    if source is not None and (ppl or tasks):
        _check_model(source, seqlen, bool(ppl))
    if stride is not None and seqlen is not None and stride >= seqlen:
        raise RequestError(f"a stride needs to be below the window of {seqlen}, is {stride}")
    texts = {spec.text: load_documents(spec, role="evaluation") for spec in parse_spec(ppl)}
    return Request(texts, TaskSet(tasks, task_dirs) if tasks else None)


def _check_model(source: Source, seqlen: int | None, ppl: bool) -> None:
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


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    ppl: str | Sequence[str] = (),
    tasks: Sequence[str] = (),
    task_dirs: Sequence[str | Path] = (),
    limit: int | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    speed: bool = False,
    batch_size: int = 1,
    task_batch_size: int = 16,
    seed: int = 0,
    request: Request | None = None,
    progress: Progress = silent,
) -> Measures:
    """Measure a model in memory.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: of the model; None suits a measure of speed alone.
        ppl: data specs.
        tasks, task_dirs: names of lm-eval tasks, and directories of own ones.
        limit: at most so many windows a text and items a task.
        seqlen, stride: of the perplexity; see perplexity().
        speed: measure speed and memory too.
        batch_size, task_batch_size: windows and task requests run at once.
        seed: of the speed prompt.
        request: what check_request returned, in place of ppl, tasks and task_dirs.
        progress: called along the way.

    Raises:
        RequestError, RunError: as perplexity, TaskSet and measure_speed.
    """
    request = request or check_request(ppl=ppl, tasks=tasks, task_dirs=task_dirs)
    if tokenizer is None and (request.texts or request.tasks):
        raise RequestError("perplexity and tasks need a tokenizer, and the model has none")
    perplexities = {
        spec: perplexity(
            model,
            tokenizer,
            documents,
            seqlen=seqlen,
            stride=stride,
            limit=limit,
            batch_size=batch_size,
            progress=progress,
        )
        for spec, documents in request.texts.items()
    }
    scores = {}
    if request.tasks is not None:
        scores = request.tasks.run(
            model, tokenizer, limit=limit, batch_size=task_batch_size, progress=progress
        )
    timed = measure_speed(model, seed=seed, progress=progress) if speed else None
    return Measures(perplexities, scores, timed)


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
    parts = {"perplexity": texts, "tasks": tasks}
    return {kind: entries for kind, entries in parts.items() if entries}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        measures: model as named by the caller -> what was measured, in order.
        against: name of the model that the others are compared with, or None.
        notes: plain sentences for the reader, such as texts that can't be compared and why.
    """

    measures: dict[str, Measures]
    against: str | None = None
    notes: tuple[str, ...] = ()

    def comparisons(self) -> dict[str, dict[str, Any]]:
        """Each model's comparison with `against`."""
        if self.against is None:
            return {}
        base = self.measures[self.against]
        others = {name: m for name, m in self.measures.items() if name != self.against}
        return {name: compare(base, other) for name, other in others.items()}

    def as_dict(self) -> dict[str, Any]:
        """CONTRACT's `eval --json`.

        Each model that was compared carries its own "comparison"; the one at the top is that of the
        first. The model of `--against` comes last in "models" unless it was named there too.
        """
        compared = self.comparisons()
        models = []
        for name, measured in self.measures.items():
            entry = {"source": name, **measured.as_receipt()}
            if compared.get(name):
                entry["comparison"] = compared[name]
            models.append(entry)
        result: dict[str, Any] = {"schema": 1, "models": models}
        if self.against is not None:
            result["against"] = self.against
            result["comparison"] = next(iter(compared.values()), {})
        if self.notes:
            result["notes"] = list(self.notes)
        return result

    def render(self) -> str:
        """The same as a table for people."""
        from compress.evaluation.render import evaluation_table

        return evaluation_table(self.as_dict())


def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    against: str | Path | None = None,
    ppl: str | Sequence[str] = (),
    tasks: str | Sequence[str] = (),
    task_dirs: Sequence[str | Path] = (),
    limit: int | None = None,
    eval_seqlen: int | None = None,
    stride: int | None = None,
    speed: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Measure one model or several; with `against`, compare each with that one.

    Args:
        models: directories or Hub ids.
        against: the model to compare with; measured on the same examples.
        ppl, tasks, task_dirs, limit, stride, speed: see measure.
        eval_seqlen: window of the perplexity; default the smaller of 2048 and the models' limits.
        seed: of the speed prompt.
        device, dtype: where and in what type the models run; "auto" is the first GPU, else the CPU,
            and the type on disk.
        revision, token, trust_remote_code: of Hub models.
        progress: called along the way.

    Returns:
        An Evaluation: `as_dict()` is the command's JSON.

    Raises:
        RequestError: nothing to measure, or a model, text or task that can't be used; found before
            anything is measured.
        RunError: a loss isn't finite.
    """
    tasks = _split(tasks)
    if not (ppl or tasks or speed):
        raise RequestError(
            "nothing to measure", hint="give one or more of --ppl, --tasks and --speed"
        )
    named = [models] if isinstance(models, str | Path) else list(models)
    names = list(dict.fromkeys(map(str, [*named, *([against] if against is not None else [])])))
    place, kind = resolve_device(device), resolve_dtype(dtype)
    sources = {
        name: open_source(name, revision=revision, token=token, trust_remote_code=trust_remote_code)
        for name in names
    }
    for source in sources.values():
        if ppl or tasks:
            _check_model(source, eval_seqlen, bool(ppl))
    request = check_request(ppl=ppl, tasks=tasks, task_dirs=task_dirs)
    limits = [limit for limit in (s.token_limit() for s in sources.values()) if limit is not None]
    seqlen = eval_seqlen or min([2048, *limits])
    measures = {}
    for name, source in sources.items():
        model = source.load(kind, place)
        measures[name] = measure(
            model,
            source.tokenizer(),
            limit=limit,
            seqlen=seqlen,
            stride=stride,
            speed=speed,
            seed=seed,
            request=request,
            progress=_named(progress, name) if len(sources) > 1 else progress,
        )
        del model
        gc.collect()  # the next model needs the room
    base = None if against is None else str(against)
    return Evaluation(measures, base, tuple(_notes(measures, base)))


def _split(names: str | Sequence[str]) -> list[str]:
    """Return names given as one string with commas, or as a sequence."""
    if isinstance(names, str):
        return [name.strip() for name in names.split(",") if name.strip()]
    return list(names)


def _named(progress: Progress, model: str) -> Progress:
    label = Path(model).name or model

    def call(task: str, done: int, total: int, note: str = "") -> None:
        progress(f"{task} {label}", done, total, note)

    return call


def _notes(measures: Mapping[str, Measures], against: str | None) -> list[str]:
    """Say which texts can't be compared."""
    if against is None:
        return []
    base = measures[against]
    return [
        f"{spec}: `{name}` and `{against}` cut the text into different tokens; not comparable"
        for name, measured in measures.items()
        for spec, value in measured.perplexity.items()
        if spec in base.perplexity and base.perplexity[spec].digest != value.digest
    ]
