"""Keeps lm-evaluation-harness and `datasets` from drawing: their bars go to our progress."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from compress.progress import Progress


@contextlib.contextmanager
def silenced(progress: Progress) -> Iterator[None]:
    """Send the harness's bars to `progress`, and keep it and `datasets` from writing to stderr.

    Neither offers a switch for all of its bars; the harness looks `tqdm` up in its own modules, so
    they are given a stand-in for the duration.
    """
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    class Bar:
        """Stands in for tqdm: reports a batch of requests to `progress`."""

        def __init__(self, items: Any = None, total: int | None = None, **_: Any) -> None:
            self._items = items
            self._total = total if total is not None else len(items) if items is not None else 0
            self._done = 0

        def __iter__(self) -> Iterator[Any]:
            yield from self._items

        def update(self, count: int = 1) -> None:
            self._done += count
            progress("tasks", min(self._done, self._total), self._total, "requests")

        def close(self) -> None:
            pass

    modules: list[Any] = [lm_eval.models.huggingface, lm_eval.api.model, lm_eval.api.task]
    kept = [(module, module.tqdm) for module in modules if hasattr(module, "tqdm")]
    loggers = [(log, log.level) for log in map(logging.getLogger, ("lm_eval", "datasets"))]
    bars_on = datasets.utils.are_progress_bars_disabled() is False
    try:
        for module, _ in kept:
            module.tqdm = Bar
        for log, _ in loggers:
            log.setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        yield
    finally:
        for module, bar in kept:
            module.tqdm = bar
        for log, level in loggers:
            log.setLevel(level)
        if bars_on:
            datasets.enable_progress_bars()
