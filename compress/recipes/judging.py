"""What commands find wrong with settings before they read anything: names, ranges, combinations.

The command line's parser knows types only; that `wandaa` is no method, or that two options exclude
each other, is known to the rooms, which need torch. So this is asked where torch is: in the process
that steps are forked from, or in one of its own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from compress.errors import CompressError


class Question(TypedDict):
    """A command line: the command, and its words without paths that aren't there yet."""

    command: str
    words: list[str]


def faults(questions: Sequence[Question]) -> list[str]:
    """What is wrong with each command line, as one line; empty where nothing is found."""
    return [_fault(q["command"], q["words"]) for q in questions]


def _fault(command: str, words: Sequence[str]) -> str:
    from compress.recipes.program import Program

    judge = _JUDGES.get(command)
    if judge is None:
        return ""
    try:
        judge(command, Program(command).settings(words))
    except CompressError as error:
        return error.message + (f" ({error.hint})" if error.hint else "")
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def _fields(kind: Any, given: Mapping[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if name in names})


def _alpha_prune(command: str, given: Mapping[str, Any]) -> None:
    from compress.sparsity.settings import AlphaPruneSettings
    from compress.spectra.metrics import METRICS

    _fields(AlphaPruneSettings, given).check(tuple(METRICS))


def _calib_study(command: str, given: Mapping[str, Any]) -> None:
    from compress.study.settings import StudySettings

    _fields(StudySettings, given).check()


def _condense(command: str, given: Mapping[str, Any]) -> None:
    from compress.experts.settings import CondenseSettings

    _fields(CondenseSettings, given).resolved()


def _lowrank(command: str, given: Mapping[str, Any]) -> None:
    from compress.lowrank.settings import LowRankSettings

    if not given["from_scratch"]:
        _fields(LowRankSettings, given).check()


def _pass_prune(command: str, given: Mapping[str, Any]) -> None:
    from compress.channels.settings import PruneSettings

    _fields(PruneSettings, given).resolved()


def _train(command: str, given: Mapping[str, Any]) -> None:
    from compress.training.norms import NORMS
    from compress.training.settings import TrainSettings

    known = {field.name for field in dataclasses.fields(TrainSettings)}
    options = {name: value for name, value in given.items() if name in known}
    TrainSettings.of_door(command, options).check(tuple(NORMS))


_JUDGES: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
    "alpha-prune": _alpha_prune,
    "calib-study": _calib_study,
    "cd-moe-condense": _condense,
    "lowrank-svd": _lowrank,
    "pass-prune": _pass_prune,
    "train-spam": _train,
    "train-meap": _train,
    "train-mixln": _train,
}


if __name__ == "__main__":
    print(json.dumps(faults(json.load(sys.stdin))))
