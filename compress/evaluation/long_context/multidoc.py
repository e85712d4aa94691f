"""Questions over several documents, of which one holds the answer, by its position among them.

The set-up of "Lost in the Middle" (Liu et al., arXiv:2307.03172), which MEAP's tables use: numbered
documents, then the question. Documents come from templates, the other documents holding the other
answers; or from a file of questions with passages (`--qa`), the other documents being passages of
other questions that don't mention the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from compress.evaluation.long_context.items import Cell, Item, TooShort, make_item
from compress.evaluation.long_context.qa_files import Question
from compress.evaluation.long_context.words import (
    FIRST_NAMES,
    JOBS,
    LAST_NAMES,
    TOWN_HEADS,
    TOWN_TAILS,
)
from compress.evaluation.long_context.writing import Draw, Writer, alike

_TASK = 2
_HEAD = "Answer the question with the help of the documents.\n\n"


class _Prompt(NamedTuple):
    """Texts of one prompt.

    Attributes:
        documents: each as (before the answer, the answer or "", behind it), in order.
        question: with what the answer goes on from.
        answers: the right one first.
    """

    documents: list[tuple[str, str, str]]
    question: str
    answers: list[str]


def positions(documents: int) -> list[int]:
    """Return the answer positions that are tried, from 1: first, last and three evenly between."""
    return sorted({1 + round(i * (documents - 1) / 4) for i in range(5)})


def multidoc_item(
    writer: Writer,
    questions: Sequence[Question],
    *,
    documents: int,
    position: int,
    index: int,
    seed: int,
    choices: int,
    limit: int | None,
    attempt: int = 0,
) -> Item:
    """Make one item; equal arguments, equal tokens.

    Args:
        writer: of the tokenizer.
        questions: of a file; none: templates.
        documents: how many.
        position: of the one with the answer, from 1.
        index: number of the item in its cell.
        seed: of the draws.
        choices: answers, the right one included.
        limit: most tokens of prompt and answers.
        attempt: counts redraws.

    Raises:
        TooShort: the limit is below what the prompt takes.
    """
    draw = Draw(seed, _TASK, documents, position, index, attempt)
    texts = (
        _from_file(questions, documents, position, choices, draw)
        if questions
        else _from_templates(writer, documents, position, choices, draw)
    )
    prompt = [*writer.prefix, *writer.after(_HEAD)]
    evidence = values = (0, 0)
    for number, (before, answer, behind) in enumerate(texts.documents, 1):
        piece = writer.piece(f"Document [{number}] {before}", answer, f"{behind}\n")
        if number == position:
            at = len(prompt)
            evidence = (at, at + len(piece.ids))
            values = (at + piece.span[0], at + piece.span[1])
        prompt += piece.ids
    question, answers = writer.question(texts.question, texts.answers)
    start = len(prompt)
    prompt += question
    needed = len(prompt) + max(map(len, answers))
    if limit is not None and needed > limit:
        raise TooShort(needed)
    cell: Cell = (("documents", documents), ("position", position))
    return make_item(cell, index, prompt, answers, [evidence], [values], start)


def _from_templates(
    writer: Writer, documents: int, position: int, choices: int, draw: Draw
) -> _Prompt:
    """People, the town that each lives in and their work; one person's town is asked for."""
    towns = alike(
        writer, lambda: draw.choice(TOWN_HEADS) + draw.choice(TOWN_TAILS), max(documents, choices)
    )
    pairs = [(first, last) for first in FIRST_NAMES for last in LAST_NAMES]
    people = [" ".join(pair) for pair in draw.sample(pairs, documents)]
    homes = towns[1:documents]
    homes.insert(position - 1, towns[0])
    written = [
        (f"{person} lives in", f" {home}", f" and works as a {draw.choice(JOBS)}.")
        for person, home in zip(people, homes)
    ]
    person = people[position - 1]
    question = f"\nQuestion: Where does {person} live?\nAnswer: {person} lives in"
    return _Prompt(written, question, [f" {town}" for town in towns[:choices]])


def _from_file(
    questions: Sequence[Question], documents: int, position: int, choices: int, draw: Draw
) -> _Prompt:
    """One question of a file, its passage, and passages of others that don't hold its answer."""
    order = draw.sample(questions, len(questions))
    right = order[0]
    answer = right.answer.casefold()
    passages: list[tuple[str, str, str]] = []
    taken = {right.passage}
    for other in order[1:]:
        if len(passages) == documents - 1:
            break
        if other.passage in taken or answer in other.passage.casefold():
            continue
        taken.add(other.passage)
        passages.append((other.passage, "", ""))
    if len(passages) < documents - 1:
        raise ValueError(f"only {len(passages) + 1} passages go with one question")
    at = right.passage.casefold().index(answer)
    end = at + len(answer)
    held = right.passage[:at].rstrip(" "), right.passage[:end], right.passage[end:]
    passages.insert(position - 1, (held[0], held[1][len(held[0]) :], held[2]))
    others = list(dict.fromkeys([*right.wrong, *(q.answer for q in order[1:])]))
    wrong = [text for text in others if text.casefold() != answer][: choices - 1]
    answers = [f" {text}" for text in (right.answer, *wrong)]
    return _Prompt(passages, f"\nQuestion: {right.question}\nAnswer:", answers)
