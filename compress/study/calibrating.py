"""The calibration sets of a study: their names, how they are related to what scores, one drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.calibration import calibration_set
from compress.checkpoints.source import Source
from compress.data import CalibrationReport, Mix, parse_mixes, relation
from compress.errors import RequestError, near_names
from compress.progress import Progress
from compress.study.settings import StudySettings


def calibrations(settings: StudySettings) -> tuple[dict[str, Mix], str]:
    """The study's calibration sets by name, and the name of the reference.

    A spec of one corpus without a format of its own is tried in each of `--formats`.

    Raises:
        RequestError: a spec or format that isn't one, a format on raw text, a set named twice, a
            reference that is none of the sets.
    """
    texts: list[str] = []
    for mix in parse_mixes(settings.calib, settings.registry):
        formats = settings.formats if len(mix.parts) == 1 and mix.format == "raw" else ()
        texts += [mix.text if f == "raw" else f"{mix.text}@{f}" for f in formats] or [mix.text]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise RequestError(f"`--calib` names `{twice[0]}` twice")
    found = {mix.text: mix for mix in parse_mixes(texts, settings.registry)}
    reference = settings.reference or texts[0]
    if reference not in found:
        raise RequestError(
            f"`--reference {reference}` is none of the calibration sets",
            near_names(reference, found),
        )
    return found, reference


def same_data(calib: Mapping[str, Mix], settings: StudySettings) -> dict[tuple[str, str], bool]:
    """(set, text or task) -> whether both are of one data set, though not of one split."""
    return {
        (name, of): relation(mix, of, settings.registry) != "other"
        for name, mix in calib.items()
        for of in (*settings.ppl, *settings.tasks)
    }


def draw(
    source: Source,
    calib: str,
    seed: int,
    settings: StudySettings,
    *,
    seqlen: int,
    items: Mapping[str, Sequence[str]],
    device: str,
    dtype: torch.dtype | None,
    progress: Progress,
) -> tuple[list[dict[str, Tensor]], CalibrationReport]:
    """Draw one set: all sets have equally many real tokens.

    Args:
        source: the model.
        calib: the set's name.
        seed: of the draw; with `--disjoint` its number among those that share no window.
        settings: the study's.
        seqlen: tokens in a window.
        items: task -> texts of its items, of which no window holds a passage.
        device, dtype: where the model runs, for text that it writes itself or chooses.
        progress: told of that.

    Raises:
        RequestError: as `calibration_set`.
    """
    disjoint = (seed - settings.seed, settings.seeds) if settings.disjoint else None
    return calibration_set(
        source,
        calib,
        samples=settings.samples,
        seqlen=seqlen,
        seed=settings.seed if settings.disjoint else seed,
        batch_size=settings.batch_size,
        tokens=settings.samples * seqlen,
        held_out=settings.ppl,
        items=items,
        allow_leakage=settings.allow_leakage,
        registry=settings.registry,
        doc_sampling=settings.doc_sampling,
        chat_template=settings.chat_template,
        select=settings.select,
        pool=settings.pool,
        disjoint=disjoint,
        device=device,
        dtype=dtype,
        progress=progress,
    )
