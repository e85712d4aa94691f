"""A calibration set for a model: text of files and corpora, or sampled from the model itself."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from compress.calibration.cola import cola
from compress.calibration.sampling import Sampler
from compress.checkpoints.source import Source
from compress.data.batching import CalibrationReport
from compress.data.packing import Select, prepare_calibration
from compress.data.registry import Sampling
from compress.data.specs import DataSpec, Mix, parse_mix
from compress.errors import RequestError
from compress.progress import Progress, silent


def calibration_set(
    source: Source,
    calib: str | Sequence[str] | Mix,
    *,
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
    batch_size: int = 1,
    tokens: int | None = None,
    held_out: str | Sequence[str] = (),
    items: Mapping[str, Sequence[str]] | None = None,
    allow_leakage: bool = False,
    registry: str | Path | None = None,
    doc_sampling: str = "packed",
    chat_template: bool = True,
    select: str = "random",
    pool: int = 4,
    disjoint: tuple[int, int] | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> tuple[list[dict[str, Tensor]], CalibrationReport]:
    """Make the calibration set of a model, sampling from it and choosing by it where asked.

    Args:
        source: the dense model; its tokenizer reads the text.
        calib: data specs of one set.
        select: random, diverse (by words), or cola (by the model's activations).
        device, dtype: where the model runs for `self` and cola, and in what type.
        progress: told of the sampling.

    The other arguments, what is returned and what is raised are those of `prepare_calibration`.

    Raises:
        RequestError: also a model without tokenizer, or one that takes no positions where documents
            are to be isolated.
    """
    tokenizer = source.tokenizer()
    if tokenizer is None:
        raise RequestError(
            f"`{source.name}` has no tokenizer, which the text of --calib needs",
            "copy the tokenizer files into it, or use --method magnitude, which needs no text",
        )
    if doc_sampling == "isolated":
        _check_positions(source)
    mix = calib if isinstance(calib, Mix) else parse_mix(calib, registry)

    def sampled(spec: DataSpec) -> Iterator[list[int]]:
        options = spec.entry.sampled if spec.entry is not None else None
        return Sampler(
            source,
            options or Sampling(),
            length=seqlen,
            seed=seed,
            device=device,
            dtype=dtype,
            registry=registry,
            budget=math.ceil((spec.share or 1.0) * (tokens or samples * seqlen)),
            progress=progress,
        ).texts()

    chosen: str | Select = select
    if select == "cola":
        chosen = cola(
            source,
            seed=seed,
            batch_size=batch_size,
            isolated=doc_sampling == "isolated",
            device=device,
            dtype=dtype,
            progress=progress,
        )
    return prepare_calibration(
        mix,
        tokenizer,
        samples=samples,
        seqlen=seqlen,
        seed=seed,
        batch_size=batch_size,
        held_out=held_out,
        registry=registry,
        tokens=tokens,
        items=items,
        allow_leakage=allow_leakage,
        doc_sampling=doc_sampling,
        chat_template=chat_template,
        select=chosen,
        pool=pool,
        disjoint=disjoint,
        sampled=sampled,
    )


def _check_positions(source: Source) -> None:
    """Refuse isolated documents where a model takes no positions to tell them apart by."""
    kind = source.model_class()
    if "position_ids" not in inspect.signature(kind.forward).parameters:
        raise RequestError(
            f"`--doc-sampling isolated` needs positions, which `{kind.__name__}` doesn't take",
            "use `--doc-sampling packed`",
        )
