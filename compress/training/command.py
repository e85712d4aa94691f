"""`train-spam`, `train-meap`, `train-mixln`: one trainer behind three doors.

The doors differ in defaults alone. Objective, optimizer, norm placement and size are chosen one by
one, in every combination.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoints.save import on_disk
from compress.checkpoints.source import open_source
from compress.checkpoints.workspace import Workspace, check_output
from compress.errors import RequestError
from compress.evaluation.asked import measured_once
from compress.evaluation.measures import Measures
from compress.numerics.ranks import joined
from compress.progress import Progress, silent
from compress.reports.receipt import Receipt, write_items
from compress.training import finishing
from compress.training.checkpointing import saved_checkpoints
from compress.training.norms import fold_scaled_norms
from compress.training.preparing import Job, Say, prepare
from compress.training.result import TrainResult
from compress.training.running import CHECKPOINTS, Run, run
from compress.training.settings import TrainSettings


def train_spam(
    model: str | Path | PreTrainedModel | None = None,
    output: str | Path | None = None,
    **options: Any,
) -> TrainResult:
    """Train with SPAM, an Adam that survives gradient spikes, or with any other optimizer.

    Defaults are those of the papers: SPAM, 512 sequences of 256 tokens a step, cosine to a tenth of
    the peak after 10 % warm-up, no weight decay; and, against the papers, gradients clipped to
    norm 1.0, the stronger protection (`max_grad_norm=0` turns it off).

    Args:
        model: a checkpoint or a model in memory to go on from (it stays as it is), a config to
            start at random, or None with `preset`.
        output: the directory to make.
        options: fields of TrainSettings, and `resume`, `overwrite`, `tokenizer` (of a model in
            memory), `revision`, `token`,
            `trust_remote_code`, `progress`, `say`.

    Returns:
        The receipt and where the model lies.

    Raises:
        RequestError: something about the request is wrong; nothing was written.
        RunError: the run failed part-way; `resume` goes on from its last checkpoint.

    Sources: SPAM, arXiv:2501.06842; Stable-SPAM, arXiv:2502.17055.
    """
    return train("train-spam", model, output, **options)


def train_meap(
    model: str | Path | PreTrainedModel | None = None,
    output: str | Path | None = None,
    **options: Any,
) -> TrainResult:
    """Train to predict the next token with a share of the input masked, or fine-tune so (`sft`).

    Defaults are the paper's: 15 % of the input masked (10 % for fine-tuning), 256 sequences of 4096
    tokens a step, AdamW with betas 0.9 and 0.95 and weight decay 0.05, clipped to norm 1.0.

    Args:
        model, output, options: as of train_spam.

    Returns, Raises: as train_spam.

    Source: MEAP, arXiv:2502.07490.
    """
    return train("train-meap", model, output, **options)


def train_mixln(
    model: str | Path | PreTrainedModel | None = None,
    output: str | Path | None = None,
    **options: Any,
) -> TrainResult:
    """Train with norms placed anew: Mix-LN, LayerNorm Scaling, Post-LN and others.

    Defaults are the paper's: Post-LN in the first quarter of the blocks, 512 sequences of 256
    tokens a step, AdamW without weight decay.

    Args:
        model, output, options: as of train_spam.

    Returns, Raises: as train_spam.

    Sources: Mix-LN, arXiv:2412.13795; LayerNorm Scaling, arXiv:2502.05795.
    """
    return train("train-mixln", model, output, **options)


def train(
    door: str,
    model: str | Path | PreTrainedModel | None,
    output: str | Path | None,
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
    """Train behind one door; see train_spam.

    Args:
        door: a key of settings.DOORS, whose defaults hold.
    """
    tokenizer = options.get("tokenizer")
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        if not isinstance(model, PreTrainedModel):
            raise RequestError(
                "a tokenizer in memory goes with a model in memory",
                "name the tokenizer by its directory or Hub id",
            )
        del options["tokenizer"]  # it lies beside the weights
    else:
        tokenizer = None
    settings = TrainSettings.of_door(door, options)
    with contextlib.ExitStack() as stack:
        path = on_disk(model, tokenizer, stack) if isinstance(model, PreTrainedModel) else model
        return carry_out(
            prepare, door, path, output, settings, resume=resume, overwrite=overwrite,
            progress=progress, say=say, revision=revision, token=token,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip


def carry_out(
    prepare: Callable[..., Job],
    door: str,
    model: str | Path | None,
    output: str | Path | None,
    settings: TrainSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    say: Say = lambda text: None,
    **source: Any,
) -> TrainResult:
    """Prepare a run, train, write and score; the whole of a training command.

    Args:
        prepare: makes the Job, as preparing.prepare does.
        door: the command.
        model, output: as given.
        settings: of the run.
        resume, overwrite, progress, say: as of every command.
        source: how a Hub model is opened.

    Returns, Raises: as train_spam.
    """
    if output is None:
        raise RequestError("no output directory", "add `-o OUT`")
    with joined(settings.device) as team:
        place = Path(output)
        local = Path(model) if model is not None and Path(model).is_dir() else None
        check_output(place, overwrite=overwrite or resume, source=local)
        job = prepare(
            door,
            model,
            settings,
            team=team,
            progress=progress if team.first else silent,
            say=say if team.first else (lambda text: None),
            **source,
        )
        for line in job.lines():
            job.say(line)
        return _run(job, place, overwrite=overwrite, resume=resume)


def _run(job: Job, output: Path, *, overwrite: bool, resume: bool) -> TrainResult:
    """Train in OUT.partial and put the result in place; the first process writes."""
    made = _missing_parents(output)
    with Workspace.open(
        output,
        overwrite=overwrite,
        resume=resume,
        fingerprint=_fingerprint(job) if job.team.first else None,
        source=job.start.source.directory if job.start.source else None,
        team=job.team,
    ) as workspace:
        if not job.team.first:
            return TrainResult(None, output) if workspace.committed else _follow(job, workspace)
        if workspace.committed:
            workspace.discard()
            return TrainResult(Receipt.read(output), output)
        try:
            return _lead(job, workspace)
        except RequestError:
            if not saved_checkpoints(workspace.path / CHECKPOINTS):
                workspace.discard()  # the request was wrong: there is nothing to resume
                for parent in made:
                    with contextlib.suppress(OSError):
                        parent.rmdir()
            raise


def _missing_parents(output: Path) -> list[Path]:
    """Return the directories that making `output` makes as well, the innermost first."""
    return [parent for parent in output.absolute().parents if not parent.exists()]


def _fingerprint(job: Job) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one."""
    return {
        "command": job.door,
        "model": job.start.digest(),
        "options": job.settings.fingerprint(),
    }


