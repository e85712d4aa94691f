"""Which capability a text or task measures: averages are given for each, never over all."""

from __future__ import annotations

import re

GENERAL, OTHER = "general text", "other tasks"
_BY_NAME = {
    "arithmetic": r"gsm|svamp|mawps|asdiv|arith|math|addsub|multiarith|aqua",
    "entailment": r"nli|rte|entail|^cb$|mrpc|qqp|wnli|snli|paws",
    "commonsense": r"commonsense|csqa|race|wino|boolq|piqa|hellaswag|^arc|openbook|siqa|social_iqa"
    r"|copa|sciq|story|truthful|mmlu",
}


def capability(task: str) -> str:
    """The capability that a task of lm-eval measures, by its name; OTHER where none fits."""
    name = task.lower().removeprefix("tiny_")
    return next((group for group, words in _BY_NAME.items() if re.search(words, name)), OTHER)
