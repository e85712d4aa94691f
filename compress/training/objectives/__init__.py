"""What a model is trained to do: predict the next token, some inputs masked or not."""

from __future__ import annotations

from compress.training.objectives.answers import MaskedAnswerCollator, SampleRows
from compress.training.objectives.masked import MaskedNextTokenCollator
from compress.training.objectives.plain import NextTokenCollator

OBJECTIVES = ("ntp", "meap")

__all__ = [
    "OBJECTIVES",
    "MaskedAnswerCollator",
    "MaskedNextTokenCollator",
    "NextTokenCollator",
    "SampleRows",
]
