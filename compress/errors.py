"""The errors a user sees: what went wrong, where, and the remedy beside it.

Imports nothing, so every room may use it. The command line prints `message` and `hint` and
exits with `code`; a traceback appears only with --debug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class CompressError(Exception):
    """An error with its remedy.

    Args:
        message: one line: what, where (module, file, option), the value seen and the one needed.
        hint: what to do about it, usually the next command to type.

    Attributes:
        code: of the process's exit.
        untold: of several processes, the first tells an error; True where it can't.
    """

    code = 3
    untold = False

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(CompressError):
    """The request can't be served: an option, model, plan or data set is wrong (exit code 2)."""

    code = 2


class RunError(CompressError):
    """The run failed part-way: memory, disk, a statistic that isn't finite (exit code 3)."""

    code = 3


Fault = tuple[str, str]
"""What is wrong with an option, and a hint; the hint is a sentence, or empty."""


def refuse(faults: Iterable[Fault]) -> None:
    """Raise all faults of a request as one error, so that a user mends them in one go.

    Raises:
        RequestError: there is a fault.
    """
    found = list(faults)
    if found:
        hints = dict.fromkeys(hint for _, hint in found if hint)  # two faults may have one remedy
        raise RequestError("; ".join(fault for fault, _ in found), " ".join(hints) or None)


def near_names(name: str, known: Iterable[str], listed: int = 12) -> str:
    """Return a hint for a misspelt name: the nearest known one, then the known ones.

    Args:
        name: what the user wrote.
        known: the names that would have been right.
        listed: how many known names are spelt out at most.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    head = f"did you mean `{near[0]}`? " if near else ""
    more = f", … ({len(names)} in all)" if len(names) > listed else ""
    return f"{head}All: {', '.join(names[:listed])}{more}"


def nearest(value: str, known: Sequence[str]) -> str:
    """Return a hint for a wrong choice among a few: the nearest one, then all, in their order."""
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.6)
    return (f"did you mean `{close[0]}`? " if close else "") + f"All: {', '.join(known)}."


def check_options(function: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a keyword that a public function doesn't have, as Python does, with the nearest one.

    Args:
        function: its name, for the message.
        options: the keywords given.
        known: those that it has.

    Raises:
        TypeError: naming the first that isn't known.
    """
    names = set(known)
    for name in options:
        if name not in names:
            raise TypeError(f"{function} has no option `{name}`; {near_names(name, names)}")
