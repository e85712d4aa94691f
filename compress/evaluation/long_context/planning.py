"""All prompts of the tasks asked for, for one tokenizer; what doesn't fit is found before a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compress.data.specs import load_documents, parse_spec
from compress.errors import RequestError
from compress.evaluation.long_context.haystack import Haystack, read_haystack
from compress.evaluation.long_context.items import AnswerElsewhere, Item, TooShort
from compress.evaluation.long_context.longreason import longreason_item
from compress.evaluation.long_context.multidoc import multidoc_item, positions
from compress.evaluation.long_context.needle import needle_item
from compress.evaluation.long_context.qa_files import Question, read_questions
from compress.evaluation.long_context.settings import OPTIONS, LongContext
from compress.evaluation.long_context.writing import Writer
from compress.progress import Progress, silent

_DOCUMENTS = (3, 5, 10, 20)
_ATTEMPTS = 20
Make = Callable[..., Item]  # of index, attempt


@dataclass(frozen=True)
class Planned:
    """The items of one task.

    Attributes:
        items: ordered by their number in the cell, so that the first N of them cover all cells.
        left_out: cells that don't fit, in words.
    """

    items: list[Item]
    left_out: tuple[str, ...] = ()


class LongTasks:
    """The tasks asked for, with their texts read; serves any number of models.

    Args:
        settings: what is asked.
        registry: a user's registry file, for the haystack.

    Raises:
        RequestError: a haystack or file of questions that can't be used.
    """

    def __init__(self, settings: LongContext, registry: str | Path | None = None) -> None:
        self.settings = settings
        self._texts: list[str] = []
        if {"needle", "longreason"} & set(settings.tasks):
            self._texts = [
                text
                for spec in parse_spec(settings.haystack, registry)
                for text in load_documents(spec, role="evaluation")
            ]
        self._questions: list[Question] = []
        if settings.qa is not None:
            self._questions = read_questions(settings.qa)
            most = len({question.passage for question in self._questions}) - 1
            if max(settings.documents, default=2) > most:
                raise RequestError(
                    f"`--qa {settings.qa}` has passages for prompts of up to {most} documents",
                    "ask for fewer: `--documents`",
                )
        self._made: dict[tuple[str, int | None], dict[str, Planned]] = {}

    def plan(
        self,
        tokenizer: Any,
        limit: int | None,
        *,
        own_limit: int | None = None,
        progress: Progress = silent,
    ) -> dict[str, Planned]:
        """Make all prompts for a tokenizer; made once for equal ones.

        Args:
            tokenizer: of the model.
            limit: the smallest limit of the models that are compared, in tokens, or None.
            own_limit: of documents, whose prompts have no length of their own; default limit.
            progress: called after each cell.

        Returns:
            task -> its items.

        Raises:
            RequestError: a cell that was asked for doesn't fit, or none does; the tokenizer can't
                write the prompts.
        """
        writer = Writer(tokenizer)
        key = (writer.fingerprint(), limit)
        if key not in self._made:
            _check_writer(writer)
            most = limit if own_limit is None else own_limit
            cells = self._cells(writer, limit, most)
            self._made[key] = {
                task: self._planned(task, named, progress) for task, named in cells.items()
            }
        return self._made[key]

    def _cells(
        self, writer: Writer, limit: int | None, most: int | None
    ) -> dict[str, dict[str, Make]]:
        """Return task -> name of a cell -> what makes its items."""
        asked = self.settings
        lengths = asked.chosen_lengths(limit)
        common = {"seed": asked.seed, "choices": asked.choices}
        hay: Haystack | None = None
        if self._texts:
            hay = read_haystack(writer, self._texts, max(lengths))
        cells: dict[str, dict[str, Make]] = {}
        for task in asked.tasks:
            made: dict[str, Make] = {}
            if task == "multidoc":
                for count in asked.documents or _DOCUMENTS:
                    for place in positions(count):
                        name = f"{count} documents"
                        made[f"{name}, position {place}"] = partial(
                            multidoc_item, writer, self._questions,
                            documents=count, position=place, limit=most, **common,
                        )  # fmt: skip
            else:
                kind, values = ("depth", asked.depths) if task == "needle" else ("hops", asked.hops)
                make: Make = needle_item if task == "needle" else longreason_item
                for length in lengths:
                    for value in values:
                        made[f"{length} tokens, {kind} {value:g}"] = partial(
                            make, writer, hay, length=length, **{kind: value}, **common
                        )
            cells[task] = made
        return cells

    def _planned(self, task: str, cells: dict[str, Make], progress: Progress) -> Planned:
        columns: list[list[Item]] = []
        left_out: list[str] = []
        shortest: list[int] = []
        for done, (name, make) in enumerate(cells.items(), 1):
            try:
                made, needed = _column(make, self.settings.per_cell)
            except ValueError as error:
                raise RequestError(f"`--qa {self.settings.qa}`: {error}", "ask for fewer: "
                                   "`--documents`") from error  # fmt: skip
            if needed and self._asked_for(task):
                self._refuse(task, name, needed)
            if needed:
                left_out.append(name)
                shortest.append(needed)
            else:
                columns.append(made)
            progress("prompts", done, len(cells), f"{task}, {name}")
        if not columns:
            self._refuse(task, next(iter(cells)), min(shortest))
        rows = zip(*columns)
        if task == "multidoc":  # by default those that fit, so there is nothing to tell
            left_out = []
        return Planned([item for row in rows for item in row], _columns(left_out, list(cells)))

    def _asked_for(self, task: str) -> bool:
        """Whether the user named the cells of a task, so that each has to fit."""
        needed = {"needle": {"lengths"}, "longreason": {"lengths", "hops"}}
        return needed.get(task, {"documents"}) <= self.settings.given

    def _refuse(self, task: str, cell: str, needed: int) -> None:
        option = "documents" if task == "multidoc" else "lengths"
        if task == "multidoc":
            hint = f"fewer `{OPTIONS[option]}`, or a file of shorter passages"
        elif task == "longreason":
            hint = f"longer ones, fewer `{OPTIONS['hops']}` or fewer `{OPTIONS['choices']}`"
        else:
            hint = f"use `{OPTIONS[option]} {needed}` or more"
        raise RequestError(f"`{task}` with {cell} doesn't fit: it takes {needed} tokens", hint)


def _columns(left_out: Sequence[str], cells: Sequence[str]) -> tuple[str, ...]:
    """Return cells in words, "64 tokens" for all of that length."""
    head = lambda cell: cell.partition(", ")[0]  # noqa: E731
    whole = {head(cell) for cell in cells} - {head(cell) for cell in cells if cell not in left_out}
    return tuple(dict.fromkeys(head(c) if head(c) in whole else c for c in left_out))


def _column(make: Make, count: int) -> tuple[list[Item], int]:
    """Return a cell's items, and the tokens that the longest takes where one doesn't fit, or 0."""
    items, needed = [], 0
    for index in range(count):
        try:
            items.append(_drawn(make, index))
        except TooShort as error:
            needed = max(needed, error.needed)
    return items, needed


def _drawn(make: Make, index: int) -> Item:
    for attempt in range(_ATTEMPTS):
        try:
            return make(index=index, attempt=attempt)
        except AnswerElsewhere:
            continue
    raise RequestError(
        "the haystack holds every number that was drawn, or the tokenizer doesn't give text back",
        "take another text: `--haystack DATA`",
    )


def _check_writer(writer: Writer) -> None:
    """Refuse a tokenizer that can't write numbers and names, or not give them back."""
    for text in (" holds 52713.", " Milbury"):
        back = writer.text(writer.after(text))
        if text.strip() not in back:
            raise RequestError(
                f"the tokenizer can't write the prompts: `{text.strip()}` comes back as `{back}`",
                "long-context tasks need one that gives English text back as it was",
            )


def limited(planned: Planned, limit: int | None) -> Sequence[Item]:
    """Return at most `limit` items, spread over all cells."""
    return planned.items[:limit]
