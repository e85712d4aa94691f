"""The measures of a report's table, and the test of each row against the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from compress.numerics.significance import LEVEL, Test, holm, matched, mean_of, paired, unpaired
from compress.reports import formats as fmt
from compress.reports.runs import Run

MEAN_FROM = 3  # so many tasks are shown as their mean


class Column(NamedTuple):
    """A measure of the table.

    Attributes:
        title: its head.
        value: of a run, or None where not measured.
        show: a value with its uncertainty, as text.
        test: of a run against the first; None where it can't be tested at all.
        smaller: whether less is better.
        text: any value of the measure as text.
    """

    title: str
    value: Callable[[Run], float | None]
    show: Callable[[Run], str]
    test: Callable[[Run, Run], Test | None] | None = None
    smaller: bool = True
    text: Callable[[float], str] = "{:.3g}".format


class Verdict(NamedTuple):
    """A run against the first row in one measure; `p_holm` is corrected over the rows."""

    run: str
    measure: str
    test: Test
    p_holm: float
    better: bool

    @property
    def mark(self) -> str:
        """ "*" for better, "!" for worse, nothing within the noise."""
        return ("*" if self.better else "!") if self.p_holm < LEVEL else ""


def columns(runs: Sequence[Run]) -> list[Column]:
    """The measures that any run has: quality first, then sizes, speed and memory."""
    specs = list(dict.fromkeys(spec for run in runs for spec in run.after.perplexity))
    tasks = list(dict.fromkeys(task for run in runs for task in run.after.tasks))
    short = fmt.short_names(specs)
    found = [
        _perplexity_column(spec, "ppl" if len(specs) == 1 else f"ppl {short[spec]}")
        for spec in specs
    ]
    if len(tasks) >= MEAN_FROM:
        found.append(_tasks_column(tasks, f"tasks (mean of {len(tasks)})"))
    else:
        found += [_tasks_column([task], task) for task in tasks]
    heard = list(dict.fromkeys(spec for run in runs for spec in _rates(run)))
    named = fmt.short_names(heard)
    found += [_rate_column(s, "wer" if len(heard) == 1 else f"wer {named[s]}") for s in heard]
    if any(_top1(run) for run in runs):
        found.append(_top1_column())
    found += _training_columns(runs)
    horizons = sorted({h for run in runs for h in _skill(run)}, key=int)
    found += [_skill_column(h) for h in horizons]
    sizes: list[tuple[str, Callable[[Run], float | None], Sequence[str]]] = [
        ("non-zero", lambda r: r.after.nonzero, fmt.COUNT_UNITS),
        ("on disk", lambda r: r.after.bytes, fmt.BYTE_UNITS),
        ("tokens/s", lambda r: getattr(r.after.speed, "decode_tokens_per_s", None), ("",)),
        ("memory", lambda r: getattr(r.after.speed, "peak_bytes", None), fmt.BYTE_UNITS),
        ("optimizer state", lambda r: _training(r).get("optimizer_state_bytes"), fmt.BYTE_UNITS),
    ]
    for title, value, units in sizes:
        if len({v for run in runs if (v := value(run)) is not None}) > 1:
            found.append(_size_column(title, value, units, runs))
    return found


def _training(run: Run) -> Mapping[str, Any]:
    """What a training run tells of itself."""
    return (run.receipt.extra.get("training") if run.receipt else None) or {}


def _training_columns(runs: Sequence[Run]) -> list[Column]:
    """Losses on held-out text by name; the training loss where a run has none."""
    names = list(dict.fromkeys(name for run in runs for name in _training(run).get("valid") or {}))
    titles = ["valid loss"] if len(names) == 1 else [f"loss {name}" for name in names]
    found = [_loss_column(title, partial(_held_out, name)) for title, name in zip(titles, names)]
    if any("loss" in _training(run) and not _training(run).get("valid") for run in runs):
        found.append(_loss_column("train loss", lambda run: _training(run).get("loss")))
    return found


def _held_out(name: str, run: Run) -> Mapping[str, Any] | None:
    """A training run's last loss on one held-out text."""
    return (_training(run).get("valid") or {}).get(name)


def _loss_column(title: str, score: Callable[[Run], Mapping[str, Any] | None]) -> Column:
    def value(run: Run) -> float | None:
        return (score(run) or {}).get("value")

    def show(run: Run) -> str:
        found, error = value(run), (score(run) or {}).get("stderr")
        return "" if found is None else f"{found:.3f}" + (f" ± {error:.3f}" if error else "")

    def test(first: Run, second: Run) -> Test | None:
        a, b = score(first) or {}, score(second) or {}
        if not all("value" in part and part.get("stderr") for part in (a, b)):
            return None
        return unpaired(a["value"], a["stderr"], b["value"], b["stderr"])

    return Column(title, value, show, test)


def _skill(run: Run) -> Mapping[str, Any]:
    """Skill by horizon, of an estimator's run."""
    return (run.receipt.extra.get("skill") if run.receipt else None) or {}


def _skill_column(horizon: str) -> Column:
    """Skill against persistence at one horizon; its intervals aren't paired, so it isn't tested."""

    def value(run: Run) -> float | None:
        return _skill(run).get(horizon, {}).get("skill")

    def show(run: Run) -> str:
        found = value(run)
        return "" if found is None else fmt.signed(found, 3)

    return Column(f"skill {horizon}", value, show, smaller=False)


def _rates(run: Run) -> Mapping[str, Any]:
    """Word error rates by data spec, of a speech model's run."""
    return run.after.extra.get("wer") or {}


