"""The `eval` command's function: several models measured alike, each compared with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoints.placement import resolve_device, resolve_dtype
from compress.checkpoints.save import named_places
from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.evaluation import changed as changing
from compress.evaluation.accuracy import check_accuracy, measure_accuracy
from compress.evaluation.depth import check_files
from compress.evaluation.distances import Distances
from compress.evaluation.layers import LayerDistances, check_options
from compress.evaluation.long_context.settings import read_settings, split_tasks
from compress.evaluation.measures import (
    Measures,
    check_model,
    check_request,
    compare,
    fitted,
)
from compress.evaluation.measuring import measure_source
from compress.evaluation.speech import check_speech_model
from compress.progress import Progress, silent
from compress.reports.notebook import Displayable


@dataclass(frozen=True)
class Evaluation(Displayable):
    """What `evaluate` found.

    Attributes:
        measures: model as named by the caller -> what was measured, in order.
        against: name of the model that the others are compared with, or None.
        notes: plain sentences for the reader, such as texts that can't be compared and why.
        changed: rows of each table of changed examples; 0 leaves them out, of the JSON too.
        distances: model -> its layers' distances from those of `against`, where asked for.
    """

    measures: dict[str, Measures]
    against: str | None = None
    notes: tuple[str, ...] = ()
    changed: int = changing.DEFAULT
    distances: Mapping[str, Distances] = field(default_factory=dict)

    def comparisons(self) -> dict[str, dict[str, Any]]:
        """Each model's comparison with `against`."""
        if self.against is None:
            return {}
        base = self.measures[self.against]
        others = {name: m for name, m in self.measures.items() if name != self.against}
        return {name: self._comparison(name, base, other) for name, other in others.items()}

    def _comparison(self, name: str, base: Measures, other: Measures) -> dict[str, Any]:
        found: dict[str, Any] = dict(compare(base, other))
        moved = changing.changes(base, other) if self.changed else {}
        if moved:
            found["changed"] = moved
        if name in self.distances:
            found["distances"] = self.distances[name].as_dict()
        return found

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

        return evaluation_table(self.as_dict(), self.changed)

    def draw(self, path: str | Path) -> None:
        """Write the heat maps of the long-context tasks as PNG."""
        from compress.evaluation.long_context.page import draw_tasks

        draw_tasks(self.as_dict()["models"], path)


Model = str | Path | PreTrainedModel


