"""Questions, passages and answers from a local file, by the column names that such files have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from compress.data import files
from compress.errors import RequestError

_QUESTION = ("question", "query")
_PASSAGE = ("passage", "support", "context", "article", "paragraph")
_ANSWER = ("answer", "correct_answer", "answers")
_WRONG = ("distractor1", "distractor2", "distractor3")
_LONGEST_ANSWER = 80  # characters; a paragraph as an answer can't be found again word for word


class Question(NamedTuple):
    """A question.

    Attributes:
        question, passage, answer: texts; the passage holds the answer.
        wrong: other answers, as far as the file has them.
    """

    question: str
    passage: str
    answer: str
    wrong: tuple[str, ...] = ()


def read_questions(path: str) -> list[Question]:
    """Read a table; rows whose passage lacks the answer are left out.

    Columns: a question (question, query), a passage (passage, support, context, …), an answer
    (answer, correct_answer, answers: a text, a list, or SQuAD's {"text": […]}), and where there are
    any, distractor1 … distractor3. (SciQ, SQuAD and their like.)

    Raises:
        RequestError: no such columns, or under two usable rows.
    """
    rows = files.read_rows(Path(path), "evaluation", None)
    first = rows[0] if rows else {}
    names = [
        next((name for name in known if name in first), None)
        for known in (_QUESTION, _PASSAGE, _ANSWER)
    ]
    for name, known in zip(names, (_QUESTION, _PASSAGE, _ANSWER)):
        if name is None:
            raise RequestError(
                f"`--qa {path}` has no column {' or '.join(f'`{n}`' for n in known)}",
                f"its columns: {', '.join(map(str, first)) or 'none'}",
            )
    found = [question for row in rows if (question := _question(row, *map(str, names)))]
    if len(found) < 2:
        raise RequestError(
            f"`--qa {path}`: {len(found)} of {len(rows)} rows have a passage that holds the answer",
            "an answer needs to stand in its passage, word for word",
        )
    return found


def _question(row: Mapping[str, Any], question: str, passage: str, answer: str) -> Question | None:
    value: Any = row.get(answer)
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, list):
        value = value[0] if value else None
    texts = [row.get(question), row.get(passage), value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    asked, held, right = (" ".join(str(text).split()) for text in texts)
    if right.casefold() not in held.casefold() or len(right) > _LONGEST_ANSWER:
        return None
    wrong = (row.get(name) for name in _WRONG)
    return Question(asked, held, right, tuple(w for w in wrong if isinstance(w, str) and w.strip()))