def _lead(job: Job, workspace: Workspace) -> TrainResult:
    """Do the first process's part: data, scores before, training, the result, scores after."""
    before = _score_before(job, workspace.path / "before.json")
    with job.clock("measure"):
        store = job.read(workspace.path)
    job.say(job.data_line(store))
    job.team.wait()  # the others find the data
    done = run(job, workspace.path)
    with job.clock("save"):
        finishing.save_model(job, done, workspace.result)
    _free(job, done)
    trained = open_source(workspace.result)
    after = job.score(trained)
    receipt = finishing.make_receipt(job, done, store, trained, before, after)
    receipt.write(workspace.result)
    if after.has_items:
        write_items(workspace.result, after.as_items())
    with job.clock("save"):
        workspace.commit()
    job.team.wait()
    return TrainResult(receipt, workspace.output, tuple(done.losses))


def _follow(job: Job, workspace: Workspace) -> TrainResult:
    """Do another process's part: wait for the data, train, wait for the result."""
    job.team.wait()
    done = run(job, workspace.path)
    fold_scaled_norms(done.model)
    finishing.gather(done)
    job.team.wait()
    return TrainResult(None, workspace.output)


def _free(job: Job, done: Run) -> None:
    """Let the trained model go: the scores load what was written."""
    done.release()
    job.model = None  # type: ignore[assignment]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _score_before(job: Job, kept: Path) -> Measures:
    """Score trained weights as they are, or read what an interrupted run had found."""
    if job.start.source is None:
        return Measures()
    source = job.start.source
    return measured_once(kept, lambda: job.score(source))
