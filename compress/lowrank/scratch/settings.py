"""The options of `lowrank-svd --from-scratch`: those of training, and how rank is spread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from compress.data.audio_files import LIMIT_SECONDS
from compress.errors import Fault, RequestError, check_options, nearest, refuse
from compress.lowrank.scratch.decay import DECAYS
from compress.lowrank.scratch.factors import INITS
from compress.lowrank.scratch.schedules import SCHEDULES, SLOPE, parse_shares
from compress.lowrank.scratch.sizes import SPEECH
from compress.training.checking import faults_of
from compress.training.settings import TrainSettings
from compress.training.sizes import PRESETS

COMMAND = "lowrank-svd"
_LISTS = ("data", "valid", "ppl", "tasks", "task_dirs", "wer", "include", "exclude", "train_only")
_OF_TEXT = ("sft", "ppl", "tasks", "task_dirs", "tokens", "quantise", "norm", "speed", "seqlen")


@dataclass(frozen=True)
class ScratchSettings(TrainSettings):
    """Everything that decides what `lowrank-svd --from-scratch` does; see TrainSettings too.

    Attributes:
        dense: train with no factors: the arm to compare with.
        include, exclude: globs of layers that become factors, or attention, ffn, conv, all.
        rank_ratio: rank over the smaller side of a layer, in (0, 1]; the mean over the blocks.
        factor_init: how factors start, of factors.INITS.
        rank_schedule: how rank goes with depth: of schedules.SCHEDULES, or a share a block.
        rank_slope: half the spread of the linear ones around their mean.
        factor_decay: what weight_decay does to factors, of decay.DECAYS.
        start: of a random model: `reset`, every layer as torch's reset_parameters draws it;
            `family`, as transformers does; None is reset for speech, family for text.
        wer: data specs of recordings whose word error rate is scored at the end.
        sample_rate, mels: of a new feature extractor; None takes the preset's, or 16000 and 80.
        resample: convert recordings of other rates, instead of refusing them.
        max_seconds: the longest recording that is taken.
        visual: join the visual features beside each recording to its log-mel ones.
        drop_short: leave out recordings that are too short for their transcript, and count them.
    """

    dense: bool = False
    include: tuple[str, ...] = ("all",)
    exclude: tuple[str, ...] = ()
    rank_ratio: float = 0.25
    factor_init: str = "svd"
    rank_schedule: str = "uniform"
    rank_slope: float | None = None
    factor_decay: str = "l2"
    start: str | None = None
    wer: tuple[str, ...] = ()
    sample_rate: int | None = None
    mels: int | None = None
    resample: bool = False
    max_seconds: float = LIMIT_SECONDS
    visual: bool = False
    drop_short: bool = False

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> ScratchSettings:
        """Make settings; what is None, or not given, has its default.

        Raises:
            TypeError: an option that there isn't.
        """
        check_options("train_from_scratch", options, (f.name for f in fields(cls)))
        given = {key: value for key, value in options.items() if value is not None}
        for name in _LISTS:
            if isinstance(given.get(name), str):
                given[name] = (given[name],)
            elif name in given:
                given[name] = tuple(given[name])
        if not given.get("include", ("all",)):
            given.pop("include")
        return cls(**{"batch_size": 16, "weight_decay": 0.01, **given})

    @property
    def slope(self) -> float:
        """The slope asked for, or the default."""
        return SLOPE if self.rank_slope is None else self.rank_slope

    @property
    def presets(self) -> tuple[str, ...]:
        """Names that `preset` may have."""
        return (*SPEECH, *PRESETS)

    def run_steps(self) -> int:
        """Length of the run in steps."""
        return self.steps or 0 if self.preset in SPEECH else super().run_steps()

    def check(self, norms: tuple[str, ...]) -> None:
        """Refuse what can't be meant, all faults in one error.

        Raises:
            RequestError: one or more settings are wrong.
        """
        refuse([*faults_of(self, norms), *_faults(self)])

    def check_speech(self) -> None:
        """Refuse options of text.

        Raises:
            RequestError: one is given.
        """
        faults = [
            (f"`--{name.replace('_', '-')}` is about text, and this model hears", "leave it out.")
            for name in _OF_TEXT
            if getattr(self, name)
        ]
        if self.optimizer == "adam-mini":  # which reads heads off a language model's config
            faults.append(("`--optimizer adam-mini` knows language models alone", ""))
        refuse(faults)

    def check_text(self) -> None:
        """Refuse options of speech.

        Raises:
            RequestError: one is given.
        """
        names = ("wer", "sample_rate", "mels", "resample", "visual", "drop_short")
        refuse(
            (f"`--{name.replace('_', '-')}` is about speech, and this model reads text", "")
            for name in names
            if getattr(self, name)
        )


def _faults(s: ScratchSettings) -> Iterator[Fault]:
    if not 0 < s.rank_ratio <= 1:
        yield f"`--rank-ratio {s.rank_ratio:g}` is outside (0, 1]", "1 is full rank."
    for option, value, known in (
        ("init", s.factor_init, INITS),
        ("factor-decay", s.factor_decay, DECAYS),
        ("start", s.start, ("reset", "family")),
    ):
        if value is not None and value not in known:
            yield f"`--{option} {value}` isn't known", nearest(value, known)
    if s.rank_schedule not in SCHEDULES:
        try:
            parse_shares(s.rank_schedule)
        except RequestError as error:
            yield error.message, (error.hint or "") + "."
    if s.rank_slope is not None:
        if not 0 <= s.rank_slope <= 1:
            yield f"`--rank-slope {s.rank_slope:g}` is outside [0, 1]", ""
        if not s.rank_schedule.startswith("linear"):
            yield f"`--rank-slope` can't act with `--rank-schedule {s.rank_schedule}`", ""
    if s.factor_decay == "frobenius" and not s.weight_decay:
        yield "`--factor-decay frobenius` can't act with `--weight-decay 0`", ""
    for name in ("sample_rate", "mels"):
        value = getattr(s, name)
        if value is not None and value < (1000 if name == "sample_rate" else 1):
            yield f"`--{name.replace('_', '-')} {value}` is too small", ""
    if not 0 < s.max_seconds < float("inf"):
        yield f"`--max-seconds {s.max_seconds:g}` isn't a positive number", ""
    if s.dense and (s.rank_schedule != "uniform" or s.factor_init != "svd"):
        yield "`--dense` has no factors: `--init` and `--rank-schedule` can't act", ""
