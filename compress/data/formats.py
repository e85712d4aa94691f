"""Prompt formats: what an example of a data set looks like in calibration text.

| format | one piece of text |
|---|---|
| raw | a document; of a data set with templates its template `raw` |
| zero-shot | the prompt alone |
| icl | prompts with their answers, one after another, as many as a window holds |
| icl-K | K prompts with their answers |
| cot | one prompt with its reasoning and answer |
| icl-cot, icl-cot-K | as icl and icl-K, with the reasoning |

Source: arXiv:2410.07461, section 3 (formats), and its code for the wording of templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from compress.data.fields import Unusable, render
from compress.data.registry import Corpus
from compress.errors import RequestError, near_names

FORMATS = ("raw", "zero-shot", "icl", "cot", "icl-cot")
_LISTED = ("raw", "zero-shot", "icl", "icl-K", "cot", "icl-cot")


class Format(NamedTuple):
    """A prompt format, taken apart."""

    name: str
    answered: bool
    """Whether the answer is in it."""
    reasoned: bool
    """Whether the reasoning is in it."""
    joined: bool
    """Whether several examples make one prompt."""
    shots: int | None = None
    """How many; None is as many as a window holds."""


def read_format(name: str) -> Format | None:
    """Take the name of a format apart; None for `raw`.

    Raises:
        RequestError: an unknown name, with near ones.
    """
    if name == "raw":
        return None
    kind, shots = name, None
    counted = re.fullmatch(r"(icl|icl-cot)-(\d{1,6})", name)
    if counted and int(counted[2]):
        kind, shots = counted[1], int(counted[2])
    if kind not in FORMATS:
        raise RequestError(f"unknown format `{name}`", near_names(name, _LISTED))
    return Format(name, kind != "zero-shot", "cot" in kind, kind.startswith("icl"), shots)


class Example(NamedTuple):
    """One example of a data set in a format."""

    row: int
    """Its number in the source, from 0."""
    of: int
    """How many rows the source has, those included that lack a value in this format."""
    prompt: str
    answer: str
    """With the reasoning, where the format has it; "" in zero-shot."""


def check_format(corpus: Corpus, form: Format, spec: str) -> None:
    """Refuse a format that a corpus can't have.

    Raises:
        RequestError: raw text has none; there is no answer, or no reasoning.
    """
    if "prompt" not in corpus.templates:
        raise RequestError(
            f"data spec `{spec}`: `{corpus.name}` is raw text, which has no format `{form.name}`",
            f"write `{corpus.name}`, or give its registry entry a `prompt` template",
        )
    if form.answered and "answer" not in corpus.templates:
        raise RequestError(
            f"data spec `{spec}`: `{corpus.name}` has no answers, so only @raw and @zero-shot",
            "give its registry entry an `answer` template",
        )
    if form.reasoned and "rationale" not in corpus.templates:
        raise RequestError(
            f"data spec `{spec}`: `{corpus.name}` has no rationale field, so no chain of thought",
            f"use `@{form.name.replace('icl-cot', 'icl').replace('cot', 'icl')}`, or a data set "
            "with rationales",
        )


def make_examples(
    corpus: Corpus, form: Format, rows: Sequence[Mapping[str, Any]], where: str
) -> list[Example]:
    """Bring rows into a format; those that lack a value, such as an empty rationale, are left out.

    Args:
        corpus: the entry, with templates.
        form: the format.
        rows: rows of the source, in its order.
        where: what the rows are of, for messages.

    Raises:
        RequestError: a column that isn't there, or no row that can be used.
    """
    ending = "rationale" if form.reasoned else "answer"
    found = []
    for number, row in enumerate(rows):
        place = f"{where}, row {number + 1}"
        try:
            prompt = render(corpus.templates["prompt"], row, corpus.fields, place)
            answer = ""
            if form.answered:
                answer = render(corpus.templates[ending], row, corpus.fields, place)
        except Unusable:
            continue
        found.append(Example(number, len(rows), prompt, answer))
    if not found:
        raise RequestError(
            f"{where}: none of its {len(rows)} rows has all that format `{form.name}` needs",
            f"fields of its templates: {', '.join(corpus.fields) or ', '.join(corpus.columns)}",
        )
    return found


def make_texts(corpus: Corpus, rows: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Fill the template `raw` from rows; what lacks a value is an empty text."""
    texts = []
    for number, row in enumerate(rows):
        try:
            place = f"{where}, row {number + 1}"
            texts.append(render(corpus.templates["raw"], row, corpus.fields, place))
        except Unusable:
            texts.append("")
    return texts
