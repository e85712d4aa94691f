"""Needle in a haystack: one sentence that says a number, hidden in a text, then asked for.

A prompt of L tokens with its answer: beginning of text, the haystack's tokens before the needle,
the needle, those after it, the question. At depth d exactly round(d * n) of the haystack's n tokens
come before; they end with a sentence, since it is the front of the text that is cut to fit.
"""

from __future__ import annotations

from compress.evaluation.long_context.haystack import Haystack
from compress.evaluation.long_context.items import (
    AnswerElsewhere,
    Cell,
    Item,
    TooShort,
    make_item,
)
from compress.evaluation.long_context.words import PLACES
from compress.evaluation.long_context.writing import Draw, Writer, alike, number

_TASK = 1  # counter of this task's draws
_SCALE = 10**6  # depths are counted in millionths


def needle_item(
    writer: Writer,
    hay: Haystack,
    *,
    length: int,
    depth: float,
    index: int,
    seed: int,
    choices: int,
    attempt: int = 0,
) -> Item:
    """Make one item; equal arguments, equal tokens.

    Args:
        writer, hay: of the tokenizer.
        length: tokens of prompt and answer.
        depth: 0 … 1.
        index: number of the item in its cell.
        seed: of the draws.
        choices: answers, the right one included.
        attempt: counts redraws.

    Raises:
        TooShort: the length has no room for needle and question.
        AnswerElsewhere: the number occurs a second time.
    """
    draw = Draw(seed, _TASK, length, round(depth * _SCALE), index, attempt)
    place = draw.choice(PLACES)
    numbers = alike(writer, lambda: number(draw), choices)
    needle = writer.piece(f" The secret number of {place} is", f" {numbers[0]}", ".")
    question, answers = writer.question(
        f"\n\nWhat is the secret number of {place}? The secret number of {place} is",
        [f" {value}" for value in numbers],
    )
    room = length - len(writer.prefix) - len(needle.ids) - len(question) - len(answers[0])
    if room < 1:
        raise TooShort(length - room + 1)
    before = round(depth * room)
    start = int(hay.starts[draw.below(len(hay.starts))])
    text = hay.run(start - before, room).tolist()
    at = len(writer.prefix) + before
    prompt = [*writer.prefix, *text[:before], *needle.ids, *text[before:], *question]
    if writer.text(prompt).count(numbers[0]) != 1:
        raise AnswerElsewhere
    cell: Cell = (("length", length), ("depth", depth))
    value = (at + needle.span[0], at + needle.span[1])
    evidence = (at, at + len(needle.ids))
    return make_item(cell, index, prompt, answers, [evidence], [value], len(prompt) - len(question))
