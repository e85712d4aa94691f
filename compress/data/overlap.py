"""What calibration and evaluation have in common: the same split, the same data set, or passages.

A passage is a run of 13 words, lower case and without punctuation, as GPT-3's authors searched
their training text for test sets (arXiv:2005.14165, appendix C); of an item with fewer words, 8.
Items with fewer than 8 words can't be told from chance and are not searched for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress.data.registry import Corpus, corpora
from compress.data.specs import DataSpec, Mix, parse_mix, parse_spec
from compress.errors import RequestError

RUN, SHORT_RUN = 13, 8
Relation = Literal["same", "in-domain", "other"]


class Items:
    """Evaluation items, ready to recognise their passages.

    Args:
        items: task -> texts of its items, with their prompts.

    Attributes:
        unchecked: task -> items that are too short to be searched for.
    """

    def __init__(self, items: Mapping[str, Sequence[str]]) -> None:
        self.unchecked: dict[str, int] = {}
        self._runs: dict[str, dict[int, np.ndarray]] = {}
        for task, texts in items.items():
            runs: dict[int, list[np.ndarray]] = {RUN: [], SHORT_RUN: []}
            for text in texts:
                words = words_of(text)
                length = RUN if len(words) >= RUN else SHORT_RUN
                if len(words) < SHORT_RUN:
                    self.unchecked[task] = self.unchecked.get(task, 0) + 1
                runs[length].append(_runs(words, length))
            self._runs[task] = {
                length: np.unique(np.concatenate(found)) for length, found in runs.items() if found
            }

    def tasks_in(self, ids: np.ndarray, tokenizer: Any) -> list[str]:
        """Return the tasks of which a window of token ids [T] holds a passage."""
        if not self._runs:
            return []
        return self.tasks_of(tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def tasks_of(self, text: str) -> list[str]:
        """Return the tasks of which a text holds a passage."""
        words = words_of(text)
        own = {length: _runs(words, length) for length in (RUN, SHORT_RUN)}
        return [
            task
            for task, runs in self._runs.items()
            if any(bool(np.isin(own[length], held).any()) for length, held in runs.items())
        ]

    def counts(self, texts: Sequence[str]) -> dict[str, int]:
        """Return task -> how many of the texts hold a passage of it."""
        found = dict.fromkeys(self._runs, 0)
        for text in texts:
            for task in self.tasks_of(text):
                found[task] += 1
        return found


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def _runs(words: Sequence[str], length: int) -> np.ndarray:
    """Return the hash of every run of `length` words, int64; compared within this process only."""
    runs = [hash(" ".join(words[i : i + length])) for i in range(len(words) - length + 1)]
    return np.array(runs, np.int64)


def relation(
    calib: str | DataSpec | Mix, evaluated: str | DataSpec, registry: str | Path | None = None
) -> Relation:
    """Say how near an evaluation is to a calibration set.

    Args:
        calib: the calibration set.
        evaluated: a data spec of `--ppl`, or the name of an lm-eval task.
        registry: a user's registry file.

    Returns:
        "same" where what is evaluated on is also calibrated on, "in-domain" where it is another
        split of a data set, else "other". A file is known by its path alone.
    """
    if isinstance(calib, str):
        calib = parse_mix(calib, registry)
    parts = calib.parts if isinstance(calib, Mix) else (calib,)
    known = corpora(registry)
    if isinstance(evaluated, str) and any(evaluated in c.tasks for c in known.values()):
        others = [c for c in known.values() if evaluated in c.tasks]
        found = [_to_corpus(part, other) for part in parts for other in others]
    else:
        specs = parse_spec(evaluated, registry) if isinstance(evaluated, str) else [evaluated]
        found = [_to_spec(part, spec) for part in parts for spec in specs]
    order: tuple[Relation, ...] = ("same", "in-domain", "other")
    return min(found, key=order.index)


def _to_corpus(part: DataSpec, other: Corpus) -> Relation:
    """How a part is related to the corpus that a task scores on."""
    own = part.entry
    if own is None:
        return "other"
    if own.hub and own.hub == other.hub and own.config == other.config:
        return "same" if own.splits.get("calibration") == other.splits.get("evaluation") else (
            "in-domain"
        )  # fmt: skip
    return "in-domain" if own.name == other.name else "other"


def _to_spec(part: DataSpec, spec: DataSpec) -> Relation:
    """How a part is related to a text that perplexity is measured on."""
    own, other = part.source("calibration"), spec.source("evaluation")
    if own == other:
        return "same"
    mine, theirs = part.entry, spec.entry
    one_hub = mine is not None and theirs is not None and mine.hub and mine.hub == theirs.hub
    if own[0] == other[0] or part.name == spec.name or one_hub:
        return "in-domain"
    return "other"


def refuse_same(
    parts: Sequence[DataSpec], held: Sequence[DataSpec], tasks: Sequence[str] = ()
) -> None:
    """Refuse a spec that is also evaluated on.

    Args:
        parts: specs of the calibration set.
        held: specs that perplexity is measured on.
        tasks: lm-eval tasks.

    Raises:
        RequestError: names the spec, and what it is evaluated by.
    """
    entries = corpora().values()
    for part in parts:
        for spec in held:
            if _to_spec(part, spec) == "same":
                raise RequestError(
                    f"data spec `{part.text}` is both the calibration and the evaluation text: "
                    "the perplexity would be of text that the model was fitted to",
                    hint="calibrate on another text, such as `--calib demo`, or say "
                    "`--allow-leakage`",
                )
        for task in tasks:
            scored = [entry for entry in entries if task in entry.tasks]
            if any(_to_corpus(part, entry) == "same" for entry in scored):
                raise RequestError(
                    f"data spec `{part.text}` is the split that task `{task}` is scored on",
                    hint="calibrate on another split, or say `--allow-leakage`",
                )
