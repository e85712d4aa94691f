"""Which capability a text or task measures: averages are given for each, never over all."""

from __future__ import annotations

import re

GENERAL, OTHER = "general text", "other tasks"
_BY_NAME = {
    "arithmetic": r"gsm|svamp|mawps|asdiv|arith|math|addsub|aqua",
    "entailment": r"nli|rte|entail|^cb$|mrpc|qqp|wnli|snli|paws",
    "commonsense": r"commonsense|csqa|race|wino|boolq|piqa|hellaswag|^arc|openbook|siqa|social_iqa"
    r"|copa|sciq|truthful|mmlu|choice",
}


def capability(name: str, otherwise: str = OTHER) -> str:
    """The capability that a task of lm-eval or a text measures, by its name.

    Args:
        name: of the task, or a data spec.
        otherwise: what it is where no name fits: OTHER of tasks, GENERAL of texts.
    """
    short = name.lower().rpartition("/")[2].removeprefix("tiny_")
    return next((group for group, words in _BY_NAME.items() if re.search(words, short)), otherwise)
