"""Chains of statements in a long text: a value is given to a name, that name's to another, …

"Box QF holds 52713." … "Box KM holds the same as box QF." … "Box KM holds" -> 52713: `hops` links
lie between the value and the name that is asked for. Other chains of the same length hold the other
answers, so that finding a number is not enough. (Variable tracking as in RULER, arXiv:2404.06654,
asked backwards: one answer, found by following the links.)
"""

from __future__ import annotations

import string
from typing import NamedTuple

from compress.evaluation.long_context.haystack import Haystack
from compress.evaluation.long_context.items import (
    AnswerElsewhere,
    Cell,
    Item,
    Span,
    TooShort,
    make_item,
)
from compress.evaluation.long_context.writing import Draw, Piece, Writer, alike, number

_TASK = 3
_NAMES = [a + b for a in string.ascii_uppercase for b in string.ascii_uppercase if a != b]


class _Statement(NamedTuple):
    chain: int
    step: int
    piece: Piece


def longreason_item(
    writer: Writer,
    hay: Haystack,
    *,
    length: int,
    hops: int,
    index: int,
    seed: int,
    choices: int,
    attempt: int = 0,
) -> Item:
    """Make one item; equal arguments, equal tokens.

    Args:
        writer, hay: of the tokenizer.
        length: tokens of prompt and answer.
        hops: links of a chain.
        index: number of the item in its cell.
        seed: of the draws.
        choices: chains, the one asked for included.
        attempt: counts redraws.

    Raises:
        TooShort: the length has no room for the statements and the question.
        AnswerElsewhere: one of the values occurs a second time.
    """
    draw = Draw(seed, _TASK, length, hops, index, attempt)
    names = draw.sample(_NAMES, choices * (hops + 1))
    chains = [names[i * (hops + 1) : (i + 1) * (hops + 1)] for i in range(choices)]
    numbers = alike(writer, lambda: number(draw), choices)
    statements = _shuffled(writer, chains, numbers, draw)
    asked = chains[0][-1]
    question, answers = writer.question(
        f"\n\nWhat does box {asked} hold? Box {asked} holds", [f" {value}" for value in numbers]
    )
    said = sum(len(statement.piece.ids) for statement in statements)
    room = length - len(writer.prefix) - said - len(question) - len(answers[0])
    if room < 1:
        raise TooShort(length - room + 1)
    start = int(hay.starts[draw.below(len(hay.starts))])
    gaps = sorted(draw.below(room + 1) for _ in statements)
    gaps = hay.starts_before(start, gaps)
    prompt, spans = list(writer.prefix), list[tuple[_Statement, int]]()
    text, done = hay.run(start, room).tolist(), 0
    for statement, gap in zip(statements, gaps):
        prompt += text[done:gap]
        spans.append((statement, len(prompt)))
        prompt += statement.piece.ids
        done = gap
    prompt += [*text[done:], *question]
    written = writer.text(prompt)
    if any(written.count(value) != 1 for value in numbers):
        raise AnswerElsewhere
    cell: Cell = (("length", length), ("hops", hops))
    evidence, values = _evidence(spans)
    return make_item(cell, index, prompt, answers, evidence, values, len(prompt) - len(question))


def _shuffled(
    writer: Writer, chains: list[list[str]], numbers: list[str], draw: Draw
) -> list[_Statement]:
    """Return all statements in an order in which each chain's stay in theirs."""
    steps = len(chains[0])
    order = draw.sample([chain for chain in range(len(chains)) for _ in range(steps)], 10**9)
    told = [0] * len(chains)
    statements = []
    for chain in order:
        step, names = told[chain], chains[chain]
        told[chain] += 1
        if step == 0:
            piece = writer.piece(f" Box {names[0]} holds", f" {numbers[chain]}", ".")
        else:
            before = f" Box {names[step]} holds the same as box"
            piece = writer.piece(before, f" {names[step - 1]}", ".")
        statements.append(_Statement(chain, step, piece))
    return statements


def _evidence(spans: list[tuple[_Statement, int]]) -> tuple[list[Span], list[Span]]:
    """Return the spans of the chain that is asked for, and that of its value."""
    evidence: list[Span] = []
    values: list[Span] = []
    for statement, at in spans:
        if statement.chain:
            continue
        evidence.append((at, at + len(statement.piece.ids)))
        if statement.step == 0:
            first, last = statement.piece.span
            values.append((at + first, at + last))
    return evidence, values
