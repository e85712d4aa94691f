"""What a long-context evaluation measures, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import RequestError
from compress.evaluation.long_context import NAMES

LONGEST_BY_DEFAULT = 4096  # tokens; longer ones only where they are asked for
OPTIONS = {  # field -> the option that sets it
    "lengths": "--context-lengths",
    "depths": "--depths",
    "documents": "--documents",
    "hops": "--hops",
    "per_cell": "--per-cell",
    "choices": "--choices",
    "haystack": "--haystack",
    "qa": "--qa",
    "attention": "--attention",
    "png": "--png",
}
_USERS = {  # field -> the tasks that it is for, where not for all
    "lengths": ("needle", "longreason"),
    "depths": ("needle",),
    "documents": ("multidoc",),
    "hops": ("longreason",),
    "haystack": ("needle", "longreason"),
    "qa": ("multidoc",),
}


@dataclass(frozen=True)
class LongContext:
    """What is asked of the long-context tasks.

    Attributes:
        tasks: of NAMES.
        lengths: tokens of prompt and answer together; empty: a quarter, a half and the whole of the
            models' limit or of 4096.
        depths: place of the needle as a share of the haystack before it, 0 … 1.
        documents: how many a prompt of multidoc holds; empty: those of 3, 5, 10, 20 that fit.
        hops: links between the value and the name that is asked for.
        per_cell: items of each cell.
        choices: answers that the likelihood chooses among, the right one included.
        haystack: data spec of the text around needles and chains.
        qa: file of questions, passages and answers for multidoc; None: made from templates.
        attention: where the model looks is measured too.
        seed: of every draw.
        given: fields that the user set; cells that don't fit a length are refused if they were
            asked for, else left out.
    """

    tasks: tuple[str, ...] = NAMES
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    documents: tuple[int, ...] = ()
    hops: tuple[int, ...] = (1, 2, 4)
    per_cell: int = 8
    choices: int = 4
    haystack: str = "demo"
    qa: str | None = None
    attention: bool = False
    seed: int = 0
    given: frozenset[str] = field(default=frozenset())

    def chosen_lengths(self, limit: int | None) -> tuple[int, ...]:
        """Return the lengths asked for, or the default ones below a model's limit."""
        if self.lengths:
            return self.lengths
        top = min(limit or LONGEST_BY_DEFAULT, LONGEST_BY_DEFAULT)
        return (top // 4, top // 2, top)


def split_tasks(tasks: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Split task names into ours, in our order, and those of lm-eval."""
    return tuple(n for n in NAMES if n in tasks), [name for name in tasks if name not in NAMES]


def read_settings(tasks: Sequence[str], seed: int, **options: Any) -> LongContext | None:
    """Make settings of options that were given; None stands for "not given".

    Args:
        tasks: of NAMES; none: there must be no options either.
        seed: of every draw.
        options: by field of LongContext.

    Returns:
        The settings, or None where no task is asked for.

    Raises:
        RequestError: an option without its task, or out of range; names it.
    """
    given = {
        key: value
        for key, value in options.items()
        if value not in (None, (), [], "") and value is not False
    }
    for key in given:
        users = _USERS.get(key, NAMES)
        if not set(users) & set(tasks):
            needed = " or ".join(f"`--tasks {name}`" for name in users)
            raise RequestError(f"`{OPTIONS[key]}` needs {needed}", "add it, or leave the option")
    given.pop("png", None)
    if not tasks:
        return None
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list | tuple) else v for k, v in given.items()
    }
    settings = LongContext(tuple(tasks), **values, seed=seed, given=frozenset(given))
    _check(settings)
    return settings


def _check(settings: LongContext) -> None:
    ranges: dict[str, tuple[float, float, str]] = {
        "lengths": (2, 2**31, "at least 2 tokens"),
        "depths": (0, 1, "from 0 to 1"),
        "documents": (2, 1000, "from 2 to 1000"),
        "hops": (1, 100, "from 1 to 100"),
    }
    for key, (low, high, words) in ranges.items():
        values = getattr(settings, key)
        bad = [value for value in values if not low <= value <= high]
        if bad:
            raise RequestError(f"`{OPTIONS[key]} {bad[0]:g}`: {words} is needed")
        if len(set(values)) < len(values):
            raise RequestError(f"`{OPTIONS[key]}` names a value twice")
    if settings.per_cell < 1:
        raise RequestError(f"`--per-cell {settings.per_cell}`: at least 1 is needed")
    if not 2 <= settings.choices <= 20:
        raise RequestError(f"`--choices {settings.choices}`: from 2 to 20 is needed")
    if settings.qa is not None and not Path(settings.qa).is_file():
        raise RequestError(f"`--qa {settings.qa}`: no such file")


def check_model_fits(
    settings: LongContext, name: str, limit: int | None, encodes: bool = False
) -> None:
    """Refuse lengths above a model's limit, and models that don't read prompt and answer as one.

    Raises:
        RequestError: names the model, the length and the limit; or that it has an encoder.
    """
    if encodes:
        raise RequestError(
            f"`{name}` has an encoder; {', '.join(settings.tasks)} need a decoder-only model",
            "leave these tasks out",
        )
    longest = max(settings.lengths, default=0)
    if limit is not None and longest > limit:
        raise RequestError(
            f"`--context-lengths {longest}` is above the limit of `{name}`, {limit} tokens",
            f"use {limit} or less",
        )
