"""The calibration sets of a study: their names, and one of them drawn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress.checkpoints.source import Source
from compress.data.packing import CalibrationReport, prepare_calibration
from compress.data.specs import DataSpec, parse_spec
from compress.errors import RequestError, near_names
from compress.evaluation.measures import Request
from compress.study.settings import StudySettings


def calibrations(settings: StudySettings) -> tuple[dict[str, DataSpec], str]:
    """The study's calibration sets by name, and the name of the reference.

    A spec without a format of its own is tried in each of `--formats`.

    Raises:
        RequestError: a spec or format that isn't one, one twice, or a reference that is none of
            them.
    """
    texts: list[str] = []
    for spec in parse_spec(settings.calib):
        plain = "@" not in spec.text or spec.format == "raw"
        formats = settings.formats if plain and settings.formats else ("",)
        texts += [spec.text if f in ("", "raw") else f"{spec.text}@{f}" for f in formats]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise RequestError(f"`--calib` names `{twice[0]}` twice")
    found = {spec.text: spec for spec in parse_spec(texts)}
    reference = settings.reference or texts[0]
    if reference not in found:
        raise RequestError(
            f"`--reference {reference}` is none of the calibration sets",
            near_names(reference, found),
        )
    return found, reference


def draw(
    source: Source,
    tokenizer: Any,
    calib: str,
    seed: int,
    seqlen: int,
    request: Request,
    settings: StudySettings,
    device: str,
) -> tuple[list[dict[str, Tensor]], CalibrationReport]:
    """Draw one set."""
    return prepare_calibration(
        calib,
        tokenizer,
        samples=settings.samples,
        seqlen=seqlen,
        seed=seed,
        batch_size=settings.batch_size,
        held_out=settings.ppl,
    )
