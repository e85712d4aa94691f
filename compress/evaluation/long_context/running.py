"""Runs the long-context tasks on a model in memory."""

from __future__ import annotations

from typing import Any

from compress.evaluation.long_context.attention import AttentionWatch
from compress.evaluation.long_context.items import Item
from compress.evaluation.long_context.planning import LongTasks, limited
from compress.evaluation.long_context.results import task_score
from compress.evaluation.long_context.scoring import Outcome, score_items
from compress.evaluation.shown import Shown, choice
from compress.evaluation.tasks import TaskScore
from compress.progress import Progress, silent


def run_long_tasks(
    tasks: LongTasks,
    model: Any,
    tokenizer: Any,
    *,
    token_limit: int | None,
    limit: int | None = None,
    batch_size: int = 16,
    progress: Progress = silent,
) -> dict[str, TaskScore]:
    """Score a model on the tasks asked for.

    Args:
        tasks: opened tasks.
        model, tokenizer: in memory; the model where it should run, in evaluation mode.
        token_limit: the smallest limit of the models that are compared, or None.
        limit: at most so many items a task, spread over its cells.
        batch_size: items run at once; results don't depend on it beyond rounding.
        progress: called after each batch.

    Returns:
        name -> TaskScore, with the cells in its `details`.

    Raises:
        RequestError: as LongTasks.plan and AttentionWatch.
        RunError: a likelihood isn't finite.
    """
    scores = {}
    for name, planned in tasks.plan(tokenizer, token_limit, progress=progress).items():
        items = limited(planned, limit)
        watch = AttentionWatch(model) if tasks.settings.attention else None
        outcomes = score_items(
            model, items, task=name, batch_size=batch_size, watch=watch, progress=progress
        )
        scores[name] = task_score(
            items,
            outcomes,
            planned.left_out,
            None if watch is None else watch.found,
            () if watch is None else watch.layers,
            {item.key: _shown(tokenizer, item, found) for item, found in zip(items, outcomes)},
        )
    return scores


def _shown(tokenizer: Any, item: Item, outcome: Outcome) -> Shown:
    """Describe an item: its question, answers and their log likelihoods, the right one first."""
    question = tokenizer.decode(item.prompt[item.question :].tolist(), skip_special_tokens=True)
    answers = [tokenizer.decode(answer.tolist()) for answer in item.answers]
    return choice(question, answers, [-loss for loss in outcome.losses[: len(answers)]], 0)
