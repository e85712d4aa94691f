"""Tasks of lm-evaluation-harness, through its Python API, on a model in memory.

`TaskSet` finds the tasks and opens their data before a long job starts, so that a misspelt name
costs nothing; `run_tasks` scores a model on them. The shipped task directory is always searched;
the harness's own tasks only if a name is not found there (its index takes seconds to read).
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import itertools
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.data.registry import shipped
from compress.errors import RequestError, RunError
from compress.evaluation.long_context import NAMES as LONG_CONTEXT
from compress.evaluation.quiet import silenced
from compress.evaluation.shown import Shown, from_sample
from compress.evaluation.taskfiles import harness_names, write_stubs
from compress.progress import Progress, silent

ACCURACIES = ("acc", "exact_match", "acc_norm")  # in the order in which one is taken as the score
_FEWSHOT_SEED = 1234  # the harness's own default, so that scores agree with its command line


@dataclass(frozen=True)
class TaskScore:
    """The score of one task.

    Attributes:
        acc: the metric's value.
        stderr: standard error of the mean over items, or None where the metric is no mean.
        n: items.
        items: item key -> outcome, for pairing with another model; empty where it is no number.
        metric: the harness's name of the metric; accuracies are "acc", "exact_match", "acc_norm".
        others: the task's other numeric metrics.
        more: other metric -> item key -> outcome, for pairing too.
        details: further plain values of the receipt's entry, such as "cells".
        shown: item key -> what people read of it.
    """

    acc: float
    stderr: float | None
    n: int
    items: dict[str, float]
    metric: str = "acc"
    others: dict[str, float] = field(default_factory=dict)
    more: dict[str, dict[str, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict, repr=False, compare=False)

    def as_receipt(self) -> dict[str, Any]:
        """The receipt's entry; a metric that is no accuracy stands under its own name."""
        name = "acc" if self.metric in ACCURACIES else self.metric
        entry: dict[str, Any] = {name: self.acc}
        if self.stderr is not None:
            entry["stderr"] = self.stderr
        entry["n"] = self.n
        if self.metric != "acc":
            entry["metric"] = self.metric
        return {**self.others, **entry, **self.details}


class TaskSet:
    """Tasks that were found, with their data opened; usable for several models.

    Args:
        names: tasks, groups or tags of the harness, or of a task directory.
        task_dirs: directories of task YAMLs beside the shipped one.

    Raises:
        RequestError: an unknown name (with near ones), a directory that isn't there, a broken task
            file, or a task whose data can't be opened.
    """

    def __init__(self, names: Sequence[str], task_dirs: Sequence[str | Path] = ()) -> None:
        self.names = list(dict.fromkeys(names))
        self._scratch = tempfile.TemporaryDirectory(prefix="compress-tasks-")
        directories = _directories(task_dirs)
        write_stubs(directories, Path(self._scratch.name))
        with silenced(silent):
            self._groups, self.tasks = self._open([*directories, Path(self._scratch.name)])

    def _open(self, paths: Sequence[Path]) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Return requested name -> its leaf tasks, and leaf name -> task object."""
        from lm_eval.tasks import TaskManager, get_task_dict

        # Stubs come last, since what comes later wins.
        where = [str(path) for path in paths]
        manager = TaskManager(include_path=where, include_defaults=False)
        own = list(manager.all_tasks)
        missing = [name for name in self.names if name not in own]
        if missing:
            mentioned, known = harness_names(missing)
            if mentioned == set(missing):  # else an index would take its time to be of no use
                manager = TaskManager(include_path=where, include_defaults=True)
                mentioned &= set(manager.all_tasks)
            for name in missing:
                if name not in mentioned:
                    hint = _near_tasks(name, own, known)
                    raise RequestError(f"unknown task `{name}`", hint=hint)
        groups: dict[str, list[str]] = {}
        tasks: dict[str, Any] = {}
        for name in self.names:
            try:
                leaves = _leaves(get_task_dict([name], manager))
            except Exception as error:  # the harness lets any error of a data set through
                raise RequestError(
                    f"task `{name}` can't be opened: {_line(error)}",
                    hint="its data may need the network; `--task-dir` takes local tasks",
                ) from error
            groups[name] = list(leaves)
            tasks.update(leaves)
        return groups, tasks

    def texts(self, limit: int | None = None) -> dict[str, list[str]]:
        """Return task -> the text of each of its items, for leakage checks.

        A text is what the model is given, demonstrations included, and the answer.

        Args:
            limit: only so many leading items of a task.
        """
        found: dict[str, list[str]] = {}
        for name, task in self.tasks.items():
            documents = task.test_docs() if task.has_test_docs() else task.validation_docs()
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)  # as in `run`, which draws the same ones
            found[name] = [
                _item_text(task, document) for document in itertools.islice(documents or (), limit)
            ]
        return found

    def run(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limit: int | None = None,
        batch_size: int = 16,
        progress: Progress = silent,
    ) -> dict[str, TaskScore]:
        """Score a model; see run_tasks."""
        import jinja2
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        if limit is not None and limit < 1:
            raise RequestError(f"tasks need a limit of at least 1, is {limit}")
        if not model.can_generate():
            raise RequestError(f"tasks need a language model; `{type(model).__name__}` is none")
        with silenced(progress):
            # A copy of the tokenizer, since the harness gives it a padding token.
            own = copy.deepcopy(tokenizer)
            harness = HFLM(pretrained=model, tokenizer=own, batch_size=batch_size)
            for task in self.tasks.values():
                task.set_fewshot_seed(seed=_FEWSHOT_SEED)
            try:
                results = evaluate(
                    harness, dict(self.tasks), limit=limit, bootstrap_iters=0, log_samples=True
                )
            except (KeyError, TypeError, ValueError, IndexError, jinja2.TemplateError) as error:
                raise RunError(
                    f"lm-eval failed on the tasks {', '.join(self.tasks)}: {_line(error)}",
                    hint="a field that the task file names may be missing from its data",
                ) from error
        scores = {}
        for name, leaves in self._groups.items():
            parts = {leaf: _score(results, leaf) for leaf in leaves}
            scores.update(parts if len(leaves) != 1 or name in parts else {name: parts[leaves[0]]})
            if len(leaves) > 1 and len({part.metric for part in parts.values()}) == 1:
                scores[name] = _pooled(parts)
        return scores


def _item_text(task: Any, document: Any) -> str:
    """Return an item's prompt, with its demonstrations, and, where that is a text, its answer."""
    shots = int(getattr(task.config, "num_fewshot", None) or 0)
    try:
        prompt = task.fewshot_context(document, shots) if shots else task.doc_to_text(document)
        answer = task.doc_to_target(document)
    except Exception:  # of a task that needs more than the document, such as a rendered prompt
        return ""
    parts = [part for part in (prompt, answer) if isinstance(part, str)]
    return " ".join(parts)


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str] | TaskSet,
    *,
    task_dirs: Sequence[str | Path] = (),
    limit: int | None = None,
    batch_size: int = 16,
    progress: Progress = silent,
) -> dict[str, TaskScore]:
    """Score a model on tasks.

    Args:
        model, tokenizer: in memory; the model where it should run, in evaluation mode.
        tasks: names, or an opened TaskSet.
        task_dirs: directories of task YAMLs beside the shipped one.
        limit: at most so many leading items a task.
        batch_size: requests run at once; scores don't depend on it beyond rounding.
        progress: called after each batch.

    Returns:
        name -> TaskScore. A group gives one for each of its tasks, and under its own name the mean
        over all their items.

    Raises:
        RequestError: as TaskSet; the model is no language model.
    """
    chosen = tasks if isinstance(tasks, TaskSet) else TaskSet(tasks, task_dirs)
    return chosen.run(model, tokenizer, limit=limit, batch_size=batch_size, progress=progress)


