"""`lowrank-svd --from-scratch`: train a model whose layers are products of two thin ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.lowrank.scratch.preparing import prepare_scratch
from compress.lowrank.scratch.settings import COMMAND, ScratchSettings
from compress.progress import Progress, silent
from compress.training.command import carry_out
from compress.training.preparing import Say
from compress.training.result import TrainResult


def train_from_scratch(
    model: str | Path | None = None,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    say: Say = lambda text: None,
    **options: Any,
) -> TrainResult:
    """Train a low-rank speech recogniser, or language model, from a random start.

    A config of `parakeet_ctc`, or a preset such as conformer-tiny, makes a Conformer with a CTC
    head that is trained on recordings with transcripts; a causal language model is trained on
    text. The chosen layers are factors from the start (LR-SMS, arXiv:2410.07771). `dense=True`, or
    a rank ratio of 1, is the run to compare with: it has the same W0, order and everything else.

    Args:
        model: a config to start at random, a checkpoint to go on from, or None with `preset`.
        output: the directory to make.
        resume: go on from an interrupted run's last checkpoint.
        overwrite: replace a non-empty output, at the end.
        revision, token, trust_remote_code: of a Hub model.
        progress, say: told where the job stands; say gets lines for the reader.
        options: fields of ScratchSettings: data, steps, include, rank_ratio, factor_init, …

    Returns:
        The receipt and where the model lies; it loads by plain AutoModelForCTC once this package is
        imported.

    Raises:
        RequestError: something about the request is wrong; nothing was written.
        RunError: the run failed part-way; `resume` goes on from its last checkpoint.
    """
    return carry_out(
        prepare_scratch,
        COMMAND,
        model,
        output,
        ScratchSettings.read(options),
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        say=say,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
    )
