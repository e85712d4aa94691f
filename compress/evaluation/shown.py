"""What is kept of an example for people to read: the question, the target, the model's answer.

Texts are cut to a length that a list of changed examples can afford. They are no outcomes: journals
and receipts leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Shown = dict[str, Any]
"""Of one example, as far as it has them: question, target, answer, choices and their scores."""

_MOST = 200  # characters of a text
_OPENING = 24  # tokens of a window


def head(text: object, most: int = _MOST) -> str:
    """Return a text in one line, its end cut off."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def tail(text: object, most: int = _MOST) -> str:
    """Return a text in one line, its beginning cut off: the question stands at a prompt's end."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"…{line[1 - most :].lstrip()}"


def opening(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the first words of a window of tokens."""
    return head(tokenizer.decode(tokens[:_OPENING], skip_special_tokens=True), 80)


def choice(question: str, choices: Sequence[str], scores: Sequence[float], right: int) -> Shown:
    """Describe an example whose choices got scores, the highest being the answer."""
    best = max(range(len(scores)), key=scores.__getitem__)
    return {
        "question": tail(question),
        "target": head(choices[right]),
        "answer": head(choices[best]),
        "choices": [head(text, 80) for text in choices],
        "scores": list(scores),
    }


def from_sample(sample: Mapping[str, Any], metric: str) -> Shown:
    """Describe an example by what lm-evaluation-harness logs of it.

    Args:
        sample: "arguments" and "filtered_resps" of its requests, and its "target".
        metric: acc_norm divides scores by the length of the choice before they are compared.
    """
    asked = [tuple(map(str, arguments[:2])) for arguments in sample["arguments"]]
    replies, target = list(sample["filtered_resps"]), sample["target"]
    scored = [reply for reply in replies if isinstance(reply, list | tuple) and len(reply) == 2]
    if len(scored) != len(replies):  # generated text, or a likelihood of the whole
        answer = {"answer": head(replies[0])} if isinstance(replies[0], str) else {}
        return {"question": tail(asked[0][0]), "target": head(_one(target)), **answer}
    if len(asked) == 1:
        found = {"question": tail(asked[0][0]), "target": head(asked[0][1])}
        return {**found, "scores": [float(scored[0][0])]}
    questions, choices = _choices(asked)
    scores = [float(reply[0]) for reply in scored[: len(choices)]]
    if metric == "acc_norm":
        scores = [value / max(len(text), 1) for value, text in zip(scores, choices)]
    target = _one(target)
    known = isinstance(target, int) and 0 <= target < len(choices)
    found = choice(questions[0], choices, scores, target if known else 0)
    return found if known else {**found, "target": head(target)}


def _choices(asked: Sequence[tuple[str, ...]]) -> tuple[list[str], list[str]]:
    """Return questions and choices of requests (context, continuation).

    Choices are the continuations behind one context, or the contexts of one continuation; what
    scores the choices without a context (mutual information) comes behind and is left out.
    """
    contexts, endings = [pair[0] for pair in asked], [pair[1] for pair in asked]
    same = [pair for pair in asked if pair[0] == contexts[0]]
    if len(same) == 1 and len(set(endings)) == 1:
        return endings, [text.strip() for text in contexts]
    return contexts, [pair[1].strip() for pair in same]


def _one(target: Any) -> Any:
    """Return a target, or the first of several that count."""
    first = target[0] if isinstance(target, list | tuple) and target else target
    return int(first) if isinstance(first, str) and first.isdigit() else first