def _directories(task_dirs: Sequence[str | Path]) -> list[Path]:
    found = [Path(directory) for directory in task_dirs]
    for directory in found:
        if not directory.is_dir():
            raise RequestError(f"task directory `{directory}`: no such directory")
    with contextlib.suppress(RequestError):  # an installation may lack the shipped tasks
        found.insert(0, shipped("tasks"))
    return found


def _near_tasks(name: str, own: Sequence[str], known: Iterable[str]) -> str:
    """Return a hint for a misspelt task; the harness has far too many to list."""
    near = difflib.get_close_matches(name, sorted({*own, *known, *LONG_CONTEXT}), n=3)
    guess = f"did you mean {' or '.join(f'`{n}`' for n in near)}? " if near else ""
    listed = ", ".join(own) or "none"
    return f"{guess}Tasks in task directories: {listed}; those of lm-eval: `lm-eval ls tasks`"


def _leaves(nested: Mapping[Any, Any]) -> dict[str, Any]:
    """Return leaf name -> task object of the harness's nested groups."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            leaves.update(_leaves(value))
        else:
            leaves[str(name)] = value
    return leaves


def _score(results: Mapping[str, Any], name: str) -> TaskScore:
    """Read one leaf task's score out of the harness's results."""
    values = {
        key: float(value)
        for key, value in results["results"][name].items()
        if "," in key and "_stderr," not in key and not isinstance(value, str)
    }
    key = min(values, key=_rank)
    metric, _, kind = key.partition(",")
    samples = [s for s in results["samples"][name] if s["filter"] == kind]
    items, shown = {}, {}
    for sample in samples:
        outcome = sample.get(metric)
        if isinstance(outcome, int | float) or hasattr(outcome, "item"):
            item = f"{sample['doc_id']}:{sample['doc_hash'][:16]}"
            items[item], shown[item] = float(outcome), from_sample(sample, metric)
    mean = sum(items.values()) / len(items) if items else math.nan
    is_mean = len(items) == len(samples) and math.isclose(mean, values[key], abs_tol=1e-9)
    others = {k.split(",")[0]: v for k, v in values.items() if k != key and k.endswith(f",{kind}")}
    return TaskScore(
        acc=values[key],
        stderr=standard_error(list(items.values())) if is_mean else None,
        n=len(samples),
        items=items if is_mean else {},
        metric=metric,
        others=others,
        shown=shown if is_mean else {},
    )


def _rank(key: str) -> int:
    """Order of a result key such as "acc,none": the metrics of ACCURACIES first."""
    metric = key.partition(",")[0]
    return ACCURACIES.index(metric) if metric in ACCURACIES else len(ACCURACIES)


def _pooled(parts: Mapping[str, TaskScore]) -> TaskScore:
    """Return a group's score: the mean over the items of all its tasks."""
    items = {f"{name}:{key}": v for name, part in parts.items() for key, v in part.items.items()}
    shown = {f"{name}:{key}": v for name, part in parts.items() for key, v in part.shown.items()}
    total = sum(part.n for part in parts.values())
    first = next(iter(parts.values()))
    return TaskScore(
        acc=sum(part.acc * part.n for part in parts.values()) / total,
        stderr=standard_error(list(items.values())) if len(items) == total else None,
        n=total,
        items=items if len(items) == total else {},
        metric=first.metric,
        shown=shown if len(items) == total else {},
    )


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, sd / sqrt(n) with n - 1 degrees of freedom."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
