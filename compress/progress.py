"""How a long job tells its caller where it stands, without drawing anything.

A job calls `progress(task, done, total, note)`; the command line passes a function that draws bars,
tests and notebooks pass `silent` or their own. Imports nothing, so every room may use it.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the state of a job.

    Args (of a call):
        task: the bar's name, such as "spectra" or "prune"; a new name opens a new bar.
        done: units finished so far, 0 <= done <= total.
        total: units in all.
        note: what is being worked on now, such as a module name; may be empty.
    """

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take note of the state."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """A Progress that says nothing."""


def renamed(progress: Progress, name: str) -> Progress:
    """A Progress that passes everything on under one task's name."""

    def call(task: str, done: int, total: int, note: str = "") -> None:
        progress(name, done, total, note)

    return call
