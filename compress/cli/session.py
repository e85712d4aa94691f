"""What every door does around its call: progress bars, the printed result, JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compress import launcher
from compress.progress import Progress


class Session:
    """Where one command's output goes.

    Attributes:
        progress: to be handed to the job.
        as_json: stdout is one JSON object and nothing else.
        quiet: nothing but errors.
    """

    def __init__(self, progress: Progress, as_json: bool, quiet: bool) -> None:
        self.progress = progress
        self.as_json = as_json
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Tell the user something on the way: stdout, or stderr with --json; not with --quiet."""
        if not self.quiet:
            print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def result(self, data: dict[str, Any], text: str) -> None:
        """Print the result: `data` as JSON, or `text` for people."""
        if self.as_json:
            print(json.dumps(data, indent=1, sort_keys=True, allow_nan=False))
        elif not self.quiet and text:
            print(text)


@contextmanager
def session(as_json: bool, quiet: bool) -> Iterator[Session]:
    """Open the bars for one command, and close them whatever happens."""
    from compress.reports.progress_bars import ProgressBars, ProgressFile

    _hush_libraries()
    if launcher.rank():  # the first process speaks for all
        as_json, quiet = False, True
    told = os.environ.get("COMPRESS_PROGRESS")  # a recipe's run asks where its steps stand
    with ProgressBars(quiet=quiet) as bars:
        yield Session(ProgressFile(told) if told else bars, as_json, quiet)


def _hush_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal; their errors still come through."""
    import logging
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("transformers", "datasets", "lm_eval", "lm-eval", "huggingface_hub", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="transformers|lm_eval|datasets")
    warnings.filterwarnings("ignore", category=FutureWarning)