def _rate_column(spec: str, title: str) -> Column:
    def value(run: Run) -> float | None:
        return (_rates(run).get(spec) or {}).get("value")

    def show(run: Run) -> str:
        found = value(run)
        error = (_rates(run).get(spec) or {}).get("stderr")
        return "" if found is None else f"{found:.3f}" + (f" ± {error:.3f}" if error else "")

    def test(first: Run, second: Run) -> Test | None:
        """Paired by utterance where both kept theirs: each one's errors over the mean length."""
        a, b = _rates(first).get(spec), _rates(second).get(spec)
        if a is None or b is None:
            return None
        kept = [(run.items.get("wer") or {}).get(spec) or [] for run in (first, second)]
        counts = [[count for _, count in own] for own in kept]
        if counts[0] and counts[0] == counts[1]:
            length = sum(counts[0]) / len(counts[0])
            errors = [[error / length for error, _ in own] for own in kept]
            return paired(errors[0], errors[1])
        return unpaired(a["value"], a.get("stderr"), b["value"], b.get("stderr"))

    return Column(title, value, show, test)


def _top1(run: Run) -> tuple[str, Mapping[str, Any]] | None:
    """An image classifier's data set and its accuracy there, without prompt."""
    known = run.after.extra.get("accuracy") or {}
    return next(((n, v) for n, v in known.items() if not n.endswith(" with prompt")), None)


def _top1_column() -> Column:
    """Accuracy of images, each run on its own data set; the same set alone is compared."""

    def value(run: Run) -> float | None:
        found = _top1(run)
        return None if found is None else found[1].get("top1")

    def show(run: Run) -> str:
        found = _top1(run)
        return "" if found is None else f"{found[1]['top1']:.3f} ± {found[1]['stderr']:.3f}"

    def test(first: Run, second: Run) -> Test | None:
        a, b = _top1(first), _top1(second)
        if a is None or b is None or a[0] != b[0]:
            return None
        return unpaired(a[1]["top1"], a[1].get("stderr"), b[1]["top1"], b[1].get("stderr"))

    return Column("top-1", value, show, test, smaller=False, text="{:.3f}".format)


def _perplexity_column(spec: str, title: str) -> Column:
    def value(run: Run) -> float | None:
        score = run.after.perplexity.get(spec)
        return None if score is None else score.value

    def show(run: Run) -> str:
        score = run.after.perplexity.get(spec)
        if score is None:
            return ""
        error = "" if score.stderr is None else f" ± {fmt.quality(score.stderr)}"
        return fmt.quality(score.value) + error

    def test(first: Run, second: Run) -> Test | None:
        a, b = first.after.perplexity.get(spec), second.after.perplexity.get(spec)
        if a is None or b is None:
            return None
        losses = [(run.items.get("perplexity") or {}).get(spec) for run in (first, second)]
        same = (a.tokens, a.extra.get("seqlen")) == (b.tokens, b.extra.get("seqlen"))
        plain = "stride" not in a.extra and "stride" not in b.extra
        if same and plain and losses[0] and losses[1] and len(losses[0]) == len(losses[1]):
            made = paired(losses[0], losses[1])
            return None if made is None else made._replace(difference=b.value - a.value)
        return unpaired(a.value, a.stderr, b.value, b.stderr)

    return Column(title, value, show, test, text=fmt.quality)


def _tasks_column(tasks: Sequence[str], title: str) -> Column:
    def value(run: Run) -> float | None:
        scores = [run.after.tasks[t].acc for t in tasks if t in run.after.tasks]
        return sum(scores) / len(scores) if len(scores) == len(tasks) else None

    def show(run: Run) -> str:
        mean = value(run)
        return "" if mean is None else f"{mean:.3f}"

    def test(first: Run, second: Run) -> Test | None:
        parts = [_task_test(task, first, second) for task in tasks]
        known = [part for part in parts if part is not None]
        return mean_of(known) if known and len(known) == len(parts) else None

    return Column(title, value, show, test, smaller=False)


def _task_test(task: str, first: Run, second: Run) -> Test | None:
    a, b = first.after.tasks.get(task), second.after.tasks.get(task)
    if a is None or b is None:
        return None
    items = [(run.items.get("tasks") or {}).get(task) or {} for run in (first, second)]
    return matched(items[0], items[1]) or unpaired(a.acc, a.stderr, b.acc, b.stderr)


def _size_column(
    title: str, value: Callable[[Run], float | None], units: Sequence[str], runs: Sequence[Run]
) -> Column:
    known = [(id(run), v) for run in runs if (v := value(run)) is not None]
    texts = dict(zip((key for key, _ in known), fmt.scaled([v for _, v in known], units)))
    fewer = title != "tokens/s"
    return Column(
        title, value, lambda run: texts.get(id(run), ""), smaller=fewer,
        text=lambda number: fmt.scaled([number], units)[0],
    )  # fmt: skip


def verdicts(runs: Sequence[Run], measures: Sequence[Column]) -> list[Verdict]:
    """Each run against the first in each measure that can be tested, Holm-corrected by measure."""
    found = []
    for column in measures:
        if column.test is None:
            continue
        tests = [(run, column.test(runs[0], run)) for run in runs[1:]]
        known = [(run, test) for run, test in tests if test is not None]
        for (run, test), p in zip(known, holm([test.p for _, test in known])):
            better = test.difference < 0 if column.smaller else test.difference > 0
            found.append(Verdict(run.name, column.title, test, p, better))
    return found