def evaluate(
    models: Model | Sequence[Model],
    *,
    against: Model | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    changed: int | None = None,
    distances: bool = False,
    data: str | None = None,
    samples: int | None = None,
    seqlen: int | None = None,
    ppl: str | Sequence[str] = (),
    tasks: str | Sequence[str] = (),
    task_dirs: Sequence[str | Path] = (),
    limit: int | None = None,
    eval_seqlen: int | None = None,
    stride: int | None = None,
    speed: bool = False,
    accuracy: Sequence[str] = (),
    image_size: int | None = None,
    skip_bad: bool = False,
    wer: str | Sequence[str] = (),
    resample: bool = False,
    registry: str | Path | None = None,
    context_lengths: Sequence[int] = (),
    depths: Sequence[float] = (),
    documents: Sequence[int] = (),
    hops: Sequence[int] = (),
    per_cell: int | None = None,
    choices: int | None = None,
    haystack: str | None = None,
    qa: str | Path | None = None,
    attention: bool = False,
    png: str | Path | None = None,
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
        models: directories, Hub ids, or models in memory; the latter are named by their class.
        against: the model to compare with; measured on the same examples.
        tokenizer: of the models in memory.
        changed: rows of each table of examples that changed; default 5, 0 leaves them out.
        distances: how far each block's weights and outputs are from those of `against`.
        data, samples, seqlen: the text for it, windows and tokens in each; default the shipped
            corpus, 16 windows of 512 tokens or the models' limit.
        ppl, tasks, task_dirs, limit, stride, speed: see measure.
        eval_seqlen: window of the perplexity; default the smaller of 2048 and the models' limits.
        accuracy: data specs of labelled images, for image classifiers.
        image_size: side of these images instead of the models' own.
        skip_bad: leave out images that can't be read.
        wer: data specs of recordings with transcripts, for word and character error rates.
        resample: convert recordings of another rate than the models take.
        registry: a file of own corpora beside the shipped ones, for ppl and haystack.
        context_lengths, depths, documents, hops, per_cell, choices, haystack, qa, attention: of the
            tasks needle, multidoc and longreason; see LongContext.
        png: a file for their heat maps.
        seed: of the speed prompt and of these tasks' draws.
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
    accuracy = [accuracy] if isinstance(accuracy, str) else list(accuracy)
    if not (ppl or tasks or speed or accuracy or wer or distances):
        raise RequestError(
            "nothing to measure",
            hint="give one or more of --ppl, --tasks, --accuracy, --wer, --speed and --distances",
        )
    check_options(against, changed, distances, {"data": data, "samples": samples, "seqlen": seqlen})
    with ExitStack() as stack:
        named = [models] if isinstance(models, Model) else list(models)
        last = [] if against is None else [against]
        pairs = named_places([*named, *last], tokenizer, stack)
        paths, base = dict(pairs), pairs[-1][0] if last else None
        place, kind = resolve_device(device), resolve_dtype(dtype)
        hub: Any = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
        sources = {name: open_source(path, **hub) for name, path in paths.items()}
        for source in sources.values():
            if ppl or tasks:
                check_model(source, eval_seqlen, bool(ppl))
            if accuracy:
                check_accuracy(source, accuracy, image_size)
            if wer:
                check_speech_model(source)
        long = read_settings(
            split_tasks(tasks)[0], seed, lengths=context_lengths, depths=depths,
            documents=documents, hops=hops, per_cell=per_cell, choices=choices, haystack=haystack,
            qa=None if qa is None else str(qa), attention=attention, png=png,
        )  # fmt: skip
        check_files(png=png)
        layers = None
        if distances and base is not None:
            others = {name: source for name, source in sources.items() if name != base}
            layers = LayerDistances(
                sources[base], others, data=data, samples=samples, seqlen=seqlen,
                registry=registry, seed=seed, dtype=kind, device=place,
            )  # fmt: skip
        request = check_request(
            ppl=ppl, tasks=tasks, task_dirs=task_dirs, long=long, registry=registry, wer=wer,
            resample=resample, limit=limit,
        )  # fmt: skip
        request = fitted(request, list(sources.values()), progress)
        limits = [s.token_limit() for s in sources.values()]
        window = eval_seqlen or min([2048, *(limit for limit in limits if limit is not None)])
        running: Any = {"device": place, "dtype": kind, "limit": limit}
        measures = {}
        for name, source in sources.items():
            told = _named(progress, name) if len(sources) > 1 else progress
            own = measure_source(
                source, request, seqlen=window, stride=stride, speed=speed, seed=seed,
                progress=told, **running,
            )  # fmt: skip
            if accuracy:
                scores = measure_accuracy(
                    source, accuracy, image_size=image_size, skip_bad=skip_bad, progress=told,
                    **running,
                )  # fmt: skip
                own = replace(own, accuracy=scores)
            measures[name] = own
        notes = _notes(measures, base)
        apart: Mapping[str, Distances] = {}
        if layers is not None:
            notes += layers.notes
            apart = layers.measure(progress)
    rows = changing.DEFAULT if changed is None else changed
    found = Evaluation(measures, base, tuple(notes), rows, apart)
    if png is not None:
        found.draw(png)
    return found


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
    """Say which cells were left out, and which texts and tasks can't be compared."""
    first = next(iter(measures.values()))
    notes = [
        f"{task}: left out, since they don't fit: {'; '.join(score.details['left_out'])}"
        for task, score in first.tasks.items()
        if "left_out" in score.details
    ]
    for value in first.accuracy.values():
        notes += value.notes
    if against is None:
        return notes
    base = measures[against]
    notes += [
        f"{task}: `{name}` and `{against}` cut the prompts into different tokens; not comparable"
        for name, measured in measures.items()
        for task, score in measured.tasks.items()
        if score.more and base.tasks[task].items.keys() != score.items.keys()
    ]
    return notes + [
        f"{spec}: `{name}` and `{against}` cut the text into different tokens; not comparable"
        for name, measured in measures.items()
        for spec, value in measured.perplexity.items()
        if spec in base.perplexity and base.perplexity[spec].digest != value.digest
    ]
