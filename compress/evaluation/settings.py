"""What is scored, as fields that the settings of every command on a checkpoint share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoringSettings:
    """The options that decide what a model is scored on.

    Attributes:
        ppl: texts for perplexity.
        tasks: of lm-eval, and needle, multidoc, longreason.
        task_dirs: directories with tasks of one's own.
        limit: most examples a task and windows a text.
        stride: tokens by which windows advance; None: windows don't overlap.
        eval_seqlen: tokens in a window; None: what the model takes, 2048 at most.
        seed: of every random choice.
    """

    ppl: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    task_dirs: tuple[str, ...] = ()
    limit: int | None = None
    stride: int | None = None
    eval_seqlen: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class EvaluationSettings(ScoringSettings):
    """The options of scoring before and after; a command's settings go on from these.

    Attributes:
        speed: time prefill and decoding, and measure memory.
    """

    speed: bool = False
