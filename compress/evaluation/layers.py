"""The layer distances that `compress eval --distances` asks for: checked first, measured last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.source import Source
from compress.data.packing import calibration_batches
from compress.data.specs import load_documents, parse_spec
from compress.errors import RequestError
from compress.evaluation.distances import Distances, Pair
from compress.progress import Progress

SAMPLES = 16
SEQLEN = 512


class LayerDistances:
    """The models of one request, each to be compared with `base`, and the text to run them on.

    Args:
        base: the model compared with.
        others: the models that are compared, by name.
        data: a data spec; None is the shipped corpus.
        samples, seqlen: windows and tokens in each; default 16 of 512, or the models' limit.
        registry: a user's registry file, for `data`.
        seed: of the choice of windows.
        dtype, device: see Pair.

    Attributes:
        notes: why models were not run, where they were not.

    Raises:
        RequestError: models that can't be compared (see Pair), text that can't be used, or a length
            above a model's limit.
    """

    def __init__(
        self,
        base: Source,
        others: Mapping[str, Source],
        *,
        data: str | None = None,
        samples: int | None = None,
        seqlen: int | None = None,
        registry: str | Path | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> None:
        self._base, self._others, self._dtype, self._device = base, others, dtype, device
        self._batches: Sequence[Mapping[str, Tensor]] = ()
        self._data: dict[str, Any] = {}
        reasons = dict.fromkeys(self._pair(other).why_not for other in others.values())
        self.notes = [f"distances: {reason}; weights alone" for reason in reasons if reason]
        if self.notes:
            return
        limits = [limit for s in (base, *others.values()) if (limit := s.token_limit()) is not None]
        limit = min(limits, default=None)
        length = seqlen or min(SEQLEN, limit or SEQLEN)
        if limit is not None and length > limit:
            raise RequestError(
                f"`--seqlen {length}` is above the models' limit of {limit} tokens",
                f"use `--seqlen {limit}` or less",
            )
        spec = data or "demo"
        texts = [text for part in parse_spec(spec, registry) for text in load_documents(part)]
        self._batches, report = calibration_batches(
            texts, base.tokenizer(), samples=samples or SAMPLES, seqlen=length, seed=seed
        )
        self._data = {
            "spec": spec,
            "windows": report.windows,
            "seqlen": length,
            "tokens": report.tokens,
            "seed": seed,
        }

    def measure(self, progress: Progress) -> dict[str, Distances]:
        """Return each model's distances; models are opened anew, one pair at a time."""
        return {
            name: self._pair(other).measure(self._batches, self._data, progress)
            for name, other in self._others.items()
        }

    def _pair(self, other: Source) -> Pair:
        return Pair(self._base, other, self._dtype, self._device)


def check_options(
    against: object, changed: int | None, distances: bool, only_distances: Mapping[str, object]
) -> None:
    """Refuse options that say nothing without another.

    Args:
        against: the model compared with, or None.
        changed, distances: of `evaluate`.
        only_distances: option -> value of those that only distances use.

    Raises:
        RequestError: naming the option that is missing.
    """
    if changed is not None and (against is None or changed < 0):
        raise RequestError(
            f"`--changed {changed}` counts examples that differ from those of another model",
            "give that model by --against, and a number from 0",
        )
    if distances and against is None:
        raise RequestError(
            "`--distances` are distances from another model", "give that model by --against"
        )
    for name, value in only_distances.items():
        if value is not None and not distances:
            raise RequestError(
                f"`--{name} {value}` is for --distances, which isn't given", "add --distances"
            )
        if isinstance(value, int) and value < 1:
            raise RequestError(f"`--{name} {value}`: a number from 1 is needed")
